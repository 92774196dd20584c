"""A slow, obvious oracle of the block code, written from the design text alone.

It shares no code with the package: tests compare the package with it. One row at a time. Every decision
(exponents, the 5-bit intermediate, errors, ties) is made in exact integers or fractions; only results are
float64.

Conventions where the design text leaves room:

* A zero block has codes 0, delta 0, dialect 0. A block whose numbers are so small that its clamped exponent
  makes every q zero is one, too.
* An all-zero row has scale 1.0.
* The sign bit is set only for negative elements whose index is not 0: no code is a negative zero.
* q is clamped to 31; it can pass 31 only where delta is clamped at 0 (weights, block max >= 16 s).
* `|x| / s` is the exact quotient. Float32 division may round it across the edge of a bin when s is no power
  of two; `encode_weight_row` marks the blocks in which that can happen as `fragile`.
* The scale of an activation row is not limited to what float32 can hold.
* Inputs that are not finite are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Magnitudes = tuple[int, ...]
Book = tuple[Magnitudes, ...]
FloatRow = npt.NDArray[np.float64]

Q_VALUES = 32
ACTIVATION_MAX_DELTA = 13
WEIGHT_MAX_DELTA = 7
FRAGILE_RELATIVE = Fraction(1, 2**22)

# The 32 dialects, id = 4 * (15 - maximum) + shape; one line per dialect, one group per maximum.
HALF_UNITS: Book = (
    (0, 1, 2, 3, 4, 6, 13, 15),
    (0, 1, 2, 3, 4, 6, 11, 15),
    (0, 1, 2, 3, 4, 6, 9, 15),
    (0, 1, 2, 3, 4, 6, 8, 15),

    (0, 1, 2, 3, 4, 6, 12, 14),
    (0, 1, 2, 3, 4, 6, 11, 14),
    (0, 1, 2, 3, 4, 6, 9, 14),
    (0, 1, 2, 3, 4, 6, 8, 14),

    (0, 1, 2, 3, 4, 6, 11, 13),
    (0, 1, 2, 3, 4, 6, 10, 13),
    (0, 1, 2, 3, 4, 6, 8, 13),
    (0, 1, 2, 3, 4, 6, 7, 13),

    (0, 1, 2, 3, 4, 6, 10, 12),
    (0, 1, 2, 3, 4, 6, 9, 12),
    (0, 1, 2, 3, 4, 6, 8, 12),
    (0, 1, 2, 3, 4, 6, 7, 12),

    (0, 1, 2, 3, 4, 6, 10, 11),
    (0, 1, 2, 3, 4, 6, 9, 11),
    (0, 1, 2, 3, 4, 6, 8, 11),
    (0, 1, 2, 3, 4, 6, 7, 11),

    (0, 1, 2, 3, 4, 6, 9, 10),
    (0, 1, 2, 3, 4, 6, 8, 10),
    (0, 1, 2, 3, 4, 6, 7, 10),
    (0, 1, 2, 3, 4, 5, 7, 10),

    (0, 1, 2, 3, 4, 6, 8, 9),
    (0, 1, 2, 3, 4, 6, 7, 9),
    (0, 1, 2, 3, 4, 5, 7, 9),
    (0, 1, 2, 3, 4, 5, 6, 9),

    (0, 1, 2, 3, 5, 6, 7, 8),
    (0, 1, 2, 3, 4, 6, 7, 8),
    (0, 1, 2, 3, 4, 5, 7, 8),
    (0, 1, 2, 3, 4, 5, 6, 8),
)  # fmt: skip

# The 16 published dialects, id = 2 * (15 - maximum) + shape.
HALF_UNITS_16: Book = (
    (0, 1, 2, 3, 4, 6, 11, 15),
    (0, 1, 2, 3, 4, 6, 9, 15),
    (0, 1, 2, 3, 4, 6, 11, 14),
    (0, 1, 2, 3, 4, 6, 9, 14),
    (0, 1, 2, 3, 4, 6, 10, 13),
    (0, 1, 2, 3, 4, 6, 8, 13),
    (0, 1, 2, 3, 4, 6, 10, 12),
    (0, 1, 2, 3, 4, 6, 8, 12),
    (0, 1, 2, 3, 4, 6, 9, 11),
    (0, 1, 2, 3, 4, 6, 7, 11),
    (0, 1, 2, 3, 4, 6, 9, 10),
    (0, 1, 2, 3, 4, 6, 7, 10),
    (0, 1, 2, 3, 4, 6, 8, 9),
    (0, 1, 2, 3, 4, 6, 7, 9),
    (0, 1, 2, 3, 4, 6, 7, 8),
    (0, 1, 2, 3, 4, 5, 6, 8),
)


def as_book(half_units: Any) -> Book:
    """Any [dialects, 8] table (tuples, NumPy, torch) as tuples of plain integers."""
    return tuple(tuple(int(value) for value in dialect) for dialect in half_units)


def nearest_index(dialect: Sequence[int], value: Fraction) -> int:
    """Index of the magnitude nearest to `value` (in half-units); ties go to the larger magnitude."""
    best = 0
    for index in range(1, len(dialect)):
        if abs(dialect[index] - value) <= abs(dialect[best] - value):
            best = index
    return best


@cache
def _index_of(dialect: Magnitudes, q: int) -> int:
    lower, upper = Fraction(q, 2), Fraction(q + 1, 2)
    index = nearest_index(dialect, (lower + upper) / 2)
    # nearest_index is monotonic: where both ends of the bin agree, the whole bin does.
    for value in (lower, upper - Fraction(1, 2**80)):
        assert nearest_index(dialect, value) == index, f"bin q={q} of dialect {dialect} is split"
    return index


def index_of(dialect_half_units: Sequence[int], q: int) -> int:
    """Index for every value in the bin [q/2, (q+1)/2) half-units; fails if the bin does not agree on one."""
    if not 0 <= q < Q_VALUES:
        raise ValueError(f"q={q} is no 5-bit number")
    return _index_of(tuple(int(value) for value in dialect_half_units), int(q))


def error_of(dialect_half_units: Sequence[int], q: int) -> int:
    """Squared distance of the chosen magnitude from the centre of bin q, in (quarter half-units)^2."""
    return (4 * int(dialect_half_units[index_of(dialect_half_units, q)]) - (2 * q + 1)) ** 2


@cache
def tables_of(dialect: Magnitudes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`index_of` and `error_of` of one dialect for every q."""
    indices = tuple(index_of(dialect, q) for q in range(Q_VALUES))
    return indices, tuple(error_of(dialect, q) for q in range(Q_VALUES))


