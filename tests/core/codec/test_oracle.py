"""The oracle itself, against the published examples and the measured errors of the method notes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt
import oracle
import pytest
from oracle import HALF_UNITS, HALF_UNITS_16, Book, FloatRow, error_of, index_of

BOOKS = [pytest.param(HALF_UNITS, id="32"), pytest.param(HALF_UNITS_16, id="16")]
# Per published pair: q where the even dialect is the better one, q where the odd dialect is.
BENEFICIAL = [
    (range(20, 26), range(15, 20)),
    (range(20, 25), range(15, 20)),
    (range(18, 23), range(14, 18)),
    (range(18, 22), range(14, 18)),
    (range(16, 20), range(13, 16)),
    (range(16, 19), range(13, 16)),
    (range(15, 17), range(13, 15)),
    (range(13, 15), range(9, 11)),
]
PUBLISHED_IDS = [1, 2, 5, 6, 9, 10, 12, 14, 17, 19, 20, 22, 24, 25, 29, 31]


def power_of_two_scale(x: npt.NDArray[np.floating]) -> float:
    """The activation rule's scale, in plain floating point."""
    return float(2.0 ** (np.floor(np.log2(np.abs(x.astype(np.float64)).max())) - 3))


@pytest.mark.parametrize(("book", "shapes"), [(HALF_UNITS, 4), (HALF_UNITS_16, 2)])
def test_tables_have_the_declared_layout(book: Book, shapes: int) -> None:
    assert len(book) == 8 * shapes == len(set(book))
    for number, dialect in enumerate(book):
        assert len(dialect) == 8 and dialect[0] == 0
        assert list(dialect) == sorted(set(dialect))
        assert dialect[-1] == 15 - number // shapes


def test_shapes_go_from_dense_to_sparse_top() -> None:
    for start in range(0, 32, 4):
        sums = [sum(dialect) for dialect in HALF_UNITS[start : start + 4]]
        assert sums == sorted(sums, reverse=True) and len(set(sums)) == 4


def test_published_dialects_keep_their_order_in_the_large_book() -> None:
    assert tuple(HALF_UNITS[number] for number in PUBLISHED_IDS) == HALF_UNITS_16


@pytest.mark.parametrize("book", BOOKS)
def test_every_value_of_a_bin_has_the_bins_index(book: Book) -> None:
    for dialect in book:
        for q in range(32):
            inside = {oracle.nearest_index(dialect, Fraction(8 * q + k, 16)) for k in range(8)}
            assert inside == {index_of(dialect, q)}


@pytest.mark.parametrize("book", BOOKS)
def test_table_errors_are_small_odd_squares(book: Book) -> None:
    errors = [error_of(dialect, q) for dialect in book for q in range(32)]
    assert min(errors) == 1 and max(errors) == 961
    assert all(error % 2 == 1 for error in errors)


def test_a_bin_split_by_a_threshold_is_refused() -> None:
    with pytest.raises(AssertionError, match="split"):
        oracle._index_of((0, Fraction(1, 2)), 0)


def test_published_rounding_example() -> None:
    dialect = HALF_UNITS_16[4]
    assert [dialect[index_of(dialect, q)] for q in range(15, 24)] == [6] + [10] * 7 + [13]
    assert index_of(dialect, 0b10001) == 6


@pytest.mark.parametrize("pair", range(8))
def test_beneficial_ranges(pair: int) -> None:
    even, odd = HALF_UNITS_16[2 * pair], HALF_UNITS_16[2 * pair + 1]
    even_wins = [q for q in range(32) if error_of(even, q) < error_of(odd, q)]
    odd_wins = [q for q in range(32) if error_of(odd, q) < error_of(even, q)]
    assert (even_wins, odd_wins) == tuple(list(part) for part in BENEFICIAL[pair])


