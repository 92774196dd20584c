"""docs/format.md in plain torch, the specification. Also the path on CPUs, hence vectorised and chunked.

Words: a *row* [K] is cut into blocks of B along K; `s` is its row scale; n = |x| / s lies in [0, 16); a block's exponent
offset `delta` lifts its maximum into [8, 16); q = floor(2 * n * 2^delta), 0..31, is the 5-bit intermediate. An *operand* is
sign * half_units[dialect][index] * 2^-delta: what a matrix product multiplies before the row scales are applied. It needs
4 bits of mantissa and 4 of exponent, so it is exact in float8_e4m3fn (times 2^4), bfloat16, float16 and float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional

from .tables import MAXIMA, Q_BITS, Q_VALUES, DialectTables

ACTIVATION_DELTA = 13  # the largest exponent offset whose operands are exact in E4M3
STORED_DELTA = 7  # the largest that three bits of a stored meta byte hold
META_DIALECT_BITS = 5
# Elements of a row chunk. CPUs: temporaries of a few MB stay in a core's cache (measured: 2x faster than 8 MB). GPUs: enough
# to fill the chip, with under 1 GB of temporaries.
CHUNK_ELEMENTS = {"cpu": 1 << 18}
GPU_CHUNK_ELEMENTS = 1 << 23
E4M3_MAX = 448.0
LIFT = 4  # operands in E4M3 are multiplied by 2^LIFT, and their row scales divided by it: its exponents reach less far down
SHARED_DIALECT = 0x80  # in a byte of `allowed`: its low five bits are the dialect to take, not shapes
SHARED_MASK = 0xE0
CODES = 16  # of one dialect: 8 magnitudes, then the same negated
# Row scales tried for a weight, as multiples of the power of two. None is below 1: that would clip the row's maximum.
# Against the power of two alone they lower the squared error of a Gaussian weight by 8 % (B=16); 64 multiples would by 9 %.
SCALE_MULTIPLIERS = tuple(1 + eighth / 8 for eighth in range(8))


class Assignment(NamedTuple):
    """What the encoder decided for rows cut into blocks: everything but the signs.

    q        int64 [M, K/B, B]  the 5-bit intermediate of every element
    delta    int64 [M, K/B]     exponent offset of every block
    dialect  int64 [M, K/B]     dialect id of every block
    """

    q: torch.Tensor
    delta: torch.Tensor
    dialect: torch.Tensor


class EncodedRows(NamedTuple):
    """Rows in the storage layout.

    codes  uint8 [M, K/2]            sign << 3 | index, element 2i in the low nibble of byte i
    meta   uint8 or uint16 [M, K/B]  delta << 5 | dialect; uint16 where delta may pass 7
    scale  float32 [M]
    """

    codes: torch.Tensor
    meta: torch.Tensor
    scale: torch.Tensor


def activation_scale(x: torch.Tensor) -> torch.Tensor:
    """Row scales of activations, float32 [M]: 2^(floor(log2(max |x|)) - 3) of each row of x [M, K].

    1 for a row of zeros, so that it encodes to zeros. NaN for a row that holds NaN or Inf, so that whatever is multiplied by
    it is not finite either. Never below 2^-126, the smallest normal number: GPUs may flush what lies below it.
    """
    top = x.abs().amax(dim=1).float()
    floor = (top.view(torch.int32) & 0x7F800000).view(torch.float32)  # clears the mantissa: the power of two below
    scale = (floor * 0.125).clamp_min(2.0**-126)
    return torch.where(top == 0, 1.0, torch.where(top.isfinite(), scale, torch.nan))


def encode_rows(x: torch.Tensor, tables: DialectTables, block_size: int, candidates: str = "max") -> EncodedRows:
    """Encode activations x [M, K] of any floating dtype into the storage layout, `candidates` being "max" or "all"."""
    scale = activation_scale(x)
    encoded = _empty_rows(x, block_size, torch.uint16)
    encoded.scale.copy_(scale)
    for rows in _row_chunks(x):
        magnitude, negative = _normalise(x[rows], scale[rows], block_size)
        assignment = assign(magnitude, tables, candidates, ACTIVATION_DELTA)
        encoded.codes[rows] = pack(assignment, negative, tables)
        encoded.meta[rows] = pack_meta(assignment).to(encoded.meta.dtype)
    return encoded


def quantize_rows(
    x: torch.Tensor, tables: DialectTables, block_size: int, candidates: str = "max", allowed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands, float32 [M, K], and row scales, float32 [M], of activations x [M, K].

    The same numbers as decoding what `encode_rows` gives, without packing and unpacking them.

    Args:
        allowed: uint8 [M, K/B], the shapes that each block may take, as bits, or SHARED_DIALECT plus the dialect that it
            must take: docs/semantics.md. None: all of them.
    """
    scale = activation_scale(x)
    value = tables.half_units.gather(1, tables.indices.long()).float().view(-1)  # [D * 32]: (dialect, q) -> magnitude
    operand = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for rows in _row_chunks(x):
        magnitude, _ = _normalise(x[rows], scale[rows], block_size)
        shapes = None if allowed is None else allowed[rows]
        q, delta, dialect = assign(magnitude, tables, candidates, ACTIVATION_DELTA, shapes)
        part = value[q.add_((dialect << Q_BITS).unsqueeze(2))].mul_(_power_of_two(-delta).unsqueeze(2))
        torch.copysign(part.view(-1, x.shape[1]), x[rows].float(), out=operand[rows])
    return operand, scale