def floor_log2(value: Fraction) -> int:
    """The exact floor of log2 of a positive fraction."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def _exact_blocks(x: npt.ArrayLike, block_size: int) -> list[list[Fraction]]:
    row = np.asarray(x, dtype=np.float64)
    if row.ndim != 1 or row.size == 0 or row.size % block_size:
        raise ValueError(f"need one row of a multiple of {block_size} elements, got shape {row.shape}")
    if not np.isfinite(row).all():
        raise ValueError("the oracle takes finite inputs only")
    exact = [Fraction(value) for value in row.tolist()]
    return [exact[start : start + block_size] for start in range(0, len(exact), block_size)]


def _delta_of(block_max: Fraction, scale: Fraction, max_delta: int) -> int:
    return min(max(3 - floor_log2(block_max / scale), 0), max_delta)


def _q_of(magnitude: Fraction, scale: Fraction, delta: int) -> int:
    numerator = 2 * magnitude.numerator * (1 << delta) * scale.denominator
    return min(numerator // (magnitude.denominator * scale.numerator), Q_VALUES - 1)


def _codes_of(block: Sequence[Fraction], indices: Sequence[int]) -> list[int]:
    return [(8 if value < 0 and index else 0) | index for value, index in zip(block, indices, strict=True)]


def candidate_ids(half_units: Any, q_max: int, candidates: Literal["max", "all"]) -> list[int]:
    """Dialect ids an activation block with largest intermediate `q_max` may choose from, ascending."""
    book = as_book(half_units)
    if candidates == "all":
        return list(range(len(book)))
    if candidates != "max":
        raise ValueError(f"candidates={candidates!r}")
    maximum = max(min(15, (q_max + 1) >> 1), 8)
    return [number for number, dialect in enumerate(book) if dialect[-1] == maximum]


def encode_activation_row(
    x: npt.ArrayLike, half_units: Any, block_size: int, candidates: Literal["max", "all"] = "max"
) -> dict[str, Any]:
    """Encode one activation row with its own power-of-two scale and table errors.

    Returns `scale` (float), `delta` and `dialect` (int64, one per block), `codes` (uint8, one per element).
    """
    book = as_book(half_units)
    blocks = _exact_blocks(x, block_size)
    row_max = max(abs(value) for block in blocks for value in block)
    scale = Fraction(2) ** (floor_log2(row_max) - 3) if row_max else Fraction(1)

    deltas: list[int] = []
    dialects: list[int] = []
    codes: list[int] = []
    for block in blocks:
        block_max = max(abs(value) for value in block)
        delta = _delta_of(block_max, scale, ACTIVATION_MAX_DELTA) if block_max else 0
        qs = [_q_of(abs(value), scale, delta) for value in block]
        if max(qs) == 0:  # decodes to zeros, so it is a zero block
            deltas.append(0)
            dialects.append(0)
            codes.extend([0] * block_size)
            continue
        best_id, best_error = -1, -1
        for number in candidate_ids(book, max(qs), candidates):
            errors = tables_of(book[number])[1]
            error = sum(errors[q] for q in qs)
            if best_id < 0 or error < best_error:  # strict: ties stay with the lowest id
                best_id, best_error = number, error
        deltas.append(delta)
        dialects.append(best_id)
        codes.extend(_codes_of(block, [index_of(book[best_id], q) for q in qs]))
    return {
        "scale": float(scale),
        "delta": np.array(deltas, dtype=np.int64),
        "dialect": np.array(dialects, dtype=np.int64),
        "codes": np.array(codes, dtype=np.uint8),
    }


def encode_weight_row(x: npt.ArrayLike, half_units: Any, block_size: int, scale: float) -> dict[str, Any]:
    """Encode one weight row with a given float32 scale; the dialect is that of the smallest squared error.

    Returns the keys of `encode_activation_row` and

    * `block_errors`: float64 [blocks, dialects], the squared error each dialect would give the block;
    * `row_error`: float, the squared error of the row as encoded;
    * `fragile`: bool [blocks], true where rounding |x| / scale to float32 could change delta or some q.
    """
    book = as_book(half_units)
    if not (np.isfinite(scale) and scale > 0 and float(np.float32(scale)) == float(scale)):
        raise ValueError(f"scale={scale!r} is no positive float32 number")
    exact_scale = Fraction(float(scale))
    scale_is_power_of_two = Fraction(2) ** floor_log2(exact_scale) == exact_scale
    blocks = _exact_blocks(x, block_size)

    deltas: list[int] = []
    dialects: list[int] = []
    codes: list[int] = []
    fragile: list[bool] = []
    block_errors: list[list[float]] = []
    row_error = Fraction(0)
    for block in blocks:
        magnitudes = [abs(value) for value in block]
        block_max = max(magnitudes)
        if block_max == 0:
            deltas.append(0)
            dialects.append(0)
            codes.extend([0] * block_size)
            fragile.append(False)
            block_errors.append([0.0] * len(book))
            continue
        delta = _delta_of(block_max, exact_scale, WEIGHT_MAX_DELTA)
        qs = [_q_of(value, exact_scale, delta) for value in magnitudes]

        # Squared errors as integers: every number of the block is a multiple of 1 / unit.
        step = exact_scale / 2**delta
        unit = max(step.denominator, *(value.denominator for value in magnitudes))
        step_int = int(step * unit)
        magnitudes_int = [int(value * unit) for value in magnitudes]
        errors: list[int] = []
        for dialect in book:
            indices = tables_of(dialect)[0]
            pairs = zip(magnitudes_int, qs, strict=True)
            errors.append(sum((value - dialect[indices[q]] * step_int) ** 2 for value, q in pairs))
        if max(qs) == 0:  # decodes to zeros, so it is a zero block
            delta, errors = 0, [sum(value**2 for value in magnitudes_int)] * len(book)
        best_id = errors.index(min(errors))  # index() finds the first: ties stay with the lowest id

        deltas.append(delta)
        dialects.append(best_id)
        codes.extend(_codes_of(block, [index_of(book[best_id], q) for q in qs]))
        block_errors.append([float(Fraction(error, unit**2)) for error in errors])
        row_error += Fraction(errors[best_id], unit**2)
        fragile.append(not scale_is_power_of_two and _is_fragile(magnitudes, exact_scale, delta))
    return {
        "scale": float(scale),
        "delta": np.array(deltas, dtype=np.int64),
        "dialect": np.array(dialects, dtype=np.int64),
        "codes": np.array(codes, dtype=np.uint8),
        "block_errors": np.array(block_errors, dtype=np.float64),
        "row_error": float(row_error),
        "fragile": np.array(fragile, dtype=np.bool_),
    }


def _is_fragile(magnitudes: Sequence[Fraction], scale: Fraction, delta: int) -> bool:
    """True where a relative change of 2^-22 moves the block's delta or the q of some element."""
    low, high = 1 - FRAGILE_RELATIVE, 1 + FRAGILE_RELATIVE
    block_max = max(magnitudes)
    deltas = {_delta_of(block_max * factor, scale, WEIGHT_MAX_DELTA) for factor in (low, high)}
    if len(deltas) > 1:
        return True
    return any(_q_of(value * low, scale, delta) != _q_of(value * high, scale, delta) for value in magnitudes)


