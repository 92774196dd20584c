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

from .capabilities import fp8_shape_refusal, gpu_number, refusals, units_for

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
    for (what, number), outcome in list(_FAILED.items()):  # other threads may add to it
        if number == gpu_number(device) and "attention" not in what:
            kernels += f" (but {outcome})"
    product, note = "FP8", ""
    if precision == "w4a16":
        product, note = "16-bit", "FP8 has too few digits for 16-bit activations"
    elif units_for(device) == "int8":
        product, note = "INT8", refused.fp8 or "INT8 was measured to be faster here"
    elif refused.fp8 is not None:
        product, note = "bfloat16", refused.fp8
    elif shape is not None and (problem := fp8_shape_refusal(*shape)):
        product, note = "bfloat16", problem
    name = "reference" if refused.triton is not None else f"triton, {product} products"
    because = f" (no FP8 products: {note})" if note else ""
    return Implementation(name, f"{kernels}; {product} matrix products{because}")


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
