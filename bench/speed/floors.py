"""Kernels alone, beside what this GPU can do at best: bytes it can move in a second, and operations it can do."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ...kernels import cuda, ops, reference
from ...kernels.guidance import UNGUIDED, RowGuidance
from ...kernels.transform import InputTransform
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.linear import SeDialectLinear
from .arms import FixedRows
from .shapes import Layers
from .timing import rotation, time_calls
from .trials import EAGER, Numbers, Trials

DEVICE, COPY = "device", "copy"
BF16_PEAK, FP8_PEAK = "BF16 product", "FP8 product"
CAST = "plain FP8 cast"
ALL = "w4a4, B=16, all dialects"  # takes seconds to compile, and is no default
PASS = "GELU before it"
GIGABYTE, PEAK_SIZE = 2**30, 8192
QUICK_BYTES, QUICK_SIZE = 2**22, 256
SAMPLE = 128
E4M3 = torch.float8_e4m3fn


def measure_kernels(trials: Trials, layers: Iterable[Layers], quick: bool) -> None:
    """What the device can do, then encoding, decoding and the product of these layers' shapes."""
    size, moved = (QUICK_SIZE, QUICK_BYTES) if quick else (PEAK_SIZE, GIGABYTE)
    device = trials.device
    trials.run(DEVICE, COPY, EAGER, partial(_copy, moved, device))
    trials.run(DEVICE, BF16_PEAK, EAGER, partial(bf16_product, size, size, size, device))
    for fast in (False, True):
        name = FP8_PEAK + ", fast accumulation" * fast
        trials.run(DEVICE, name, EAGER, partial(fp8_product, size, size, size, device, fast))
    layers = list(layers)
    for rows, width in dict.fromkeys((layer.rows, layer.width_in) for layer in layers):
        _encodings(trials, rows, width)
    for width_in, width_out in dict.fromkeys((layer.width_in, layer.width_out) for layer in layers):
        _decodings(trials, width_in, width_out)
    for rows, width_in, width_out in dict.fromkeys((layer.rows, layer.width_in, layer.width_out) for layer in layers):
        _products(trials, rows, width_in, width_out)
    rows, width = layers[0].rows, layers[0].width_in
    trials.run(f"encode {rows} x {width}", ALL, EAGER, partial(_encode, rows, width, device, (16, 4, "all")))


def _copy(count: int, device: torch.device) -> Numbers:
    """Device to device; read and written bytes count."""
    sources = [torch.randint(256, (count,), dtype=torch.uint8, device=device) for _ in range(rotation(count, device))]
    target = torch.empty_like(sources[0])
    return _with_bytes(time_calls(target.copy_, sources, device).numbers(), 2 * count)


def bf16_product(rows: int, width_in: int, width_out: int, device: torch.device) -> Numbers:
    """[M, K] @ [K, N] in bfloat16, random numbers."""
    weight = _random(width_out, width_in, device)
    inputs = _inputs(rows, width_in, device)
    timing = time_calls(lambda x: nn.functional.linear(x, weight), inputs, device)
    return _with_operations(timing.numbers(), 2 * rows * width_in * width_out)


def fp8_product(rows: int, width_in: int, width_out: int, device: torch.device, fast: bool) -> Numbers:
    """The same in E4M3 with a float32 scale for each row and column, bfloat16 out."""
    weight = _random(width_out, width_in, device).to(E4M3).T
    inputs = [x.to(E4M3) for x in _inputs(rows, width_in, device)]
    scales = torch.ones(rows, 1, device=device), torch.ones(1, width_out, device=device)
    product = _scaled_product(weight, *scales, fast)
    return _with_operations(time_calls(product, inputs, device).numbers(), 2 * rows * width_in * width_out)


def _scaled_product(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, fast: bool) -> Callable[[Any], Any]:
    kind: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": fast}
    return lambda x: torch._scaled_mm(x, weight, scale_a=left, scale_b=right, **kind)


def _encodings(trials: Trials, rows: int, width: int) -> None:
    """Ours, and the plain cast that any 8-bit path needs."""
    device, case = trials.device, f"encode {rows} x {width}"
    decomposed = RowGuidance(FixedRows(rows, 0.1, device).salient)
    equalized = InputTransform(torch.arange(width, device=device).remainder(7).sub(3).to(torch.int8))
    kinds: dict[str, tuple[Any, ...]] = {
        "w4a4, B=16": (16, 4, "max"),
        "w4a4, B=32": (32, 4, "max"),
        "w4a4, B=16 + 10% decomposed": (16, 4, "max", decomposed),
        "w4a8": (16, 8, "max"),
        "w4a4, B=16, equalized": (16, 4, "max", UNGUIDED, equalized),
        "w4a8, equalized": (16, 8, "max", UNGUIDED, equalized),
    }
    trials.run(case, CAST, EAGER, partial(_cast, rows, width, device))
    for name, kind in kinds.items():
        trials.run(case, name, EAGER, partial(_encode, rows, width, device, kind))
    trials.run(case, PASS, EAGER, partial(_gelu, rows, width, device))


def _encode(rows: int, width: int, device: torch.device, kind: tuple[Any, ...]) -> Numbers:
    """Operands in 8 bits of activations in 16."""
    tables = Formatbook.builtin().tables(device).operands
    timing = time_calls(lambda x: ops.encode(x, tables, *kind), _inputs(rows, width, device), device)
    salient = kind[3].salient if len(kind) > 3 else None
    return _with_bytes(timing.numbers(), (rows + (0 if salient is None else len(salient))) * width * 3)


