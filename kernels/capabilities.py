"""What a device can do: pure data, from its name, its compute capability and the versions that are installed.

What a GPU may use is decided by its `Refusals`, sentences that are data: where there is none, it is used.
"""

import importlib.util
from functools import cache
from typing import NamedTuple

import torch

OLDEST = (7, 5)
BF16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
FP8_MULTIPLE = 16  # of both sides of a weight, for FP8 matrix products
# First torch version with row-wise scaled FP8 products, by compute capability: Hopper had them before Ada and Blackwell.
FP8_TORCH = {(9, 0): (2, 6)}
FP8_TORCH_ELSEWHERE = (2, 8)
INT8_FIRST = ((7, 5), (8, 0), (8, 6), (8, 7))  # GPUs that multiply INT8 at twice the rate of 16 bit or more, and no FP8
EITHER_FIRST = ((8, 9), (12, 0))  # GPUs that have both, FP8 with float32 sums at half rate: measured
UNITS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "16bit": torch.bfloat16}
EXACT = "exact"
"""Products of a layer whose codes INT8 would round too much: the fastest units in which they are exact."""
FASTER: dict[int, str] = {}  # of GPUs of EITHER_FIRST: which units were measured to be faster; FP8 until then
MEASURED: dict[int, str] = {}  # and what was measured, in words


class Refusals(NamedTuple):
    """Why a GPU does not do a thing; None where it does."""

    device: str | None  # quantized layers at all
    triton: str | None
    fp8: str | None
    int8: str | None = None
    bfloat16: str | None = None  # inputs and products of that type
    dot: str | None = None  # matrix products of Triton kernels, where there are others

    @property
    def triton_products(self) -> str | None:
        """Why no Triton kernel multiplies."""
        return self.triton or self.dot


def refusals(device: torch.device) -> Refusals:
    """What the GPU `device` does not do, and why."""
    return _refusals(gpu_number(device))


def fp8_shape_refusal(rows: int, width: int) -> str | None:
    """Why a weight [rows, width] cannot be multiplied in FP8, or None."""
    for side, count in (("outputs", rows), ("inputs", width)):
        if count % FP8_MULTIPLE:
            return f"{count} {side} are no multiple of {FP8_MULTIPLE}"
    return None


def multiplies_e4m3(device: torch.device) -> bool:
    """Whether the GPU has matrix units for E4M3, whatever torch makes of them."""
    return torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def operand_dtype(x: torch.Tensor, bits: int, products: str = "auto") -> torch.dtype:
    """Of the operands that `ops.encode` makes of x. Those of 4 and 8 bits are exact in each of these types but int8.

    16-bit products are of bfloat16, for float16 would overflow in the sum, and of float32 where there is none; CPUs have
    float32 units only.

    Raises:
        RuntimeError: `products` names units that the device does not have.
    """
    if bits == 16:
        return x.dtype
    if x.device.type == "cpu":
        return torch.int8 if products == "int8" else torch.float32
    units = units_for(x.device, products)
    if units == "16bit" and x.device.type == "cuda" and refusals(x.device).bfloat16 is not None:
        return torch.float32
    return UNITS[units]


def units_for(device: torch.device, products: str = "auto") -> str:
    """Which matrix units of a device multiply operands of 4 and 8 bits: "fp8", "int8" or "16bit".

    Args:
        products: "fp8", "int8", "16bit", "auto", or `EXACT`.

    Raises:
        RuntimeError: `products` names units that the device does not have.
    """
    if (problem := products_refusal(device, products)) is not None:
        raise RuntimeError(problem)
    if device.type != "cuda":
        return "int8" if products == "int8" else "16bit"
    if products not in ("auto", EXACT):
        return products
    refused = refusals(device)
    if products == EXACT:
        return "fp8" if refused.fp8 is None else "16bit"
    if torch.cuda.get_device_capability(gpu_number(device)) in INT8_FIRST and refused.int8 is None:
        return "int8"
    if refused.fp8 is not None:
        return "16bit"
    return FASTER.get(gpu_number(device), "fp8")


def products_refusal(device: torch.device, products: str) -> str | None:
    """Why a device cannot multiply by the units that `products` names, with the remedy, or None.

    A CPU computes the numbers of any units: INT8 in integers, others in float32.
    """
    if products not in ("fp8", "int8") or device.type in ("cpu", "meta"):
        return None
    problem: str | None = f"there are no kernels for {device.type}"
    if device.type == "cuda":
        refused = refusals(device)
        problem = refused.fp8 if products == "fp8" else refused.int8
    if problem is None:
        return None
    name = {"fp8": "FP8", "int8": "INT8"}[products]
    return f"products={products!r}, and this device does no {name} products: {problem}; choose 'auto', or '16bit'"


def weight_dtype(operand: torch.Tensor) -> torch.dtype:
    """In which weights are decoded to be multiplied with these operands."""
    return torch.float32 if operand.device.type == "cpu" else torch.bfloat16


def check(device: torch.device, weight: torch.device, dtype: torch.dtype | None = None) -> None:
    """Refuse what cannot be multiplied: an input on another device than the weight, a GPU that is too old, or bfloat16 on a
    GPU that has none.

    Args:
        dtype: of the layer's input.
    """
    if device != weight:
        raise RuntimeError(f"the input lies on {device} and the layer's weight on {weight}; move one of them with .to()")
    if device.type != "cuda":
        return
    refused = refusals(device)
    if refused.device is not None:
        raise RuntimeError(refused.device)
    if dtype == torch.bfloat16 and refused.bfloat16 is not None:
        raise RuntimeError(refused.bfloat16)


def gpu_number(device: torch.device) -> int:
    """The index of a GPU; of the current one where `device` names none."""
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _refusals(number: int) -> Refusals:
    capability = torch.cuda.get_device_capability(number)
    name = f"{torch.cuda.get_device_name(number)} has compute capability {'.'.join(map(str, capability))}"
    if torch.version.hip is not None:
        return Refusals(None, "written for NVIDIA GPUs", "measured on NVIDIA GPUs only", "measured on NVIDIA GPUs only")
    if capability < OLDEST:
        problem = f"{name}; quantized layers need 7.5 (Turing) or newer, or the CPU"
        return Refusals(problem, problem, problem, problem, problem)
    bfloat16 = None
    if capability < BF16_CAPABILITY:
        bfloat16 = f"{name} and no bfloat16 units; load the model in float16: torch_dtype=torch.float16, or --dtype float16"
    triton = None if importlib.util.find_spec("triton") else "the package triton is not installed"
    fp8 = None
    version = FP8_TORCH.get(capability, FP8_TORCH_ELSEWHERE)
    if capability < FP8_CAPABILITY:
        fp8 = f"{name}, they need 8.9 (Ada) or newer"
    elif tuple(int(part) for part in torch.__version__.split(".")[:2]) < version:
        fp8 = f"torch {torch.__version__}, they need {'.'.join(map(str, version))} or newer here"
    dot = "Triton compiles matrix products for 8.0 and newer" if capability < BF16_CAPABILITY else None
    return Refusals(None, triton, fp8, None, bfloat16, dot)
