"""Which implementation runs on a device, and why not another. `sedialect doctor` and the reports print it."""

from typing import NamedTuple

import torch


class Implementation(NamedTuple):
    """The path that a device's layers take, and the reason in a sentence."""

    name: str
    reason: str


def implementation(device: torch.device | str) -> Implementation:
    """The path of layers that lie on `device`."""
    device = torch.device(device)
    if device.type == "cpu":
        return Implementation("reference", "plain torch in float32; CPUs have no FP8 matrix units")
    return Implementation("reference", "plain torch with bfloat16 matrix products; fused GPU kernels are not built yet")


def operand_dtype(x: torch.Tensor, bits: int) -> torch.dtype:
    """Of the operands that `ops.encode` makes of x. Those of 4 and 8 bits are exact in each of these types.

    GPUs multiply bfloat16 fastest, and float16 would overflow in the sum; CPUs have float32 units only.
    """
    if bits == 16:
        return x.dtype
    return torch.float32 if x.device.type == "cpu" else torch.bfloat16


def weight_dtype(operand: torch.Tensor) -> torch.dtype:
    """In which weights are decoded to be multiplied with these operands."""
    return torch.float32 if operand.device.type == "cpu" else torch.bfloat16
