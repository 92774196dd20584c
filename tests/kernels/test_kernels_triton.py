"""The Triton kernels, interpreted on the CPU, against the reference: every bit of every output."""

import pytest
import torch
from interpreted import added, decoded, encoded, encoded_weight, interpreter

from sedialect import Formatbook, encode
from sedialect.kernels import reference
from sedialect.kernels.activations import encode_activations
from sedialect.kernels.guidance import RowGuidance
from sedialect.kernels.transform import InputTransform

__all__ = ["interpreter"]
BOOK = Formatbook.builtin().tables("cpu")
TWO_SHAPES = Formatbook.builtin("dialectfp4-16").tables("cpu")


def rows(count: int = 7, width: int = 160, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Rows over many exponents, with zeros, blocks of zeros, huge and subnormal numbers, NaN and Inf."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator) * torch.rand(count, width, generator=generator).mul(-12).exp2()
    x *= torch.logspace(-6, 3, count)[:, None]
    x[:, 16:32] = 0
    x[0] = 0
    x[1] = torch.randn(width, generator=generator).mul(1e-41)
    x[2, 5] = -1e30
    x[3, 7] = torch.nan
    x[4, 9] = -torch.inf
    return x.to(dtype)


def assert_same(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Equal bits, but for the sign of zeros in rows whose scale is NaN."""
    (operand, scale), (wanted_operand, wanted_scale) = found, wanted
    finite = wanted_scale.isfinite()
    assert torch.equal(scale.isnan(), ~finite) and torch.equal(scale[finite], wanted_scale[finite])
    assert torch.equal(operand.float(), wanted_operand.float())
    assert torch.equal(operand[finite].float().signbit(), wanted_operand[finite].signbit())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("candidates", ["max", "all"])
@pytest.mark.parametrize("tables", [BOOK, TWO_SHAPES], ids=["four shapes", "two shapes"])
def test_activations(interpreter, dtype, block_size, candidates, tables):
    x = rows(dtype=dtype)
    found = interpreter(encoded, x, tables, block_size, 4, candidates, torch.float32)
    assert_same(found, encode_activations(x, tables, block_size, 4, candidates))


@pytest.mark.parametrize(("count", "width"), [(1, 32), (3, 1536), (5, 4128)])
def test_odd_shapes(interpreter, count, width):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, width, generator=generator).half()
    for bits in (4, 8):
        found = interpreter(encoded, x, BOOK, 32, bits, "max", torch.float32)
        assert_same(found, encode_activations(x, BOOK, 32, bits, "max"))


@pytest.mark.parametrize("bits", [4, 8])
def test_arrays_with_gaps_and_without_rows(interpreter, bits):
    x, wide = rows(9, 320)[:, ::2], torch.tensor([[8, 0], [2, 0], [5, 0]], dtype=torch.int32)
    group, choice = torch.randint(-1, 3, (9, 2), dtype=torch.int32)[:, 0], torch.full((3, 20), 5, dtype=torch.uint8)[:, ::2]
    told = RowGuidance(wide[:, 0], group, choice)
    assert not any(one.is_contiguous() for one in (x, *told[:3]))
    found = interpreter(encoded, x, BOOK, 16, bits, "max", torch.float32, told)
    assert_same(found, encode_activations(x, BOOK, 16, bits, "max", told))
    operand, scale = interpreter(encoded, x[:0], BOOK, 16, bits, "max", torch.float32)
    assert operand.shape == (0, 160) and scale.shape == (0,)
    none = torch.empty(0, dtype=torch.int32)
    found = interpreter(encoded, x, BOOK, 16, bits, "max", torch.float32, RowGuidance(none))
    assert_same(found, encode_activations(x, BOOK, 16, bits, "max"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_e4m3(interpreter, dtype):
    x = rows(dtype=dtype)
    assert_same(interpreter(encoded, x, BOOK, 16, 8, "max", torch.float32), reference.e4m3_rows(x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("candidates", ["max", "all"])
@pytest.mark.parametrize("tables", [BOOK, TWO_SHAPES], ids=["four shapes", "two shapes"])
def test_salient_rows_and_groups(interpreter, bits, candidates, tables):
    x = rows(9)
    generator = torch.Generator().manual_seed(2)
    settings = {
        "salient": torch.tensor([8, 2, -1, 5, 1, 3, -1], dtype=torch.int32),
        "group": torch.tensor([0, 0, 1, -1, 1, -1, 0, 2, 2], dtype=torch.int32),
        "choice": torch.randint(1, 1 << tables.shapes, (3, 10), generator=generator, dtype=torch.uint8),
    }
    dialects = torch.randint(0, 8 * tables.shapes, (2, 10), generator=generator, dtype=torch.uint8)
    settings["choice"][1:] = reference.SHARED_DIALECT + dialects
    told = RowGuidance(**settings)
    found = interpreter(encoded, x, tables, 16, bits, candidates, torch.float32, told)
    assert_same(found, encode_activations(x, tables, 16, bits, candidates, told))


@pytest.mark.parametrize("flag", [False, True])
def test_protected_steps(interpreter, flag):
    x = rows(9)
    told = RowGuidance(torch.tensor([8, 6], dtype=torch.int32), protected=torch.tensor([flag]))
    found = interpreter(encoded, x, BOOK, 16, 4, "max", torch.float32, told)
    assert_same(found, encode_activations(x, BOOK, 16, 4, "max", told))


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_rotation(interpreter, size, bits):
    x = rows(6, 384, torch.float16)[3:] if size == 16 else rows(9, 384)[[0, 1, 3, 5, 6, 7]]
    settings = {"transform": InputTransform(rotation=size), "guidance": RowGuidance(torch.tensor([2, 0], dtype=torch.int32))}
    found = interpreter(encoded, x, BOOK, 16, bits, "max", torch.float32, **settings)
    assert_same(found, encode_activations(x, BOOK, 16, bits, "max", **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rotation", [0, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_equalization(interpreter, bits, rotation, dtype):
    x = rows(9, 352, dtype)
    exponents = torch.randint(-15, 16, (352,), generator=torch.Generator().manual_seed(4), dtype=torch.int8)
    told = {"guidance": RowGuidance(torch.tensor([8, 5, 2], dtype=torch.int32))}
    settings = {"transform": InputTransform(exponents, rotation), **told}
    found = interpreter(encoded, x, BOOK, 16, bits, "max", torch.float32, **settings)
    wanted = encode_activations(x, BOOK, 16, bits, "max", **settings)
    assert_same(found, wanted)
    plain = encode_activations(x, BOOK, 16, bits, "max", **told)
    assert not torch.equal(wanted[0], plain[0])


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize(("dtype", "lift"), [(torch.float32, 0), (torch.float8_e4m3fn, 4)])
def test_weights_decode(interpreter, block_size, dtype, lift):
    weight = encode(rows(13)[5:], block_size=block_size)
    arrays = reference.EncodedRows(weight.codes, weight.meta, weight.scale)
    operand, scale = interpreter(decoded, arrays, BOOK, dtype, False)
    assert torch.equal(operand.float(), reference.decode_rows(weight.codes, weight.meta, BOOK) * 2**lift)
    assert torch.equal(scale, weight.scale * 2.0**-lift)


def test_decoded_weights_with_their_scales_are_exact_in_few_digits(interpreter):
    weight = encode(rows(13)[5:])
    operand, _ = interpreter(
        decoded, reference.EncodedRows(weight.codes, weight.meta, weight.scale), BOOK, torch.float32, True
    )
    assert torch.equal(operand, weight.dequantize())
    assert torch.equal(operand, operand.bfloat16().float())  # magnitudes and multiples of 1/8: 8 digits together


@pytest.mark.parametrize(
    ("dtype", "block_size", "tables"),
    [(torch.float32, 16, BOOK), (torch.float16, 32, BOOK), (torch.float16, 16, TWO_SHAPES)],
)
def test_weights_encode(interpreter, dtype, block_size, tables):
    weight = rows(9, 96, dtype)[5:]
    weight[2] = torch.randint(-12, 13, (96,), generator=torch.Generator().manual_seed(3)) / 8  # ties everywhere
    weight[3] = 0
    found = interpreter(encoded_weight, weight, tables, block_size, reference.SCALE_MULTIPLIERS)
    for part, wanted in zip(found, reference.encode_weight_rows(weight, tables, block_size), strict=True):
        assert torch.equal(part, wanted)


def test_extra_rows_are_added_to_their_own(interpreter):
    generator = torch.Generator().manual_seed(4)
    product, extra = torch.randn(6, 1500, generator=generator), torch.randn(4, 1500, generator=generator)
    salient = torch.tensor([4, 0, -1, 5], dtype=torch.int32)
    wanted = product.index_add(0, salient[[0, 1, 3]], extra[[0, 1, 3]])
    assert torch.equal(interpreter(added, product, extra, salient), wanted)
