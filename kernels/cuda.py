"""Encoding, decoding and products on GPUs: Triton kernels or plain torch as `dispatch` says, FP8 where the GPU has it.

A weight is decoded into a scratch buffer that lives for one product. It comes from torch's caching allocator, which hands
the same memory to the next layer on the same stream: one buffer a device and stream, as large as the largest layer, with
addresses that stay fixed under CUDA graphs.
"""

import torch
from torch.nn import functional

from . import integers, reference
from .activations import encode_activations
from .capabilities import fp8_shape_refusal, operand_dtype, refusals
from .dispatch import QUANTIZE_FIRST, attempt, explain_memory, run
from .guidance import UNGUIDED, RowGuidance
from .reference import LIFT, EncodedRows
from .tables import DialectTables
from .transform import UNCHANGED, InputTransform

FP8 = torch.float8_e4m3fn


def encode(
    x: torch.Tensor,
    tables: DialectTables,
    block_size: int,
    bits: int,
    candidates: str,
    guidance: RowGuidance = UNGUIDED,
    transform: InputTransform = UNCHANGED,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands of 4 or 8 bits in `operand_dtype` and their row scales; arguments as of `ops.encode`."""
    dtype = operand_dtype(x, bits, transform.products)
    transform = transform._replace(products="int8" if dtype == torch.int8 else "auto")

    def fast() -> tuple[torch.Tensor, torch.Tensor]:
        from . import triton_encode

        return triton_encode.encode(x, tables, block_size, bits, candidates, dtype, guidance, transform)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        operand, scale = encode_activations(x, tables, block_size, bits, candidates, guidance, transform)
        dialects = bits == 4 and not (guidance.protected is not None and bool(guidance.protected))
        lift = LIFT if dialects and dtype == FP8 else 0
        return operand.mul_(2.0**lift).to(dtype), scale.mul_(2.0**-lift)

    try:
        return run("encoding activations", x.device, fast, plain)
    except torch.OutOfMemoryError as error:
        raise explain_memory(error, f"encoding {x.shape[0]} rows of {x.shape[1]}", x.numel() * dtype.itemsize) from error


def decode(
    weight: EncodedRows, tables: DialectTables, dtype: torch.dtype, scaled: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight's operands [N, K] in `dtype`, and the row scales, float32 [N], that belong to them.

    Args:
        scaled: multiply the row scales in. Exact in bfloat16 for weights as `encode_weight_rows` makes them: magnitudes
            of 4 digits times multiples of 1/8 below 2.
    """

    codes, meta, scale = weight

    def fast() -> tuple[torch.Tensor, torch.Tensor]:
        from . import triton_decode

        return triton_decode.decode(weight, tables, dtype, scaled)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        if dtype == torch.int8:
            return integers.decode_rows(weight, tables)
        operand = reference.decode_rows(codes, meta, tables)
        if scaled:
            return operand.mul_(scale.unsqueeze(1)).to(dtype), scale
        lift = LIFT if dtype == FP8 else 0
        return operand.mul_(2.0**lift).to(dtype), scale * 2.0**-lift

    try:
        return run("decoding weights", codes.device, fast, plain)
    except torch.OutOfMemoryError as error:
        what = f"decoding a weight of {codes.shape[0]} x {codes.shape[1] * 2} for its product"
        raise explain_memory(error, what, codes.numel() * 2 * dtype.itemsize) from error


def multiply(
    operand: torch.Tensor,
    row_scale: torch.Tensor | None,
    encoded: EncodedRows,
    bias: torch.Tensor | None,
    tables: DialectTables,
    dtype: torch.dtype,
    salient: torch.Tensor | None,
) -> torch.Tensor:
    """What `ops.matmul` gives, of an encoded weight."""
    outputs = encoded.codes.shape[0]
    if operand.shape[0] == 0:  # not every product takes that
        return operand.new_empty(0, outputs, dtype=dtype)
    int8 = operand.dtype == torch.int8
    fp8 = operand.dtype == FP8 and fp8_shape_refusal(outputs, operand.shape[1]) is None
    if not fp8 and operand.dtype == FP8:
        operand = operand.to(torch.bfloat16)  # exact
    weight, scale = decode(encoded, tables, operand.dtype, scaled=not (fp8 or int8))

    def product(operand: torch.Tensor, row_scale: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        if int8 and row_scale is not None:  # operands of 8 bits always have row scales
            return int8_product(operand, row_scale, weight, scale, bias, dtype)
        if fp8 and row_scale is not None:
            return scaled_product(operand, row_scale, weight, scale, bias)
        return float_product(operand, row_scale, weight, bias)

    try:
        if salient is None or not len(salient):
            return product(operand, row_scale, bias).to(dtype)
        rows = operand.shape[0] - len(salient)
        y = product(operand[:rows], None if row_scale is None else row_scale[:rows], bias)
        # Copied, for the product wants scales that begin at a multiple of 16 bytes.
        extra_scale = None if row_scale is None else row_scale[rows:].clone()
        return add_rows(y, product(operand[rows:], extra_scale, None), salient).to(dtype)
    except torch.OutOfMemoryError as error:
        what = f"multiplying {operand.shape[0]} rows with a weight of {outputs} x {operand.shape[1]}"
        raise explain_memory(error, what, operand.shape[0] * outputs * dtype.itemsize) from error


def scaled_product(
    operand: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """`fp8_product`, or that of the same numbers in bfloat16 for shapes that the installed cuBLAS refuses.

    Some do, in some versions (pytorch/ao issue 4582: CUDA 12.9, long sums of few rows). No number changes, for operands are
    exact in bfloat16, and so are weights with their row scales.
    """

    def wide() -> torch.Tensor:
        scaled = weight.float().mul_(scale.unsqueeze(1)).to(torch.bfloat16)
        return float_product(operand.to(torch.bfloat16), row_scale, scaled, bias)

    what = f"the FP8 product of {operand.shape[0]} x {operand.shape[1]} x {weight.shape[0]}"
    arguments = (operand, row_scale, weight, scale, bias)
    return attempt(what, "bfloat16", operand.device, lambda: fp8_product(*arguments), wide)


def fp8_product(
    operand: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """(operand * row_scale) @ (weight * scale).T + bias, bfloat16 [M, N].

    With `use_fast_accum`, sums stay in the matrix units' own few bits. On one H100 (torch 2.11, 2026-11-22), 13824 encoded
    normal numbers a row: the sum's relative error against float64 is 2.5e-4 with it and 0 without, and after rounding to
    bfloat16 it is 1.68e-3 and 1.66e-3; 32,760 rows times 5120 outputs take 3.28 and 4.21 ms. Hence with it.

    Args:
        operand: float8_e4m3fn [M, K]; weight: float8_e4m3fn [N, K]; K and N multiples of 16.
        row_scale: float32 [M]; scale: float32 [N]; bias: [N] or None.
    """
    return torch._scaled_mm(
        operand,
        weight.t(),
        scale_a=row_scale.unsqueeze(1),
        scale_b=scale.unsqueeze(0),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def int8_product(
    operand: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(operand * row_scale) @ (weight * scale).T + bias, [M, N] in `dtype`, of int8 [M, K] and [N, K]; sums are exact."""

    def fast() -> torch.Tensor:
        from . import triton_int8

        return triton_int8.multiply(operand, row_scale, weight, scale, bias, dtype)

    def by_torch() -> torch.Tensor:
        rows, outputs = operand.shape[0], weight.shape[0]  # torch._int_mm wants more than 16 rows, and outputs by eights
        more = functional.pad(operand, (0, 0, 0, max(0, 17 - rows)))
        return scaled(torch._int_mm(more, functional.pad(weight, (0, 0, 0, -outputs % 8)).t())[:rows, :outputs].float())

    def scaled(product: torch.Tensor) -> torch.Tensor:
        wide = product.mul_(row_scale.unsqueeze(1)).mul_(scale)
        return (wide if bias is None else wide.add_(bias.float())).to(dtype)

    def plain() -> torch.Tensor:
        what = f"torch's INT8 product of {operand.shape[0]} x {operand.shape[1]} x {weight.shape[0]}"
        wide = lambda: scaled(operand.float() @ weight.float().t())  # noqa: E731
        return attempt(what, "float32", operand.device, by_torch, wide)

    if refusals(operand.device).triton_products is not None:
        return plain()
    return run("INT8 products", operand.device, fast, plain)


def float_product(
    operand: torch.Tensor, row_scale: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(operand * row_scale) @ weight.T + bias, [M, N] in the operand's dtype, which the weight [N, K] has too."""
    bias = None if bias is None else bias.to(operand.dtype)
    if row_scale is None:
        return functional.linear(operand, weight, bias)
    product = functional.linear(operand, weight)
    product.mul_(row_scale.unsqueeze(1))
    return product if bias is None else product.add_(bias)


def add_rows(product: torch.Tensor, extra: torch.Tensor, salient: torch.Tensor) -> torch.Tensor:
    """`product` [M, N], in place, with row e of `extra` [E, N] added to its row salient[e], each at most once; none for -1,
    whose row is zeros."""

    def fast() -> torch.Tensor:
        from . import triton_add

        return triton_add.add_rows(product, extra, salient)

    def plain() -> torch.Tensor:
        return product.index_add_(0, salient.clamp_min(0).long(), extra)

    return run("adding residual rows", product.device, fast, plain)


def encode_weight(weight: torch.Tensor, tables: DialectTables, block_size: int, candidates: str = "all") -> EncodedRows:
    """`reference.encode_weight_rows` of a finite weight [N, K], by the kernel where there is one."""

    def plain() -> EncodedRows:
        return reference.encode_weight_rows(weight, tables, block_size, candidates)

    def fast() -> EncodedRows:
        from . import triton_weights

        parts = triton_weights.encode_weight(weight, tables, block_size, reference.SCALE_MULTIPLIERS)
        return EncodedRows(*parts)

    if weight.device.type != "cuda" or candidates != "all":
        return plain()
    try:
        return run("encoding weights", weight.device, fast, plain)
    except torch.OutOfMemoryError as error:
        what = f"encoding a weight of {weight.shape[0]} x {weight.shape[1]}"
        raise explain_memory(error, what, weight.numel() // 2, QUANTIZE_FIRST) from error