def decode_row(encoded: dict[str, Any], half_units: Any, block_size: int) -> FloatRow:
    """x_hat = sign * hu[dialect][index] * 2^-delta * scale, exact in float64 for float32 scales."""
    book = as_book(half_units)
    row: list[float] = []
    for position, code in enumerate(encoded["codes"].tolist()):
        block = position // block_size
        magnitude = book[int(encoded["dialect"][block])][code & 7]
        value = magnitude * 2.0 ** -int(encoded["delta"][block]) * encoded["scale"]
        row.append(-value if code & 8 else value)
    return np.array(row, dtype=np.float64)


def row_error(x: npt.ArrayLike, x_hat: npt.ArrayLike) -> float:
    """Sum of squared differences, computed exactly and rounded once."""
    pairs = zip(np.asarray(x, np.float64).tolist(), np.asarray(x_hat, np.float64).tolist(), strict=True)
    return float(sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs), Fraction(0)))


def residual_two_term(
    x: npt.ArrayLike, half_units: Any, block_size: int, candidates: Literal["max", "all"] = "max"
) -> FloatRow:
    """Q(x) + Q(x - Q(x)): the residual is one more row, with its own scale, exponents and dialects.

    Nearest rounding keeps Q(x) / 2 <= x <= 2 Q(x) or Q(x) = 0, so the subtraction loses nothing in any format
    that holds x and Q(x).
    """
    row = np.asarray(x, dtype=np.float64)
    encoded = encode_activation_row(row, half_units, block_size, candidates)
    first = decode_row(encoded, half_units, block_size)
    encoded_rest = encode_activation_row(row - first, half_units, block_size, candidates)
    return first + decode_row(encoded_rest, half_units, block_size)


def pack_codes(codes: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Two 4-bit codes a byte: element 2i in the low nibble, element 2i + 1 in the high one."""
    values = np.asarray(codes).tolist()
    if len(values) % 2 or not all(0 <= value < 16 for value in values):
        raise ValueError("need an even number of 4-bit codes")
    return np.array([values[i] | values[i + 1] << 4 for i in range(0, len(values), 2)], dtype=np.uint8)


def meta_byte(delta: int, dialect: int) -> int:
    """`delta << 5 | dialect`; one byte for weights, more than a byte for activations whose delta passes 7."""
    if not (0 <= delta <= ACTIVATION_MAX_DELTA and 0 <= dialect < 32):
        raise ValueError(f"delta={delta}, dialect={dialect}")
    return int(delta) << 5 | int(dialect)
