"""On a GPU: activations, operands and weights are encoded and decoded to the reference's bits."""

import pytest
import torch
from gpu_numbers import BOOKS, DTYPES, assert_values, finite, guidance, numbers

from sedialect import Formatbook, encode
from sedialect.kernels import capabilities, cuda, ops, reference
from sedialect.kernels.activations import encode_activations
from sedialect.kernels.guidance import RowGuidance
from sedialect.kernels.transform import InputTransform

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("no_kernel_fails"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("candidates", ["max", "all"])
def test_activations_encode_as_on_the_cpu(dtype, block_size, candidates):
    x = numbers(dtype)
    arguments = {"role": "activation", "block_size": block_size, "candidates": candidates}
    here, there = encode(x, **arguments), encode(x.cuda(), **arguments)
    for name in ("codes", "meta", "scale"):
        assert torch.equal(getattr(here, name).float().nan_to_num(), getattr(there, name).float().cpu().nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize(("bits", "candidates"), [(4, "max"), (4, "all"), (8, "max")])
@pytest.mark.parametrize("book", BOOKS)
def test_operands_are_those_of_the_cpu(dtype, block_size, bits, candidates, book):
    x, book = numbers(dtype), Formatbook.builtin(book)
    found = ops.encode(x.cuda(), list(book.tables("cuda")), block_size, bits, candidates)
    assert found[0].dtype == capabilities.operand_dtype(x.cuda(), bits)
    assert_values(found, encode_activations(x, book.tables("cpu"), block_size, bits, candidates))


@pytest.mark.parametrize("width", [32, 1504, 5120, 8960, 13824, 40000])
@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_element_of_every_shape_is_written(width, count, bits):
    torch.full((64 << 20,), torch.nan, device="cuda")  # what the allocator hands out next is full of NaN
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(2)).bfloat16()
    book = Formatbook.builtin()
    found = ops.encode(x.cuda(), list(book.tables("cuda")), 16, bits, "max")
    assert_values(found, encode_activations(x, book.tables("cpu"), 16, bits, "max"))


@pytest.mark.parametrize("bits", [4, 8])
def test_offsets_pass_two_to_the_31(bits):
    """Long videos in wide layers have more elements than 32 bits count."""
    width, tables = 13824, list(Formatbook.builtin().tables("cuda"))
    count = (1 << 31) // width + 9
    x = torch.zeros(count, width, device="cuda", dtype=torch.bfloat16)
    x[-8:] = torch.randn(8, width, generator=torch.Generator().manual_seed(4)).cuda()
    last = torch.tensor([7, 3], dtype=torch.int32, device="cuda")
    found = ops.encode(x, tables, 16, bits, "max", RowGuidance(last + count - 8))
    wanted = ops.encode(x[-8:], tables, 16, bits, "max", RowGuidance(last))
    for there, here in zip(found, wanted, strict=True):
        assert torch.equal(there[-10:].view(torch.uint8), here.view(torch.uint8))
    extra = torch.randn(2, width, device="cuda").bfloat16()
    summed = x[-8:].index_add(0, last.long(), extra)
    assert torch.equal(cuda.add_rows(x, extra, last + count - 8)[-8:], summed)


@pytest.mark.parametrize(
    ("bits", "candidates", "protected", "rotation"),
    [
        (4, "max", None, 0),
        (4, "max", False, 16),
        (4, "max", True, 128),
        (4, "all", None, 32),
        (4, "all", False, 0),
        (8, "max", None, 64),
        (8, "max", True, 0),
    ],
)
def test_guided_operands_are_those_of_the_cpu(bits, candidates, protected, rotation):
    x, book = numbers(torch.bfloat16, 65)[8:], Formatbook.builtin()
    told = RowGuidance(**guidance(57, 96), protected=None if protected is None else torch.tensor([protected]))
    there = RowGuidance(*(None if part is None else part.cuda() for part in told))
    found = ops.encode(x.cuda(), list(book.tables("cuda")), 16, bits, candidates, there, InputTransform(rotation=rotation))
    assert_values(
        found, encode_activations(x, book.tables("cpu"), 16, bits, candidates, told, InputTransform(rotation=rotation))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "candidates", "rotation"), [(4, "max", 0), (4, "all", 32), (8, "max", 0), (16, "max", 0)])
def test_equalized_operands_are_those_of_the_cpu(dtype, bits, candidates, rotation):
    x, book = numbers(dtype, 65)[8:], Formatbook.builtin()
    exponents = torch.randint(-15, 16, (1536,), generator=torch.Generator().manual_seed(5), dtype=torch.int8)
    told = RowGuidance(None if bits == 16 else guidance(57, 96)["salient"])
    there = RowGuidance(None if told.salient is None else told.salient.cuda())
    transform = InputTransform(exponents.cuda(), rotation)
    found = ops.encode(x.cuda(), list(book.tables("cuda")), 16, bits, candidates, there, transform)
    transform = InputTransform(exponents, rotation)
    assert_values(found, ops.encode(x, list(book.tables("cpu")), 16, bits, candidates, told, transform))


def test_weights_encode_equalized_as_on_the_cpu():
    weight = finite(torch.bfloat16, 129)
    exponents = torch.randint(-15, 16, (1536,), generator=torch.Generator().manual_seed(5), dtype=torch.int8)
    here, there = encode(weight, equalizer=exponents), encode(weight.cuda(), equalizer=exponents.cuda())
    for name, part in here.stored.items():
        assert torch.equal(part, there.stored[name].cpu()), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("book", BOOKS)
def test_weights_encode_as_on_the_cpu(dtype, block_size, book):
    weight = finite(dtype, 129)
    weight[8] = torch.randint(-12, 13, (1536,), generator=torch.Generator().manual_seed(3)) / 8  # ties everywhere
    here, there = (encode(w, block_size=block_size, formatbook=book) for w in (weight, weight.cuda()))
    for name in ("codes", "meta", "scale"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn])
@pytest.mark.parametrize("scaled", [False, True])
def test_weights_decode_as_on_the_cpu(dtype, scaled):
    if scaled and dtype == torch.float8_e4m3fn:
        pytest.skip("E4M3 has too few digits for values")
    book, weight = Formatbook.builtin(), encode(finite(count=129)[8:])
    arrays = reference.EncodedRows(*(array.cuda() for array in (weight.codes, weight.meta, weight.scale)))
    operand, scale = cuda.decode(arrays, book.tables("cuda"), dtype, scaled)
    wanted = reference.decode_rows(weight.codes, weight.meta, book.tables("cpu"))
    if scaled:
        assert torch.equal(operand.cpu(), (wanted * weight.scale.unsqueeze(1)).to(dtype))
    else:
        assert_values((operand, scale), (wanted, weight.scale))
