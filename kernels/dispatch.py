"""Which implementation runs, and why not another. `sedialect doctor` and the reports print it.

What a GPU can do is in `capabilities`. What fails all the same while the program runs, because Triton cannot compile or
launch a kernel or CUDA refuses it, joins the refusals with one warning, and something slower takes its place. A mistake in
our own code is an error.
"""

import subprocess
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from .capabilities import (
    EITHER_FIRST,
    EXACT,
    MEASURED,
    Refusals,
    fp8_shape_refusal,
    gpu_number,
    products_refusal,
    refusals,
    units_for,
)

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


def implementation(
    device: torch.device | str,
    precision: str = "w4a4",
    shape: tuple[int, int] | None = None,
    products: str = "auto",
) -> Implementation:
    """The path of layers that lie on `device`; of one layer, where `precision` and its weight's `shape` [N, K] are given.

    Args:
        products: of the layer, as of `capabilities.units_for`.
    """
    device = torch.device(device)
    if precision != "w4a16" and (problem := products_refusal(device, products)):
        return Implementation("none", problem)
    if device.type == "cpu":
        if products == "int8" and precision != "w4a16":
            return Implementation("reference", "plain torch with integer products; CPUs have no kernels for them")
        return Implementation("reference", "plain torch in float32; CPUs have no FP8 matrix units")
    if device.type != "cuda":
        return Implementation("reference", f"plain torch with bfloat16 products; there are no kernels for {device.type}")
    refused = refusals(device)
    if refused.device is not None:
        return Implementation("none", refused.device)
    kernels = "Triton kernels encode and decode"
    if refused.triton is not None:
        kernels = f"plain torch encodes and decodes (no Triton kernels: {refused.triton})"
    for (what, number), outcome in list(_FAILED.items()):  # other threads may add to it
        if number == gpu_number(device) and "attention" not in what:
            kernels += f" (but {outcome})"
    product, because = _product(device, refused, precision, shape, products)
    name = "reference" if refused.triton is not None else f"triton, {product} products"
    return Implementation(name, f"{kernels}; {product} matrix products{f' ({because})' if because else ''}")


def _product(
    device: torch.device, refused: Refusals, precision: str, shape: tuple[int, int] | None, products: str
) -> tuple[str, str]:
    """What multiplies on a GPU, and why that; "" where it need not be said."""
    if precision == "w4a16":
        return "16-bit", "no FP8 products: FP8 has too few digits for 16-bit activations"
    units = units_for(device, products)
    wide = "float32" if refused.bfloat16 is not None else "bfloat16"
    capability = torch.cuda.get_device_capability(gpu_number(device))
    either = products == "auto" and refused.fp8 is None and capability in EITHER_FIRST
    measured = MEASURED.get(gpu_number(device), "FP8 and INT8 are not compared here yet, `sedialect doctor` does it")
    if units == "fp8":
        if shape is not None and (problem := fp8_shape_refusal(*shape)):
            return wide, f"no FP8 products: {problem}"
        return "FP8", measured if either else "asked for" if products == "fp8" else ""
    if units == "int8":
        by = "; torch._int_mm multiplies" if refused.triton_products is not None else ""
        why = "asked for" if products == "int8" else measured if either else f"no FP8 products: {refused.fp8}"
        return "INT8", why + by
    if products == "16bit":
        return wide, "asked for"
    if products == EXACT:
        return wide, "INT8 would round these codes too much"
    return wide, f"no FP8 products: {refused.fp8}"


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
    entry = (what, gpu_number(device))
    if entry not in _FAILED:
        try:
            if device.index in (None, torch.cuda.current_device()):
                return fast()
            with torch.cuda.device(device):  # Triton launches on the current one
                return fast()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not _is_refusal(error):
                raise
            lines = str(error).strip().splitlines() or [""]
            cause = f"{type(error).__name__}: {lines[0]}"
            _FAILED[entry] = f"{instead} for {what.removeprefix('the ')}, since that failed: {cause}"
            warnings.warn(
                f"{what} failed on {device} ({cause}); {instead} does its work from now on, several times slower",
                RuntimeWarning,
                stacklevel=2,
            )
    return slow()


def failed(what: str, device: torch.device) -> str | None:
    """What takes the place of `what` on this GPU, and why, where it has failed; None where it has not."""
    return _FAILED.get((what, gpu_number(device)))


def explain_memory(error: torch.OutOfMemoryError, what: str, count: int, remedy: str = SMALLER) -> torch.OutOfMemoryError:
    """An error of the same kind that says what was being made, how many bytes it takes, and what to do."""
    return torch.OutOfMemoryError(f"out of GPU memory while {what}, {count / 1e6:.0f} MB. {remedy}. {error}")


def _is_refusal(error: Exception) -> bool:
    """Whether Triton or CUDA could not compile, launch or run a thing: no C compiler, no ptxas, an unknown GPU, too few
    registers, a shape that cuBLAS refuses. All else is a mistake of ours."""
    if isinstance(error, TypeError | AttributeError | NotImplementedError):
        return False
    if isinstance(error, OSError | subprocess.SubprocessError) or _is_triton(type(error).__module__):
        return True
    if isinstance(error, ImportError):
        return _is_triton(error.name or "") or _raised_by_triton(error)
    return isinstance(error, RuntimeError) and (_raised_by_triton(error) or "CUDA" in str(error) or "CUBLAS" in str(error))


def _raised_by_triton(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _is_triton(trace.tb_frame.f_globals.get("__name__", ""))


def _is_triton(module: str) -> bool:
    return module.partition(".")[0] == "triton"
