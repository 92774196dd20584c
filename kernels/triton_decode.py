"""4-bit weights to the operands of a matrix product on GPUs: `reference.decode_rows`, bit for bit."""

import torch
import triton
import triton.language as tl

from .reference import EncodedRows
from .tables import DialectTables
from .triton_rows import lift_of, whole

TILE_ELEMENTS = 2048  # of a program: one 16-byte store a thread


@triton.jit
def decode_kernel(
    codes_ptr,  # uint8 [N, K / 2], contiguous
    meta_ptr,  # uint8 [N, K / BLOCK], contiguous
    scale_ptr,  # float32 [N]
    ladders_ptr,  # int32 [D], DialectTables.ladders
    operand_ptr,  # [N, K] float8_e4m3fn, int8, bfloat16, float16 or float32
    lowered_ptr,  # float32 [N]: scale * 2^-LIFT; written unless SCALED
    rows,  # N
    blocks,  # N * K / BLOCK
    row_blocks,  # K / BLOCK
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,  # blocks of a program, a power of two
    LIFT: tl.constexpr,  # operands are magnitudes times 2^LIFT: 4 for E4M3, 3 for integers, else 0
    SCALED: tl.constexpr,  # multiply by the row scale, and round
):
    """A weight's blocks, TILE of them a program, wherever their rows end."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    valid = block < blocks
    byte = tl.arange(0, BLOCK // 2)[None, :]
    codes = tl.load(codes_ptr + block[:, None] * (BLOCK // 2) + byte, mask=valid[:, None], other=0).to(tl.int32)
    meta = tl.load(meta_ptr + block, mask=valid, other=0).to(tl.int32)
    ladder = tl.load(ladders_ptr + (meta & 31))
    unit = ((127 + LIFT - (meta >> 5)) << 23).to(tl.float32, bitcast=True)
    low = _values(codes & 15, ladder[:, None], unit[:, None])
    high = _values(codes >> 4, ladder[:, None], unit[:, None])
    values = tl.reshape(tl.join(low, high), (TILE, BLOCK))
    if SCALED:
        values = values * tl.load(scale_ptr + block // row_blocks, mask=valid, other=0.0)[:, None]
    else:
        inside = block < rows  # there are at least as many blocks as rows
        scale = tl.load(scale_ptr + block, mask=inside, other=0.0)
        tl.store(lowered_ptr + block, scale * (1.0 / (1 << LIFT)), mask=inside)
    to = operand_ptr + block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if operand_ptr.dtype.element_ty == tl.int8:
        values = whole(values)
    tl.store(to, values.to(operand_ptr.dtype.element_ty), mask=valid[:, None])


@triton.jit
def _values(code, ladder, unit):
    """Magnitude number (code & 7) of a ladder, in units, with the sign of bit 3."""
    magnitude = ((ladder >> ((code & 7) * 4)) & 15).to(tl.float32) * unit
    return tl.where(code > 7, -magnitude, magnitude)


def decode(
    weight: EncodedRows, tables: DialectTables, dtype: torch.dtype, scaled: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands [N, K] of a weight in `dtype`, and the row scales, float32 [N], that they are to be multiplied by.

    Args:
        scaled: multiply the row scales in, rounding to `dtype`; then they are returned as they came.
    """
    codes, meta, scale = weight
    rows, row_blocks = meta.shape
    block_size = codes.shape[1] * 2 // row_blocks
    operand = torch.empty(rows, codes.shape[1] * 2, dtype=dtype, device=codes.device)
    lowered = scale if scaled else torch.empty_like(scale)
    tile = TILE_ELEMENTS // block_size
    blocks = rows * row_blocks
    arrays = (codes.contiguous(), meta.contiguous(), scale, tables.ladders, operand, lowered)
    decode_kernel[(triton.cdiv(blocks, tile),)](
        *arrays,
        rows,
        blocks,
        row_blocks,
        BLOCK=block_size,
        TILE=tile,
        LIFT=lift_of(dtype),
        SCALED=scaled,
    )
    return operand, lowered
