"""Which implementation runs, and why not another. `sedialect doctor` and the reports print it.

What a GPU may use is decided by its `Refusals`, sentences that are data: where there is none, it is used. What fails all
the same while the program runs, such as a kernel that Triton cannot compile or launch, joins them with one warning, and
something slower takes its place.
"""

import importlib.util
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeVar

import torch

BF16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
FP8_MULTIPLE = 16  # of both sides of a weight, for FP8 matrix products
# First torch version with row-wise scaled FP8 products, by compute capability: Hopper had them before Ada and Blackwell.
FP8_TORCH = {(9, 0): (2, 6)}
FP8_TORCH_ELSEWHERE = (2, 8)

SMALLER = "Offload other parts of the pipeline (enable_model_cpu_offload), or use a smaller video or batch"
QUANTIZE_FIRST = (
    "Quantize while the model lies on the CPU, and move it afterwards: the GPU then holds one 16-bit layer at a time"
)

Result = TypeVar("Result")
_FAILED: dict[tuple[str, int], str] = {}  # (what, GPU) -> what takes its place, and why


class Implementation(NamedTuple):
    """The path that a device's layers take, and the reason in a sentence, with everything that was refused."""

    name: str
    reason: str


class Refusals(NamedTuple):
    """Why a GPU does not do a thing; None where it does."""

    device: str | None  # quantized layers at all
    triton: str | None
    fp8: str | None


def implementation(
    device: torch.device | str,
    precision: str = "w4a4",
    shape: tuple[int, int] | None = None,
) -> Implementation:
    """The path of layers that lie on `device`; of one layer, where `precision` and its weight's `shape` [N, K] are given."""
    device = torch.device(device)
    if device.type == "cpu":
        return Implementation("reference", "plain torch in float32; CPUs have no FP8 matrix units")
    if device.type != "cuda":
        return Implementation("reference", f"plain torch with bfloat16 products; there are no kernels for {device.type}")
    refused = refusals(device)
    if refused.device is not None:
        return Implementation("none", refused.device)
    kernels = "Triton kernels encode and decode"
    if refused.triton is not None:
        kernels = f"plain torch encodes and decodes (no Triton kernels: {refused.triton})"
    for (_, number), outcome in list(_FAILED.items()):  # other threads may add to it
        if number == _number(device):
            kernels += f" (but {outcome})"
    product, note = "FP8", ""
    if precision == "w4a16":
        product, note = "16-bit", "FP8 has too few digits for 16-bit activations"
    elif refused.fp8 is not None:
        product, note = "bfloat16", refused.fp8
    elif shape is not None and (problem := fp8_shape_refusal(*shape)):
        product, note = "bfloat16", problem
    name = "reference" if refused.triton is not None else f"triton, {product} products"
    because = f" (no FP8 products: {note})" if note else ""
    return Implementation(name, f"{kernels}; {product} matrix products{because}")


def refusals(device: torch.device) -> Refusals:
    """What the GPU `device` does not do, and why."""
    return _refusals(_number(device))


def fp8_shape_refusal(rows: int, width: int) -> str | None:
    """Why a weight [rows, width] cannot be multiplied in FP8, or None."""
    for side, count in (("outputs", rows), ("inputs", width)):
        if count % FP8_MULTIPLE:
            return f"{count} {side} are no multiple of {FP8_MULTIPLE}"
    return None


def operand_dtype(x: torch.Tensor, bits: int) -> torch.dtype:
    """Of the operands that `ops.encode` makes of x. Those of 4 and 8 bits are exact in each of these types.

    GPUs multiply E4M3 fastest, then bfloat16, and float16 would overflow in the sum; CPUs have float32 units only.
    """
    if bits == 16:
        return x.dtype
    if x.device.type == "cpu":
        return torch.float32
    if x.device.type != "cuda" or refusals(x.device).fp8 is not None:
        return torch.bfloat16
    return torch.float8_e4m3fn