def _cast(rows: int, width: int, device: torch.device) -> Numbers:
    """The fastest of a few launches of one kernel; on CPUs the reference of w4a8."""
    inputs, moved = _inputs(rows, width, device), rows * width * 3
    if device.type == "cpu":
        return _with_bytes(time_calls(reference.e4m3_rows, inputs, device).numbers(), moved)
    from .cast_kernel import WARPS, cast

    timings = [(time_calls(partial(cast, warps=warps), inputs, device), warps) for warps in WARPS]
    timing, warps = min(timings)
    return _with_bytes(timing.numbers(), moved) | {"warps": warps}


def _gelu(rows: int, width: int, device: torch.device) -> Numbers:
    """What stands before encoding, one read and one write in 16 bit: all that encoding in the same kernel could save."""
    timing = time_calls(partial(nn.functional.gelu, approximate="tanh"), _inputs(rows, width, device), device)
    return _with_bytes(timing.numbers(), 4 * rows * width)


def _decodings(trials: Trials, width_in: int, width_out: int) -> None:
    """Weights to FP8, and to bfloat16 as `w4a16` and GPUs without FP8 need them."""
    case, shape = f"decode {width_in} x {width_out}", (width_in, width_out, trials.device)
    for block_size in (16, 32):
        for dtype, name in ((E4M3, "FP8"), (torch.bfloat16, "BF16")):
            trials.run(case, f"B={block_size} to {name}", EAGER, partial(_decode, *shape, block_size, dtype))


def _decode(width_in: int, width_out: int, device: torch.device, block_size: int, dtype: torch.dtype) -> Numbers:
    layer = _layer(width_in, width_out, device, block_size)
    stored = reference.EncodedRows(layer.weight, layer.weight_meta, layer.row_scale)
    tables, packed = Formatbook.builtin().tables(device), sum(part.nbytes for part in stored)
    copies = [reference.EncodedRows(*(part.detach().clone() for part in stored)) for _ in range(rotation(packed, device))]

    def decode(one: reference.EncodedRows) -> Any:
        if device.type == "cpu":
            return reference.decode_rows(one.codes, one.meta, tables).to(dtype)
        return cuda.decode(one, tables, dtype, scaled=dtype != E4M3)

    return _with_bytes(time_calls(decode, copies, device).numbers(), packed + width_in * width_out * dtype.itemsize)


def _products(trials: Trials, rows: int, width_in: int, width_out: int) -> None:
    """What ours does after encoding, decoding included, beside plain products of the same shape."""
    device, case = trials.device, f"product {rows} x {width_in} x {width_out}"
    shape = (rows, width_in, width_out, device)
    trials.run(case, BF16_PEAK, EAGER, partial(bf16_product, *shape))
    for fast in (False, True):
        name = FP8_PEAK + ", fast accumulation" * fast
        trials.run(case, name, EAGER, partial(fp8_product, *shape, fast))
    for bits in (4, 8):
        name = f"w4a{bits}: decoding and product"
        trials.run(case, name, EAGER, partial(our_product, *shape, bits))


def our_product(rows: int, width_in: int, width_out: int, device: torch.device, bits: int) -> Numbers:
    """`ops.matmul` on encoded inputs. Its error is that of the product alone: against float64 of the same operands.

    Beside it, the error of BF16's own product of these numbers: they are exact in bfloat16, before the row scales.
    """
    layer = _layer(width_in, width_out, device, 16)
    tables = Formatbook.builtin().tables(device).operands
    weight = reference.EncodedRows(layer.weight, layer.weight_meta, layer.row_scale)
    inputs = [ops.encode(x, tables, 16, bits, "max") for x in _inputs(rows, width_in, device)]

    def product(x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return ops.matmul(*x, weight, None, tables, torch.bfloat16)

    timing = time_calls(product, inputs, device)
    operand, scale = inputs[0]
    sample = torch.arange(min(SAMPLE, rows), device=device) * rows // min(SAMPLE, rows)
    left = operand.view(torch.uint8)[sample].view(operand.dtype).double()  # torch indexes no FP8 tensors
    right = layer.encoded.dequantize(torch.float32).double() / layer.row_scale.double().unsqueeze(1)
    exact = left @ right.T
    ours = product(inputs[0])[sample].double() / scale[sample].double().unsqueeze(1) / layer.row_scale.double()
    plain = nn.functional.linear(left.bfloat16(), right.bfloat16()).double()
    errors = {"error": _distance(ours, exact), "error of BF16": _distance(plain, exact)}
    return _with_operations(timing.numbers(), 2 * rows * width_in * width_out) | errors


def _layer(width_in: int, width_out: int, device: torch.device, block_size: int) -> SeDialectLinear:
    torch.manual_seed(0)
    linear = nn.Linear(width_in, width_out, bias=False, device=device, dtype=torch.bfloat16)
    return SeDialectLinear.from_linear(linear, block_size=block_size)


def _inputs(rows: int, width: int, device: torch.device) -> list[torch.Tensor]:
    return [_random(rows, width, device) for _ in range(rotation(2 * rows * width, device))]


def _random(rows: int, width: int, device: torch.device) -> torch.Tensor:
    return torch.randn(rows, width, device=device, dtype=torch.bfloat16)


def _distance(y: torch.Tensor, exact: torch.Tensor) -> float:
    return float((y - exact).norm() / exact.norm())


def _with_bytes(numbers: Numbers, moved: int) -> Numbers:
    return numbers | {"bytes": moved, "GB/s": moved / numbers["ms"] / 1e6}


def _with_operations(numbers: Numbers, count: int) -> Numbers:
    return numbers | {"operations": count, "TFLOP/s": count / numbers["ms"] / 1e9}