@pytest.mark.parametrize(("q_max", "maximum"), [(0, 8), (14, 8), (16, 8), (17, 9), (26, 13), (30, 15), (31, 15)])
def test_candidates_follow_the_block_maximum(q_max: int, maximum: int) -> None:
    group = 15 - maximum
    assert oracle.candidate_ids(HALF_UNITS, q_max, "max") == [4 * group + shape for shape in range(4)]
    assert oracle.candidate_ids(HALF_UNITS_16, q_max, "max") == [2 * group, 2 * group + 1]
    assert oracle.candidate_ids(HALF_UNITS, q_max, "all") == list(range(32))


@pytest.mark.parametrize(("value", "expected"), [("1/1", 0), ("8/1", 3), ("7/1", 2), ("1/3", -2), ("1/4", -2)])
def test_floor_log2(value: str, expected: int) -> None:
    assert oracle.floor_log2(Fraction(value)) == expected


def test_activation_row_worked_by_hand() -> None:
    # Row max 13 -> scale 1. Block 0: q = 26 16 2 13 -> maximum 13, ids 8..11; only id 10 has the value 8.
    # Block 1: maximum 0.75 -> delta 4, scaled 12 -3 0 0 -> maximum 12, all shapes equal -> lowest id 12.
    x = [13.0, -8.0, 1.0, 6.5, 0.75, -0.1875, 0.0, -0.0]
    encoded = oracle.encode_activation_row(x, HALF_UNITS, 4)
    assert encoded["scale"] == 1.0
    assert encoded["delta"].tolist() == [0, 4]
    sums = [sum(error_of(HALF_UNITS[number], q) for q in (26, 16, 2, 13)) for number in range(8, 12)]
    assert sums == [1 + 81 + 1 + 9, 1 + 49 + 1 + 9, 1 + 1 + 1 + 9, 1 + 25 + 1 + 1]
    assert encoded["dialect"].tolist() == [10, 12]
    assert encoded["codes"].tolist() == [7, 8 | 6, 1, 5, 7, 8 | 3, 0, 0]
    decoded = oracle.decode_row(encoded, HALF_UNITS, 4)
    assert decoded.tolist() == [13.0, -8.0, 1.0, 6.0, 0.75, -0.1875, 0.0, 0.0]


def test_activation_ties_go_to_the_lowest_id() -> None:
    # Only 0 and the maximum occur: the shapes of one maximum cannot differ.
    encoded = oracle.encode_activation_row([12.0, 0.0, -12.0, 0.0], HALF_UNITS, 4)
    assert encoded["dialect"].tolist() == [12] and encoded["codes"].tolist() == [7, 0, 15, 0]
    # Among all dialects id 4 is the first that has the value 12, as its second largest.
    encoded = oracle.encode_activation_row([12.0, 0.0, -12.0, 0.0], HALF_UNITS, 4, "all")
    assert encoded["dialect"].tolist() == [4] and encoded["codes"].tolist() == [6, 0, 14, 0]


def test_zero_rows_zero_blocks_and_clamped_exponents() -> None:
    zero = oracle.encode_activation_row([0.0, -0.0, 0.0, 0.0], HALF_UNITS, 4)
    assert zero["scale"] == 1.0 and zero["delta"].tolist() == zero["dialect"].tolist() == [0]
    assert zero["codes"].tolist() == [0, 0, 0, 0]

    tiny = 2.0**-20
    row = [8.0, 0, 0, 0] + [-tiny] * 4 + [0.0, -0.0, 0, 0]
    encoded = oracle.encode_activation_row(row, HALF_UNITS, 4)
    assert encoded["scale"] == 1.0
    assert encoded["delta"].tolist() == [0, 0, 0]
    assert encoded["dialect"].tolist() == [28, 0, 0]
    assert encoded["codes"].tolist() == [7] + [0] * 11  # below half of the smallest step: zero, and no sign

    weight = oracle.encode_weight_row(row, HALF_UNITS, 4, 1.0)
    assert weight["delta"].tolist() == [0, 0, 0]
    assert weight["dialect"].tolist() == [3, 0, 0]  # id 3 is the first that has 8, as its second largest
    assert weight["codes"].tolist() == [6] + [0] * 11
    assert weight["row_error"] == 4 * tiny**2


