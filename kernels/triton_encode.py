"""Activations to operands on GPUs: `reference.quantize_rows` and `reference.e4m3_rows`, bit for bit.

A program reads a few rows, keeps them in registers, in pieces, finds their maxima, and encodes them: memory is passed once.
What an element costs is one load from a 2 KB table, `DialectTables.choices`. Residual rows are a second launch, for they
need the first one's result.

Tiles are [BLOCK, PIECE, ROWS], the elements of a block first: that is the order in which Triton 3.6 lays out what it loads
from scattered addresses (`triton_rows.look_up` has the later versions).
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from .guidance import UNGUIDED, RowGuidance
from .reference import SHARED_DIALECT, SHARED_MASK
from .tables import ERROR_BIAS, DialectTables
from .transform import UNCHANGED, InputTransform
from .triton_rows import lift_of, load_piece, look_up, source_rows, whole

# Fraction bits to keep of numbers below 32 so that their integer parts are right: a type's mantissa bits, if there is room.
Q_SHIFTS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 0}
PIECES = 10  # of a row at most, as far as 16 warps go: what a thread keeps in registers
ELEMENTS_OF_WARP = 256  # 8 of each thread: one 16-byte load in 16 bit


@triton.jit
def encode_kernel(
    x_ptr,  # [M, K] float, contiguous
    operand_ptr,  # [M + E, K] float8_e4m3fn, int8, bfloat16 or float32
    scale_ptr,  # float32 [M + E]
    choices_ptr,  # int64 [8, 32], DialectTables.choices
    errors_ptr,  # int64 [8, 32], DialectTables.packed_errors; read if ALL
    salient_ptr,  # int32 [E], rows of x, -1 for none; read if RESIDUAL
    group_ptr,  # int32 [M], -1 for none; read if GROUPS
    choice_ptr,  # uint8 [G, K / BLOCK], allowed shapes as bits, or SHARED plus a dialect; read if GROUPS
    protected_ptr,  # bool [1]; read if PROTECTED
    equalizer_ptr,  # int8 [K]; read if EQUALIZED
    rows,  # how many to encode: M, or E if RESIDUAL
    first,  # row of the operands where they go: 0, or M if RESIDUAL
    K: tl.constexpr,
    BLOCK: tl.constexpr,  # elements of a block
    PIECE: tl.constexpr,  # blocks of a row that a program holds at a time, a power of two
    ROWS: tl.constexpr,  # rows of a program, a power of two
    SHAPES: tl.constexpr,  # of each maximum, 1..4
    BIAS: tl.constexpr,  # tables.ERROR_BIAS
    LIFT: tl.constexpr,  # operands are magnitudes times 2^LIFT, see lift_of
    Q_SHIFT: tl.constexpr,  # fraction bits to keep of the lifted numbers to know their integers, 0 for float32
    ALL: tl.constexpr,  # candidates: every dialect
    RESIDUAL: tl.constexpr,  # encode x[salient] - operand[salient] * scale[salient]
    GROUPS: tl.constexpr,
    SHARED: tl.constexpr,  # reference.SHARED_DIALECT
    SHARED_MASK: tl.constexpr,
    PROTECTED: tl.constexpr,  # leave everything to e4m3_kernel where the flag is set
    EQUALIZED: tl.constexpr,  # multiply column k by 2^-equalizer[k]
    ROTATION: tl.constexpr,  # size of the Hadamard blocks, or 0
):
    """Rows to dialects; a program takes ROWS of them."""
    if PROTECTED:  # noqa: SIM102  (Triton would look at both sides of an `and`)
        if tl.load(protected_ptr) != 0:
            return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    block = tl.arange(0, PIECE)
    column = tl.arange(0, BLOCK)[:, None, None] + block[None, :, None] * BLOCK
    source, error_scale, read = source_rows(row, valid, salient_ptr, scale_ptr, RESIDUAL)
    from_x = x_ptr + source[None, None, :] * K
    from_operand = operand_ptr + source[None, None, :] * K
    here = valid[None, None, :]
    there = read[None, None, :]

    pieces = ()
    top = tl.zeros((BLOCK, PIECE, ROWS), tl.float32)
    for start in tl.static_range(0, K, PIECE * BLOCK):
        piece = load_piece(
            from_x, from_operand, equalizer_ptr, error_scale, column, start, there, K, RESIDUAL, EQUALIZED, ROTATION
        )
        top = tl.maximum(top, tl.abs(piece.to(tl.float32)), propagate_nan=tl.PropagateNan.ALL)
        pieces = pieces + (piece,)  # noqa: RUF005  (Triton knows no unpacking)
    finite, scale, inverse = _row_scale(top)
    target = first + row.to(tl.int64)
    tl.store(scale_ptr + target, scale * (1.0 / (1 << LIFT)), mask=valid)

    if GROUPS:
        group = tl.load(group_ptr + row, mask=valid, other=-1)
        from_choice = choice_ptr + group.to(tl.int64)[None, :] * (K // BLOCK)
    for start in tl.static_range(0, K, PIECE * BLOCK):
        x = pieces[start // (PIECE * BLOCK)].to(tl.float32)
        number = x * inverse[None, None, :]  # may be NaN or Inf: whatever becomes of it, its unit is 0 below
        most = tl.max(tl.abs(number), axis=0)
        delta = tl.minimum(tl.maximum(130 - (most.to(tl.int32, bitcast=True) >> 23), 0), 13)
        lift = ((delta + 128) << 23).to(tl.float32, bitcast=True)
        q = _integers(tl.abs(number) * lift[None, :, :], Q_SHIFT)
        allowed = 0xFF
        if GROUPS:
            known = (group >= 0)[None, :] & (block * BLOCK + start < K)[:, None]
            allowed = tl.load(from_choice + (start // BLOCK + block)[:, None], mask=known, other=0xFF).to(tl.int32)
        if ALL:
            maximum, shape = _best_of_all(q, allowed, errors_ptr, SHAPES, GROUPS)
        else:
            highest = (most * lift).to(tl.int32)
            maximum = 15 - tl.minimum(tl.maximum((highest + 1) >> 1, 8), 15)
        if GROUPS:
            maximum = tl.where((allowed & SHARED_MASK) == SHARED, (allowed & 31) // SHAPES, maximum)
        choices = look_up(choices_ptr, q + (maximum << 5)[None, :, :])
        if not ALL:
            shape = _best_of_maximum(tl.sum(choices, axis=0), allowed, BLOCK * BIAS, GROUPS)
        if GROUPS:
            shape = tl.where((allowed & SHARED_MASK) == SHARED, (allowed & 31) % SHAPES, shape)
        half_units = ((choices >> 32).to(tl.int32) >> (16 + 4 * shape)[None, :, :]) & 15
        unit = tl.where(finite[None, :], (127 + LIFT - delta) << 23, 0)
        signed = ((number.to(tl.int32, bitcast=True) & -0x80000000) | unit[None, :, :]).to(tl.float32, bitcast=True)
        value = half_units.to(tl.float32) * signed
        if operand_ptr.dtype.element_ty == tl.int8:
            value = whole(value)
        to = operand_ptr + target[None, None, :] * K + (column + start)
        inside = here if start + PIECE * BLOCK <= K else here & (column + start < K)
        tl.store(to, value.to(operand_ptr.dtype.element_ty), mask=inside)


@triton.jit
def e4m3_kernel(
    x_ptr,  # [M, K] float, contiguous
    operand_ptr,  # [M + E, K] float8_e4m3fn, int8, bfloat16 or float32
    scale_ptr,  # float32 [M + E]
    salient_ptr,  # int32 [E], rows of x, -1 for none; read if RESIDUAL
    protected_ptr,  # bool [1]; read if PROTECTED
    equalizer_ptr,  # int8 [K]; read if EQUALIZED
    rows,  # how many to encode: M, or E if RESIDUAL
    first,  # row of the operands where they go: 0, or M if RESIDUAL
    K: tl.constexpr,
    PIECE: tl.constexpr,  # parts of a row that a program holds at a time, a power of two
    PART: tl.constexpr,  # elements of a part
    ROWS: tl.constexpr,  # rows of a program, a power of two
    RESIDUAL: tl.constexpr,  # encode x[salient] - operand[salient] * scale[salient]
    PROTECTED: tl.constexpr,  # do nothing unless the flag is set
    EQUALIZED: tl.constexpr,  # multiply column k by 2^-equalizer[k]
    ROTATION: tl.constexpr,  # size of the Hadamard blocks, or 0
):
    """Rows to E4M3, or to integers, under their maxima; a program takes ROWS of them."""
    if PROTECTED:  # noqa: SIM102
        if tl.load(protected_ptr) == 0:
            return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    column = tl.arange(0, PART)[:, None, None] + tl.arange(0, PIECE)[None, :, None] * PART
    source, error_scale, read = source_rows(row, valid, salient_ptr, scale_ptr, RESIDUAL)
    from_x = x_ptr + source[None, None, :] * K
    from_operand = operand_ptr + source[None, None, :] * K
    here = valid[None, None, :]
    there = read[None, None, :]

    pieces = ()
    top = tl.zeros((PART, PIECE, ROWS), tl.float32)
    for start in tl.static_range(0, K, PIECE * PART):
        piece = load_piece(
            from_x, from_operand, equalizer_ptr, error_scale, column, start, there, K, RESIDUAL, EQUALIZED, ROTATION
        )
        top = tl.maximum(top, tl.abs(piece.to(tl.float32)), propagate_nan=tl.PropagateNan.ALL)
        pieces = pieces + (piece,)  # noqa: RUF005
    bits = _row_top(top)
    highest = bits.to(tl.float32, bitcast=True)
    finite = bits < 0x7F800000
    INTEGERS: tl.constexpr = operand_ptr.dtype.element_ty == tl.int8
    highest *= 0.007874015748031496 if INTEGERS else 0.002232142857142857  # 1 / 127 or 1 / 448
    scale = tl.maximum(highest, 1.1754943508222875e-38)
    scale = tl.where(bits == 0, 1.0, scale)
    inverse = tl.div_rn(1.0, scale)
    target = first + row.to(tl.int64)
    tl.store(scale_ptr + target, tl.where(finite, scale, float("nan")), mask=valid)
    for start in tl.static_range(0, K, PIECE * PART):
        x = pieces[start // (PIECE * PART)].to(tl.float32)
        value = tl.where(finite[None, None, :], x * inverse[None, None, :], 0.0)
        to = operand_ptr + target[None, None, :] * K + (column + start)
        if INTEGERS:
            value = whole(value)
        elif operand_ptr.dtype.element_ty != tl.float8e4nv:
            value = _round_to_e4m3(value)
        inside = here if start + PIECE * PART <= K else here & (column + start < K)
        tl.store(to, value.to(operand_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _round_to_e4m3(value):
    """The nearest number of E4M3 to each of at most 448, in float32, ties to even: for GPUs that have no such type."""
    bits = value.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    magnitude = (tl.abs(value) + 16384.0) - 16384.0  # below 2^-6, multiples of 2^-9
    small = (magnitude.to(tl.int32, bitcast=True) | (bits & -0x80000000)).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(value) < 0.015625, small, normal)


@triton.jit
def _row_top(top):
    """Bits of the largest magnitude of each row, int32 [ROWS]; NaN is above Inf, which is above every number."""
    bits = top.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(tl.max(bits, axis=0), axis=0)


@triton.jit
def _row_scale(top):
    """Whether each row is finite, its scale as reference.activation_scale has it, and 1 / scale."""
    bits = _row_top(top)
    finite = bits < 0x7F800000
    exponent = tl.maximum((bits >> 23) - 3, 1)
    exponent = tl.where(bits == 0, 127, exponent)
    scale = tl.where(finite, (exponent << 23).to(tl.float32, bitcast=True), float("nan"))
    return finite, scale, ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _integers(lifted, Q_SHIFT: tl.constexpr):
    """Integer parts of numbers in [0, 32), int32.

    Q_SHIFT > 0, for numbers of at most Q_SHIFT mantissa bits: adding 2^(23 - Q_SHIFT) leaves the integer part in known bits,
    and cannot round up to an integer, since numbers from 1/2 on keep all their bits. Converting is several times slower.
    """
    if Q_SHIFT == 0:
        return lifted.to(tl.int32) & 31  # only numbers that are not finite have other bits
    magic: tl.constexpr = 1 << (23 - Q_SHIFT)
    return ((lifted + magic).to(tl.int32, bitcast=True) >> Q_SHIFT) & 31


@triton.jit
def _best_of_maximum(sums, allowed, none, GROUPS: tl.constexpr):
    """The shape with the least error; ties to the lowest. `none` is what the sum is for no difference from shape 0."""
    low = sums.to(tl.int32)
    first = low & 0xFFFF
    second = (low >> 16) & 0xFFFF
    third = (sums >> 32).to(tl.int32) & 0xFFFF
    least = tl.zeros_like(first) + none
    if GROUPS:  # above every sum
        least = tl.where((allowed & 1) == 0, 1 << 16, least)
        first = tl.where((allowed & 2) == 0, 1 << 16, first)
        second = tl.where((allowed & 4) == 0, 1 << 16, second)
        third = tl.where((allowed & 8) == 0, 1 << 16, third)
    shape = tl.where(first < least, 1, 0)
    least = tl.minimum(first, least)
    shape = tl.where(second < least, 2, shape)
    least = tl.minimum(second, least)
    return tl.where(third < least, 3, shape)


@triton.jit
def _best_of_all(q, allowed, errors_ptr, SHAPES: tl.constexpr, GROUPS: tl.constexpr):
    """Row of the maximum and shape of the dialect with the least error; ties to the lowest id."""
    least = tl.zeros((q.shape[1], q.shape[2]), tl.int32) + (1 << 16)
    best = tl.zeros_like(least)
    for maximum in tl.static_range(8):
        sums = tl.sum(look_up(errors_ptr, q + maximum * 32), axis=0)
        for shape in tl.static_range(SHAPES):
            error = (sums >> (16 * shape)).to(tl.int32) & 0xFFFF
            if GROUPS:
                error = tl.where((allowed & (1 << shape)) == 0, 1 << 16, error)
            best = tl.where(error < least, maximum * 4 + shape, best)
            least = tl.minimum(error, least)
    return best >> 2, best & 3


def encode(
    x: torch.Tensor,
    tables: DialectTables,
    block_size: int,
    bits: int,
    candidates: str,
    dtype: torch.dtype,
    guidance: RowGuidance = UNGUIDED,
    transform: InputTransform = UNCHANGED,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands [M + E, K] in `dtype` and row scales, float32 [M + E], as `activations.encode_activations` has them.

    For 4 or 8 bits. Dialects are lifted as `lift_of` says, and their row scales lowered by as much.
    """
    x = x.contiguous()
    salient, group, choice, protected = (None if one is None else one.contiguous() for one in guidance)
    equalizer = None if transform.equalizer is None else transform.equalizer.contiguous()
    rotation = transform.rotation
    rows, width = x.shape
    extra = 0 if salient is None else salient.shape[0]
    operand = torch.empty(rows + extra, width, dtype=dtype, device=x.device)
    scale = torch.empty(rows + extra, dtype=torch.float32, device=x.device)
    grouped = group is not None and choice is not None
    for residual, count, first in ((False, rows, 0), (True, extra, rows)):
        if count == 0 or width == 0:
            continue
        span, tile_rows, warps = geometry(width)
        settings: dict[str, Any] = {
            "ROWS": tile_rows,
            "RESIDUAL": residual,
            "EQUALIZED": equalizer is not None,
            "ROTATION": rotation,
            "num_warps": warps,
        }
        grid = (triton.cdiv(count, tile_rows),)
        if bits == 4:
            arrays = (x, operand, scale, tables.choices, tables.packed_errors, salient, group, choice, protected, equalizer)
            encode_kernel[grid](
                *arrays,
                count,
                first,
                width,
                BLOCK=block_size,
                PIECE=span // block_size,
                SHAPES=tables.shapes,
                BIAS=ERROR_BIAS,
                LIFT=lift_of(dtype),
                Q_SHIFT=0 if residual or rotation else Q_SHIFTS[x.dtype],
                ALL=candidates == "all",
                GROUPS=grouped and not residual,
                SHARED=SHARED_DIALECT,
                SHARED_MASK=SHARED_MASK,
                PROTECTED=protected is not None,
                # The specification rounds every product; all are exact but residuals, and equalized numbers that underflow.
                enable_fp_fusion=not residual and not (rotation and equalizer is not None),
                **settings,
            )
        if bits == 8 or protected is not None:
            arrays = (x, operand, scale, salient, protected, equalizer)
            part = min(span, 128)
            e4m3_kernel[grid](
                *arrays,
                count,
                first,
                width,
                PIECE=span // part,
                PART=part,
                PROTECTED=bits == 4,
                enable_fp_fusion=False,
                **settings,
            )
    return operand, scale


@cache
def geometry(width: int) -> tuple[int, int, int]:
    """Elements of a piece, rows of a program and its warps, for rows of `width` elements.

    A thread holds 8 elements of a piece, and all pieces of its rows at once: so many that most loads are under way together,
    so few that they stay in registers. Among pieces that fit, the ones that reach least past the end.
    """
    tile = next((tile for tile in (1024, 2048) if width <= PIECES * tile), 4096)
    spans = [span for span in (tile, tile // 2, tile // 4) if width <= PIECES * span] or [tile]
    span = min(spans, key=lambda span: (triton.cdiv(width, span) * span, -span))
    return span, tile // span, tile // ELEMENTS_OF_WARP
