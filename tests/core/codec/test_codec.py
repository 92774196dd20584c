"""The codec and its reference kernels against the oracle, on edges, and byte for byte."""

import hashlib
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import sedialect
from sedialect import Formatbook
from sedialect.kernels import reference
from sedialect.sedialect_core.errors import EncodeError

encode = partial(sedialect.encode, formatbook="sedialect-32")  # the book that the oracle has
BOOKS = {"sedialect-32": oracle.HALF_UNITS, "dialectfp4-16": oracle.HALF_UNITS_16}
# Three blocks of 32 or six of 16 a row; magnitudes over many exponents, with zeros, repeats and subnormal numbers.
NUMBERS = st.one_of(
    st.floats(-8, 8, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 15.0, 15.9375, 7.75, 2.0**-20, -(2.0**-130), 1e-45]),
)
ROWS = arrays(np.float32, (2, 96), elements=NUMBERS, fill=st.sampled_from([0.0, 0.5, 3.0]))
BLOCK_SIZES = st.sampled_from([16, 32])
NAMES = st.sampled_from(sorted(BOOKS))


def decoded(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes & 0x0F, codes >> 4], axis=-1).reshape(codes.shape[0], -1)


@settings(max_examples=60)
@given(ROWS, BLOCK_SIZES, NAMES, st.sampled_from(["max", "all"]))
def test_activations_are_encoded_as_the_oracle_does(rows, block_size, name, candidates):
    x = torch.from_numpy(rows)
    encoded = encode(x, formatbook=Formatbook.builtin(name), block_size=block_size, role="activation", candidates=candidates)
    values = encoded.dequantize(torch.float64).numpy()
    for row in range(len(rows)):
        expected = oracle.encode_activation_row(rows[row], BOOKS[name], block_size, candidates)
        if expected["scale"] < 2.0**-126:  # below it float32 has no normal number; the codec stops there, the oracle goes on
            assert float(encoded.scale[row]) == 2.0**-126
            continue
        assert float(encoded.scale[row]) == expected["scale"]
        assert decoded(encoded.codes.numpy())[row].tolist() == expected["codes"].tolist()
        meta = [oracle.meta_byte(int(d), int(i)) for d, i in zip(expected["delta"], expected["dialect"], strict=True)]
        assert encoded.meta[row].tolist() == meta
        assert values[row].tolist() == oracle.decode_row(expected, BOOKS[name], block_size).tolist()


@settings(max_examples=60)
@given(ROWS, BLOCK_SIZES, NAMES)
def test_weights_are_encoded_as_the_oracle_does(rows, block_size, name):
    weight = torch.from_numpy(np.clip(rows, -(2.0**40), 2.0**40))
    encoded = encode(weight, formatbook=Formatbook.builtin(name), block_size=block_size, role="weight")
    values = encoded.dequantize(torch.float64).numpy()
    for row in range(len(rows)):
        numbers, scale = weight[row].numpy(), float(encoded.scale[row])
        expected = oracle.encode_weight_row(numbers, BOOKS[name], block_size, scale)
        sound = ~expected["fragile"]
        chosen = encoded.meta[row].numpy() & 31
        errors = expected["block_errors"]
        reached = errors[np.arange(len(chosen)), chosen]
        assert np.all(reached[sound] <= errors.min(axis=1)[sound] * (1 + 1e-9))
        same = sound & (chosen == expected["dialect"])
        assert np.array_equal((encoded.meta[row].numpy() >> 5)[same], expected["delta"][same])
        codes = decoded(encoded.codes.numpy())[row].reshape(-1, block_size)
        assert np.array_equal(codes[same], expected["codes"].reshape(-1, block_size)[same])
        if sound.all():
            assert oracle.row_error(numbers, values[row]) == pytest.approx(expected["row_error"], rel=1e-9, abs=1e-300)


def test_the_row_scale_of_a_weight_is_the_best_of_those_tried():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(3))
    encoded = encode(weight)
    base = reference.activation_scale(weight)
    for row in range(len(weight)):
        errors = {
            multiplier: oracle.encode_weight_row(weight[row].numpy(), oracle.HALF_UNITS, 16, float(base[row] * multiplier))[
                "row_error"
            ]
            for multiplier in reference.SCALE_MULTIPLIERS
        }
        assert float(encoded.scale[row] / base[row]) == min(errors, key=errors.__getitem__)