def test_weights_beyond_the_range_saturate() -> None:
    encoded = oracle.encode_weight_row([40.0, -16.0, 1.0, 0.0], HALF_UNITS, 4, 1.0)
    assert encoded["delta"].tolist() == [0]
    assert oracle.decode_row(encoded, HALF_UNITS, 4).tolist() == [15.0, -15.0, 1.0, 0.0]
    assert encoded["row_error"] == 25.0**2 + 1.0


@pytest.mark.parametrize("bad", [[1.0, float("nan")], [1.0, float("inf")], [1.0, 2.0, 3.0], []])
def test_out_of_scope_inputs_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError):
        oracle.encode_activation_row(bad, HALF_UNITS, 2)


@pytest.mark.parametrize("book", BOOKS)
@pytest.mark.parametrize("multiplier", [1.0, 0.8125, 0.9, 1.1])
def test_weight_choice_is_the_smallest_plain_float_error(book: Book, multiplier: float) -> None:
    rng = np.random.default_rng(3)
    row = (rng.standard_normal((10, 16)) * 2.0 ** -np.arange(10)[:, None]).ravel().astype(np.float32)
    scale = float(np.float32(power_of_two_scale(row) * multiplier))
    encoded = oracle.encode_weight_row(row, book, 16, scale)
    assert encoded["delta"].min() >= 0 and encoded["delta"].max() == 7
    decoded = oracle.decode_row(encoded, book, 16)
    np.testing.assert_allclose(encoded["row_error"], ((row - decoded) ** 2).sum(), rtol=1e-12)
    assert encoded["row_error"] == pytest.approx(oracle.row_error(row, decoded), rel=1e-14)
    assert encoded["row_error"] == pytest.approx(encoded["block_errors"].min(axis=1).sum(), rel=1e-12)
    for block in range(10):  # nearest magnitude of every dialect, without q: the same errors
        values = np.abs(row[16 * block : 16 * block + 16].astype(np.float64))
        grid = np.array(book) * scale * 2.0 ** -float(encoded["delta"][block])
        errors = ((values[:, None, None] - grid) ** 2).min(axis=2).sum(axis=0)
        np.testing.assert_allclose(encoded["block_errors"][block], errors, rtol=1e-9)
        assert int(errors.argmin()) == encoded["dialect"][block]


def test_weight_ties_go_to_the_lowest_id() -> None:
    assert oracle.encode_weight_row([12.0, 0.0, -12.0, 0.0], HALF_UNITS, 4, 1.0)["dialect"].tolist() == [4]


def test_fragile_marks_quotients_next_to_an_edge() -> None:
    scale = float(np.float32(1.1))
    row = [9.5 * scale, 0, 0, 0, 9.7 * scale, 0, 0, 0, 4 * scale, 0, 0, 0]
    assert oracle.encode_weight_row(row, HALF_UNITS, 4, scale)["fragile"].tolist() == [True, False, True]
    assert oracle.encode_weight_row([9.5, 0, 0, 0], HALF_UNITS, 4, 1.0)["fragile"].tolist() == [False]


@pytest.mark.parametrize("candidates", ["max", "all"])
def test_one_shared_row_scale_is_the_blocks_own_exponent(candidates: Literal["max", "all"]) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((24, 16)) * 2.0 ** -rng.integers(0, 8, (24, 1))
    encoded = oracle.encode_activation_row(x.ravel(), HALF_UNITS, 16, candidates)
    alone = [oracle.encode_activation_row(block, HALF_UNITS, 16, candidates) for block in x]
    assert all(part["delta"].tolist() == [0] for part in alone)
    assert encoded["delta"].max() <= 13
    assert encoded["dialect"].tolist() == [int(part["dialect"][0]) for part in alone]
    assert encoded["codes"].tolist() == np.concatenate([part["codes"] for part in alone]).tolist()
    block_scales = encoded["scale"] * 2.0 ** -encoded["delta"].astype(np.float64)
    assert block_scales.tolist() == [part["scale"] for part in alone]


