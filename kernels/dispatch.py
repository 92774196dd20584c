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