def e4m3_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands, float32 [M, K], and row scales, float32 [M], of x rounded to float8_e4m3fn under its row maximum.

    Rows of zeros have scale 1; rows that hold NaN or Inf have scale NaN and operands of zero.
    """
    scaled, scale = rows_up_to(x, E4M3_MAX)
    return scaled.to(torch.float8_e4m3fn).float(), scale


def rows_up_to(x: torch.Tensor, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] with the maximum of each row at `most`, float32, not rounded yet, and row scales, float32 [M].

    Rows of zeros have scale 1; rows that hold NaN or Inf have scale NaN and are zeros.
    """
    top = x.abs().amax(dim=1).float()
    scale = (top * (1 / most)).clamp_min(2.0**-126)  # not divided: on GPUs torch would multiply anyway, CPUs would not
    scale = torch.where(top == 0, 1.0, torch.where(top.isfinite(), scale, torch.nan))
    return (x.float() * (1.0 / scale).unsqueeze(1)).nan_to_num_(0.0, 0.0, 0.0), scale


def assign(
    magnitude: torch.Tensor,
    tables: DialectTables,
    candidates: str,
    max_delta: int,
    allowed: torch.Tensor | None = None,
) -> Assignment:
    """Choose exponent offset and dialect of every block by the error tables, as activations do online.

    Args:
        magnitude: n = |x| / s, float32 [M, K/B, B], in [0, 16).
        candidates: "max", the shapes of the maximum nearest to the block's; or "all" dialects of the book.
        allowed: uint8 [M, K/B], bit s set where a block may take shape s, at least one bit in each; or SHARED_DIALECT plus a
            dialect. None: all shapes.
    """
    delta, q = _intermediate(magnitude, max_delta)
    if candidates == "max":
        dialect = _best_of_maximum(q, tables, allowed)
    else:
        cost = functional.one_hot(q, Q_VALUES).sum(2).float() @ tables.errors.float().T  # integers below 2^24: exact
        if allowed is not None:
            cost = cost.masked_fill(_refused(allowed, tables.shapes).repeat(1, 1, MAXIMA), torch.inf)
        dialect = cost.argmin(2)
    if allowed is not None:
        dialect = torch.where((allowed & SHARED_MASK) == SHARED_DIALECT, (allowed & ~SHARED_MASK).long(), dialect)
    return _clear_empty(q, delta, dialect)


def encode_weight_rows(
    weight: torch.Tensor,
    tables: DialectTables,
    block_size: int,
    candidates: str = "all",
    multipliers: tuple[float, ...] = SCALE_MULTIPLIERS,
) -> EncodedRows:
    """Encode a weight [N, K] offline: dialects by exact squared error, and of several row scales the best.

    Args:
        multipliers: row scales to try, as multiples of the activations' power of two; each a multiple of 1/8 from 1 on, so
            that the sums below are exact and every order of summing decides alike.
    """
    encoded = _empty_rows(weight, block_size, torch.uint8)
    for rows in _row_chunks(weight):
        chunk = weight[rows].float()
        base = activation_scale(chunk)
        tries = [_encode_weight_chunk(chunk, base, multiplier, tables, block_size, candidates) for multiplier in multipliers]
        for stored, best in zip(encoded, _keep_best_rows(tries), strict=True):
            stored[rows] = best
    return encoded