def test_encoding_the_decoded_row_changes_nothing() -> None:
    x = np.random.default_rng(7).standard_normal(512)
    for encoded in (
        oracle.encode_activation_row(x, HALF_UNITS, 16, "max"),
        oracle.encode_activation_row(x, HALF_UNITS, 16, "all"),
    ):
        once = oracle.decode_row(encoded, HALF_UNITS, 16)
        again = oracle.encode_weight_row(once, HALF_UNITS, 16, power_of_two_scale(once))
        assert again["row_error"] == 0.0


def relative_error(x: FloatRow, encode_and_decode: Callable[[FloatRow], FloatRow]) -> float:
    errors = [((block - encode_and_decode(block)) ** 2).sum() for block in x]
    return float(np.sum(errors) / (x**2).sum())


# (block size, dialects): relative squared errors of Gaussian blocks, table selection and exact selection.
MEASURED = {
    (16, 16): (7.46e-3, 7.30e-3),
    (16, 32): (6.68e-3, 6.49e-3),
    (32, 16): (8.77e-3, 8.63e-3),
    (32, 32): (8.00e-3, 7.82e-3),
}


@pytest.mark.parametrize(("block_size", "dialects"), list(MEASURED))
def test_gaussian_errors_are_the_measured_ones(block_size: int, dialects: int) -> None:
    book = HALF_UNITS if dialects == 32 else HALF_UNITS_16
    x = np.random.default_rng(11).standard_normal((2000, block_size))

    def table(block: FloatRow) -> FloatRow:  # a row of one block: the block's own exponent
        encoded = oracle.encode_activation_row(block, book, block_size, "all")
        return oracle.decode_row(encoded, book, block_size)

    measured = relative_error(x, table)
    assert measured == pytest.approx(MEASURED[block_size, dialects][0], rel=0.03)

    def exact(block: FloatRow) -> FloatRow:
        encoded = oracle.encode_weight_row(block, book, block_size, power_of_two_scale(block))
        return oracle.decode_row(encoded, book, block_size)

    part = x[:500]
    ratio = relative_error(part, exact) / relative_error(part, table)
    expected = MEASURED[block_size, dialects][1] / MEASURED[block_size, dialects][0]
    assert ratio == pytest.approx(expected, abs=0.01) and ratio < 1


def test_two_terms_are_a_hundred_times_closer() -> None:
    x = np.random.default_rng(13).standard_normal((400, 16))
    error = relative_error(x, lambda block: oracle.residual_two_term(block, HALF_UNITS, 16, "all"))
    assert 0.040e-3 < error < 0.11e-3
    assert oracle.residual_two_term(np.zeros(16), HALF_UNITS, 16).tolist() == [0.0] * 16


def test_residual_subtraction_is_exact_in_float32() -> None:
    x = np.random.default_rng(17).standard_normal(1024).astype(np.float32)
    first = oracle.decode_row(oracle.encode_activation_row(x, HALF_UNITS, 32), HALF_UNITS, 32)
    assert (x - first.astype(np.float32) == x.astype(np.float64) - first).all()


def test_packing() -> None:
    assert oracle.pack_codes([1, 2, 15, 8]).tolist() == [0x21, 0x8F]
    assert oracle.meta_byte(7, 31) == 255 and oracle.meta_byte(13, 31) == 447 and oracle.meta_byte(1, 2) == 34
    with pytest.raises(ValueError):
        oracle.pack_codes([16, 0])