@settings(max_examples=30)
@given(ROWS, BLOCK_SIZES)
def test_residuals_are_encoded_as_the_oracle_does(rows, block_size):
    x = torch.from_numpy(np.clip(rows, -(2.0**20), 2.0**20))
    first = encode(x, block_size=block_size, role="activation")
    second = encode(x - first.dequantize(), block_size=block_size, role="activation")
    if float(second.scale.min()) <= 2.0**-126 or float(first.scale.min()) <= 2.0**-126:
        return
    two_terms = (first.dequantize(torch.float64) + second.dequantize(torch.float64)).numpy()
    for row in range(len(rows)):
        expected = oracle.residual_two_term(x[row].numpy(), oracle.HALF_UNITS, block_size)
        assert two_terms[row].tolist() == expected.tolist()


def test_weights_restricted_to_their_maximum_choose_the_best_there():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(11))
    encoded = encode(weight, candidates="max", formatbook="sedialect-32")
    for row in range(len(weight)):
        expected = oracle.encode_weight_row(weight[row].numpy(), oracle.HALF_UNITS, 16, float(encoded.scale[row]))
        for block, chosen in enumerate((encoded.meta[row] & 31).tolist()):
            delta = int(encoded.meta[row, block]) >> 5
            lifted = float(weight[row, 16 * block : 16 * block + 16].abs().max() / encoded.scale[row] * 2**delta)
            allowed = oracle.candidate_ids(oracle.HALF_UNITS, min(31, int(2 * lifted)), "max")
            errors = expected["block_errors"][block]
            assert chosen in allowed and errors[chosen] <= min(errors[allowed]) * (1 + 1e-9)


def test_residuals_lower_the_error_a_hundredfold():
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    first = encode(x, role="activation")
    two_terms = first.dequantize() + encode(x - first.dequantize(), role="activation").dequantize()
    assert (two_terms - x).square().sum() * 100 < (first.dequantize() - x).square().sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("role", ["weight", "activation"])
def test_16_bit_inputs_are_taken_at_their_value(dtype, role):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    narrow, wide = encode(x, role=role), encode(x.float(), role=role)
    for name in ("codes", "meta", "scale"):
        assert torch.equal(getattr(narrow, name), getattr(wide, name))


@pytest.mark.parametrize("role", ["weight", "activation"])
@pytest.mark.parametrize("shape", [(0, 32), (3, 0, 64), (32,), (2, 3, 4, 32)])
def test_any_leading_dimensions_even_none_and_empty_ones(role, shape):
    x = torch.randn(shape)
    encoded = encode(x, role=role)
    assert encoded.shape == x.shape and encoded.dequantize().shape == x.shape
    assert encoded.codes.shape == (*shape[:-1], shape[-1] // 2)
    assert encoded.meta.shape == (*shape[:-1], shape[-1] // 16)
    assert encoded.scale.shape == shape[:-1]


@pytest.mark.parametrize("role", ["weight", "activation"])
def test_strided_inputs_are_encoded_as_their_copies(role):
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(4)).T
    assert not x.is_contiguous()
    for view in (x, x[::2], x[:, ::2]):
        assert torch.equal(encode(view, role=role).codes, encode(view.contiguous(), role=role).codes)


@pytest.mark.parametrize("role", ["weight", "activation"])
def test_zeros_become_zero_bytes(role):
    x = torch.randn(4, 64)
    x[1], x[2, 16:32] = 0, -0.0
    encoded = encode(x, role=role)
    assert not encoded.codes[1].any() and encoded.scale[1] == 1 and not encoded.meta[1].float().any()
    assert not encoded.codes[2, 8:16].any() and int(encoded.meta[2, 1]) == 0
    assert torch.equal(encoded.dequantize()[1], torch.zeros(64))


def test_one_huge_value_costs_its_row_but_no_other():
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))
    spoiled = x.clone()
    spoiled[1, 0] = 3e38
    plain, encoded = encode(x, role="activation"), encode(spoiled, role="activation")
    assert encoded.dequantize()[1].isfinite().all()
    assert encoded.dequantize()[1, 0] == pytest.approx(3e38, rel=0.07)
    for row in (0, 2):
        assert torch.equal(plain.codes[row], encoded.codes[row])


def test_rows_of_subnormal_numbers_stay_finite():
    x = torch.full((1, 32), 1e-44)
    for role in ("weight", "activation"):
        values = encode(x, role=role).dequantize()
        assert values.isfinite().all() and values.abs().max() <= 2e-44


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_finite_stay_so_in_their_row_alone(bad):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(6))
    plain = encode(x, role="activation").dequantize()
    x[1, 5] = bad
    values = encode(x, role="activation").dequantize()
    assert values[1].isnan().all()
    assert torch.equal(values[[0, 2]], plain[[0, 2]])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    weight = torch.randn(3, 64)
    weight[2, 63] = bad
    with pytest.raises(EncodeError, match="blocks.7.ffn holds NaN or Inf"):
        encode(weight, name="blocks.7.ffn")


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.randn(2, 24), {}, "24 elements a row, not a multiple of the block size 16"),
        (torch.randn(2, 0), {}, "0 elements"),
        (torch.tensor(1.0), {}, "expected"),
        (torch.ones(2, 16, dtype=torch.int32), {}, "int32"),
        (torch.randn(2, 16).to(torch.float8_e4m3fn), {}, "float8_e4m3fn"),
        (torch.randn(2, 64), {"block_size": 64}, "block size 64"),
        (torch.randn(2, 16), {"role": "bias"}, "role 'bias'"),
        (torch.randn(2, 16), {"role": "activation", "candidates": "two"}, "candidates 'two'"),
    ],
)
def test_what_cannot_be_encoded_is_refused_with_its_value(x, arguments, message):
    with pytest.raises(EncodeError, match=message):
        encode(x, **arguments)


