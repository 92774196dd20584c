"""FP8 or INT8 units, on GPUs that have both at rates that depend on the card: measured once, and kept on disk.

The file is `products.json` in the cache folder, by the GPU's name and the versions of torch and Triton.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from ...kernels import capabilities, cuda, ops
from ...kernels.reference import EncodedRows
from ...kernels.transform import InputTransform
from ..environment import package_version
from ..errors import InputError, first_line
from ..formatbook import Formatbook
from ..storage.atomic import write_text
from ..storage.cache import cache_folder
from ..storage.reading import read_object

UNITS = ("fp8", "int8")
ROWS, WIDTH, OUTPUTS = 8192, 3072, 3072  # of the layer that is measured
WARM_UP, ROUNDS = 3, 15


def compare_units(device: torch.device | str, products: str = "auto") -> str | None:
    """See to it that "auto" knows the faster units of a GPU that has both at unlike rates; what was found, in words.

    Nothing is measured on other devices, nor while a graph is traced or captured. None where nothing is known.

    Args:
        products: the setting; only for "auto" it matters.
    """
    device = torch.device(device)
    if device.type in ("cpu", "meta") and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if products != "auto" or not _is_open(device):
        return None
    number = capabilities.gpu_number(device)
    if number not in capabilities.FASTER and not _traces():
        found, note = _known(device)
        if found is not None:
            told = ", ".join(f"{name.upper()} {time:.2f} ms" for name, time in found.items())
            capabilities.MEASURED[number] = f"measured for {ROWS} x {WIDTH} x {OUTPUTS}: {told}{note}"
            capabilities.FASTER[number] = min(found, key=lambda name: found[name])
        else:
            capabilities.MEASURED[number] = note
            capabilities.FASTER[number] = UNITS[0]
    return capabilities.MEASURED.get(number)


def measured_file() -> Path:
    """Where times are kept."""
    return cache_folder("products") / "products.json"


def _is_open(device: torch.device) -> bool:
    """Whether the GPU may use either units, and only a measurement can tell which."""
    if device.type != "cuda":
        return False
    refused = capabilities.refusals(device)
    usable = refused.device is None and refused.fp8 is None and refused.int8 is None
    return usable and torch.cuda.get_device_capability(device) in capabilities.EITHER_FIRST


def _traces() -> bool:
    """Whether a compiler or a CUDA graph is looking, or tensors are fake."""
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def _known(device: torch.device) -> tuple[dict[str, float] | None, str]:
    """Milliseconds of each units, from the file or measured now, and what else there is to say."""
    key = "; ".join(
        (torch.cuda.get_device_name(device), f"torch {torch.__version__}", f"triton {package_version('triton')}")
    )
    kept = _read()
    if key in kept:
        return kept[key], ""
    try:
        found = measure(device)
    except torch.OutOfMemoryError:
        return None, "FP8 and INT8 are not compared: too little GPU memory is free; FP8 runs"
    try:
        write_text(measured_file(), json.dumps({**kept, key: found}, indent=1) + "\n")
    except InputError as error:
        return found, f" (not kept: {first_line(error)})"
    return found, ""


def _read() -> dict[str, dict[str, float]]:
    """What was measured before; what cannot be read, or holds other than times, is measured again."""
    try:
        kept = read_object(measured_file())
    except InputError:
        return {}
    return {key: times for key, times in kept.items() if _are_times(times)}


def _are_times(times: object) -> bool:
    return (
        isinstance(times, dict)
        and set(times) == set(UNITS)
        and all(isinstance(time, float) and time > 0 for time in times.values())
    )


@torch.no_grad()
def measure(device: torch.device) -> dict[str, float]:
    """Milliseconds of a typical layer, encoding, decoding and product, by units; they take turns, and the median counts."""
    calls = {units: _layer(device, units) for units in UNITS}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {units: [] for units in UNITS}
    for _ in range(ROUNDS):
        for units, call in calls.items():
            times[units].append(_milliseconds(call, device))
    return {units: statistics.median(each) for units, each in times.items()}


def _layer(device: torch.device, units: str) -> Callable[[], torch.Tensor]:
    book = Formatbook.builtin()
    tables = book.tables(device)
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (
        torch.randn(rows, WIDTH, generator=generator, device=device, dtype=torch.bfloat16) for rows in (ROWS, OUTPUTS)
    )
    encoded = EncodedRows(*cuda.encode_weight(weight, tables, 16))
    transform = InputTransform(products=units)

    def call() -> torch.Tensor:
        operand, scale = ops.encode(x, tables.operands, 16, 4, "max", transform=transform)
        return ops.matmul(operand, scale, encoded, None, tables.operands, torch.bfloat16)

    return call


def _milliseconds(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end)