def decode_rows(
    codes: torch.Tensor, meta: torch.Tensor, tables: DialectTables, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Operands [M, K] from the storage layout; multiply by the row scales to get the values."""
    rows, blocks = meta.shape
    meta = meta.to(torch.int32)
    dialect, delta = meta & ((1 << META_DIALECT_BITS) - 1), meta >> META_DIALECT_BITS
    code = unpack(codes).view(rows, blocks, codes.shape[1] * 2 // blocks)
    signed = torch.cat([tables.half_units, -tables.half_units], dim=1).float().view(-1)  # [D * 16]: (dialect, code)
    operand = signed[code.add_((dialect * CODES).unsqueeze(2))].mul_(_power_of_two(-delta).unsqueeze(2))
    return operand.view(rows, codes.shape[1] * 2).to(dtype)


def scaled_matmul(a: torch.Tensor, a_scale: torch.Tensor | None, w: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
    """(a * a_scale) @ (w * w_scale).T, [M, N] in a.dtype, of operands a [M, K], w [N, K] and row scales [M], [N]."""
    product = functional.linear(a, w).mul_(w_scale)
    return product if a_scale is None else product.mul_(a_scale.unsqueeze(1))


def pack(assignment: Assignment, negative: torch.Tensor, tables: DialectTables) -> torch.Tensor:
    """Codes, uint8 [M, K/2]. The sign bit is kept only where the magnitude is not zero: one zero, not two."""
    index = tables.indices.view(-1)[assignment.q + (assignment.dialect << Q_BITS).unsqueeze(2)]
    code = index | ((negative & (index > 0)).to(torch.uint8) << 3)
    code = code.flatten(1)
    return code[:, 0::2] | (code[:, 1::2] << 4)


def unpack(codes: torch.Tensor) -> torch.Tensor:
    """Codes as int32 [M, K], 0..15, from bytes [M, K/2]."""
    wide = codes.to(torch.int32)
    return torch.stack((wide & 0x0F, wide >> 4), dim=2).view(codes.shape[0], codes.shape[1] * 2)


def pack_meta(assignment: Assignment) -> torch.Tensor:
    """delta << 5 | dialect, int64 [M, K/B]."""
    return (assignment.delta << META_DIALECT_BITS) | assignment.dialect


def _normalise(x: torch.Tensor, scale: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n = |x| / s, float32 [M, K/B, B], zeros in rows whose scale is NaN; and where x is negative."""
    blocks = x.float().reshape(x.shape[0], x.shape[1] // block_size, block_size)
    magnitude = blocks.abs().mul_((1.0 / scale).view(-1, 1, 1))  # s is a power of two: multiplying is exact
    return magnitude.nan_to_num_(0.0, 0.0, 0.0), blocks < 0


def _intermediate(magnitude: torch.Tensor, max_delta: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Exponent offsets [M, K/B] and the 5-bit intermediate q [M, K/B, B], both int64."""
    _, exponent = torch.frexp(magnitude.amax(2))  # floor(log2) + 1
    delta = (4 - exponent).clamp(0, max_delta)
    lifted = magnitude * _power_of_two(delta + 1).to(magnitude.dtype).unsqueeze(2)
    return delta.long(), lifted.long().clamp_(max=Q_VALUES - 1)


def _clear_empty(q: torch.Tensor, delta: torch.Tensor, dialect: torch.Tensor) -> Assignment:
    """Blocks that decode to zeros have meta 0, however small their numbers were: one way to write nothing."""
    empty = q.amax(2) == 0
    return Assignment(q, delta.masked_fill(empty, 0), dialect.masked_fill(empty, 0))


def _best_of_maximum(q: torch.Tensor, tables: DialectTables, allowed: torch.Tensor | None) -> torch.Tensor:
    """Among the shapes of the maximum nearest to the block's, the one with the least summed error; ties to the lowest."""
    row = _row_of_maximum(q)
    sums = tables.packed_errors.view(-1)[q + (row << Q_BITS).unsqueeze(2)].sum(2)
    shifts = 16 * torch.arange(tables.shapes, device=q.device)
    errors = (sums.unsqueeze(2) >> shifts) & 0xFFFF
    if allowed is not None:
        errors = errors.masked_fill(_refused(allowed, tables.shapes), 1 << 16)  # above every sum
    return row * tables.shapes + errors.argmin(2)


def _refused(allowed: torch.Tensor, shapes: int) -> torch.Tensor:
    """bool [M, K/B, S] of a bit mask [M, K/B]: the shapes that a block may not take."""
    return (allowed.unsqueeze(2) >> torch.arange(shapes, dtype=torch.uint8, device=allowed.device)) & 1 == 0


def _row_of_maximum(q: torch.Tensor) -> torch.Tensor:
    """15 - the maximum nearest to each block's, [M, K/B]: a row of the tables over maxima."""
    return 15 - ((q.amax(2) + 1) >> 1).clamp(8, 15)


def _encode_weight_chunk(
    weight: torch.Tensor,
    base: torch.Tensor,
    multiplier: float,
    tables: DialectTables,
    block_size: int,
    candidates: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, meta, scale and error of float32 rows under the row scales base * multiplier; decided in float64.

    Where the squared distance of w / base from multiplier * unit * value is wanted, w's own square is left out, which is the
    same for every choice, and the factor multiplier * unit, unit^2 at most; no number that is left is ever rounded.
    """
    rows = weight.shape[0]
    number = weight.double().abs().mul_(1.0 / base.double().unsqueeze(1)).view(rows, -1, block_size)
    delta, q = _intermediate(number / multiplier, STORED_DELTA)
    unit = _power_of_two(-delta).double()
    cost = _exact_cost(number / unit.unsqueeze(2), q, multiplier, tables)  # [rows, K/B, D]
    if candidates == "max":
        maximum_of = torch.arange(cost.shape[2], device=q.device) // tables.shapes
        cost = cost.masked_fill(maximum_of != _row_of_maximum(q).unsqueeze(2), torch.inf)
    least, dialect = cost.min(2)
    assignment = _clear_empty(q, delta, dialect)
    error = (least * unit**2).sum(1) * multiplier
    codes = pack(assignment, weight.view_as(number) < 0, tables)
    return codes, pack_meta(assignment).to(torch.uint8), base * multiplier, error


def _exact_cost(lifted: torch.Tensor, q: torch.Tensor, multiplier: float, tables: DialectTables) -> torch.Tensor:
    """Sum over each block of value * (multiplier * value - 2 * lifted) for every dialect, float64 [M, K/B, D].

    Elements with equal q take equal values, so a block is summed up by how many elements each q has and by their sum. The
    value of q = 0 is 0, so elements far below the block's maximum, whose digits would not fit, do not count.
    """
    value = tables.half_units.gather(1, tables.indices.long()).double()  # [D, 32]
    histogram = lifted.new_zeros(*q.shape[:2], 2 * Q_VALUES)
    histogram.scatter_add_(2, q, torch.ones_like(lifted))
    histogram.scatter_add_(2, q + Q_VALUES, lifted)
    return histogram @ torch.cat([multiplier * value**2, -2 * value], dim=1).T


def _keep_best_rows(tries: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """Codes, meta and scale of the try with the least error in each row; the first on ties."""
    best = torch.stack([error for *_, error in tries]).argmin(0)
    rows = torch.arange(best.shape[0], device=best.device)
    return tuple(torch.stack([attempt[part] for attempt in tries])[best, rows] for part in range(3))


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent as float32, exactly, for integer exponents of normal numbers."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def _row_chunks(x: torch.Tensor) -> Iterator[slice]:
    rows, width = x.shape
    step = max(1, CHUNK_ELEMENTS.get(x.device.type, GPU_CHUNK_ELEMENTS) // max(1, width))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _empty_rows(x: torch.Tensor, block_size: int, meta_dtype: torch.dtype) -> EncodedRows:
    rows, width = x.shape
    return EncodedRows(
        torch.empty(rows, width // 2, dtype=torch.uint8, device=x.device),
        torch.empty(rows, width // block_size, dtype=meta_dtype, device=x.device),
        torch.empty(rows, dtype=torch.float32, device=x.device),
    )