def test_operands_need_no_more_than_e4m3():
    """The promise behind FP8 matrix products (docs/format.md): times 2^4, every operand survives the cast."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(7)) * torch.logspace(-6, 3, 256)
    for candidates in ("max", "all"):
        operand, _ = reference.quantize_rows(x, Formatbook.builtin().tables(), 16, candidates)
        assert torch.equal((operand * 16).to(torch.float8_e4m3fn).float() / 16, operand)
        assert torch.equal(operand.bfloat16().float(), operand)


def test_operands_are_what_the_stored_layout_decodes_to():
    x = torch.randn(33, 96, generator=torch.Generator().manual_seed(8)) * torch.logspace(-3, 3, 96)
    tables = Formatbook.builtin().tables()
    operand, scale = reference.quantize_rows(x, tables, 32)
    rows = reference.encode_rows(x, tables, 32)
    assert torch.equal(reference.decode_rows(rows.codes, rows.meta, tables), operand)
    assert torch.equal(rows.scale, scale)


def test_chunks_do_not_show(monkeypatch):
    x = torch.randn(37, 64, generator=torch.Generator().manual_seed(9))
    whole = [encode(x, role=role) for role in ("weight", "activation")]
    monkeypatch.setitem(reference.CHUNK_ELEMENTS, "cpu", 5 * 64)
    for before, role in zip(whole, ("weight", "activation"), strict=True):
        after = encode(x, role=role)
        assert torch.equal(before.codes, after.codes) and torch.equal(before.meta, after.meta)


def test_golden_bytes():
    """The layout on disk. If this fails, old checkpoints would no longer mean what they meant."""
    # Exact in binary, so that no library's rounding is in the golden numbers: mixed signs, 9 binades, a zero block.
    values = torch.tensor([((i * 40503) % 65536 - 32768) / 2.0 ** (i % 9) for i in range(2 * 64)]).view(2, 64)
    values[1, 16:32] = 0
    digests = {
        role: hashlib.sha256(b"".join(t.numpy().tobytes() for t in (encoded.codes, encoded.meta, encoded.scale))).hexdigest()
        for role in ("weight", "activation")
        for encoded in [encode(values, role=role)]
    }
    encoded = encode(values)
    assert encoded.codes[0, :8].tolist() == [30, 25, 0, 0, 16, 27, 0, 0]
    assert encoded.meta.tolist() == [[3, 36, 53, 39], [64, 0, 44, 35]]
    assert encoded.scale.tolist() == [4096.0, 3328.0]
    assert digests == {
        "weight": "82dfa9feb38ea432014d10cb0342adea86ff3a43fb63096cca7cb2e742de7298",
        "activation": "f790932309eaeae67cbe75439bc1cef39319cef0f955ee99c2da8e8a9646705c",
    }


@pytest.mark.parametrize(("block_size", "bits"), [(16, 4.5), (32, 4.25)])
def test_effective_bits_are_counted_from_what_is_stored(block_size, bits):
    encoded = encode(torch.randn(8, 1024), block_size=block_size)
    stored = sum(t.numel() * t.element_size() for t in (encoded.codes, encoded.meta, encoded.scale))
    assert encoded.bits_per_element == bits + 32 / 1024 == stored * 8 / (8 * 1024)


@pytest.mark.parametrize(("block_size", "weight_error", "table_error"), [(16, 6.5e-3, 6.68e-3), (32, 7.8e-3, 8.0e-3)])
def test_gaussian_error_is_that_of_the_method_notes(block_size, weight_error, table_error):
    """One row a block, as there; the row-scale search only ever lowers the weight error."""
    x = torch.randn(6000, block_size, generator=torch.Generator().manual_seed(10))

    def error(encoded):
        return float((encoded.dequantize() - x).square().sum() / x.square().sum())

    assert error(encode(x, block_size=block_size)) < weight_error
    assert error(encode(x, block_size=block_size, role="activation", candidates="all")) == pytest.approx(
        table_error, rel=0.02
    )
