"""What to take on a device where nobody has said otherwise, and what makes layers slower there than they could be."""

from typing import NamedTuple

import torch

from ...kernels.capabilities import BF16_CAPABILITY, FP8_CAPABILITY, units_for
from ...kernels.dispatch import refusals
from ..config import SeDialectConfig
from .report import quality_advice

INSTALL_TRITON = "install it: pip install triton (on Windows: triton-windows)"


class Advice(NamedTuple):
    """A preset, and why it."""

    preset: str
    reason: str


def best_preset(device: torch.device | str) -> Advice:
    """The preset to take on a device where nobody has said another: of the fastest, the nearest to 16 bit."""
    device = torch.device(device)
    if device.type != "cuda":
        return Advice("weight-only", f"on {device.type} fewer bits of activations would save no time")
    if (refused := refusals(device)).device is not None:
        return Advice("weight-only", refused.device)
    units = units_for(device)
    if units == "16bit":
        return Advice(
            "weight-only", f"products run in 16 bit here, so that fewer bits of activations save no time: {refused.fp8}"
        )
    return Advice("quality", f"this GPU has {units.upper()} units, on which 8-bit activations take the time of 4-bit ones")


def slower_than_possible(device: torch.device | str, config: SeDialectConfig) -> list[str]:
    """Why layers run slower on a device than they could, or no nearer to 16 bit at the same speed; each with what to do."""
    device = torch.device(device)
    if device.type != "cuda":
        return [f"on {device.type} quantized layers save memory, not time"]
    refused = refusals(device)
    if refused.device is not None:
        return [refused.device]
    capability = torch.cuda.get_device_capability(device)
    units, said = units_for(device), []
    fast = "" if units == "16bit" else f"this GPU's {units.upper()} units"
    if refused.triton is not None:
        slow = "plain torch encodes and decodes, several times slower than Triton kernels"
        said.append(f"{slow}: {refused.triton}; {INSTALL_TRITON}")
    if refused.fp8 is not None and capability >= FP8_CAPABILITY:
        said.append(f"the GPU's FP8 units are not used: {refused.fp8}; update torch")
    if fast and config.precision == "w4a16":
        said.append(f"w4a16 multiplies in 16 bit; w4a8 (preset quality) runs on {fast}")
    if fast and config.products == "16bit":
        said.append(f"products is 16bit; auto runs on {fast}")
    if refused.dot is not None and capability < BF16_CAPABILITY:
        said.append("this GPU multiplies by torch's INT8 products, not by our kernels, which need 8.0 (Ampere) or newer")
    if (advice := quality_advice(device, config)) is not None:
        said.append(advice)
    return said