def weight_dtype(operand: torch.Tensor) -> torch.dtype:
    """In which weights are decoded to be multiplied with these operands."""
    return torch.float32 if operand.device.type == "cpu" else torch.bfloat16


def check(device: torch.device, weight: torch.device) -> None:
    """Refuse what cannot be multiplied: a GPU without bfloat16, or an input on another device than the weight."""
    if device != weight:
        raise RuntimeError(f"the input lies on {device} and the layer's weight on {weight}; move one of them with .to()")
    if device.type == "cuda" and (problem := refusals(device).device):
        raise RuntimeError(problem)


def run(kernel: str, device: torch.device, fast: Callable[[], Result], plain: Callable[[], Result]) -> Result:
    """What the Triton kernel gives, `fast`; `plain` torch where the GPU has none, or the kernel fails."""
    if refusals(device).triton is not None:
        return plain()
    return attempt(f"the Triton kernel for {kernel}", "plain torch", device, fast, plain)


def attempt(what: str, instead: str, device: torch.device, fast: Callable[[], Result], slow: Callable[[], Result]) -> Result:
    """`fast`; once it has failed on this GPU, `slow`. That it fails is warned of once.

    Args:
        what: the fast way, and `instead`, what takes its place, in the words of warning and reports.
    """
    failed = (what, _number(device))
    if failed not in _FAILED:
        try:
            if device.index in (None, torch.cuda.current_device()):
                return fast()
            with torch.cuda.device(device):  # Triton launches on the current one
                return fast()
        except torch.OutOfMemoryError:
            raise
        except _failures() as error:
            lines = str(error).strip().splitlines() or [""]
            cause = f"{type(error).__name__}: {lines[0]}"
            _FAILED[failed] = f"{instead} for {what.removeprefix('the ')}, since that failed: {cause}"
            warnings.warn(
                f"{what} failed on {device} ({cause}); {instead} does its work from now on, several times slower",
                RuntimeWarning,
                stacklevel=2,
            )
    return slow()


def explain_memory(error: torch.OutOfMemoryError, what: str, count: int, remedy: str = SMALLER) -> torch.OutOfMemoryError:
    """An error of the same kind that says what was being made, how many bytes it takes, and what to do."""
    return torch.OutOfMemoryError(f"out of GPU memory while {what}, {count / 1e6:.0f} MB. {remedy}. {error}")


def _failures() -> tuple[type[BaseException], ...]:
    """What Triton raises where it cannot compile or launch: no C compiler, no ptxas, an unknown GPU, too few registers."""
    errors: tuple[type[BaseException], ...] = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
    try:
        from triton.errors import TritonError
    except ImportError:
        return (*errors, AttributeError)
    return (*errors, TritonError, AttributeError, NotImplementedError)


@cache
def _refusals(number: int) -> Refusals:
    capability = torch.cuda.get_device_capability(number)
    name = f"{torch.cuda.get_device_name(number)} has compute capability {'.'.join(map(str, capability))}"
    if torch.version.hip is not None:
        return Refusals(None, "written for NVIDIA GPUs", "measured on NVIDIA GPUs only")
    if capability < BF16_CAPABILITY:
        problem = f"{name} and no bfloat16 units; quantized layers need 8.0 (Ampere) or newer, or the CPU"
        return Refusals(problem, problem, problem)
    triton = None if importlib.util.find_spec("triton") else "the package triton is not installed"
    fp8 = None
    version = FP8_TORCH.get(capability, FP8_TORCH_ELSEWHERE)
    if capability < FP8_CAPABILITY:
        fp8 = f"{name}, they need 8.9 (Ada) or newer"
    elif tuple(int(part) for part in torch.__version__.split(".")[:2]) < version:
        fp8 = f"torch {torch.__version__}, they need {'.'.join(map(str, version))} or newer here"
    return Refusals(None, triton, fp8)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
