"""Equalization: a power of two for each channel, taken from the input and given to the weight."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sedialect import Formatbook, SeDialectLinear, encode
from sedialect.kernels import ops
from sedialect.kernels.guidance import RowGuidance
from sedialect.kernels.transform import InputTransform, scale_columns, transform_rows, transform_weight
from sedialect.sedialect_core.shared_input import share_inputs

TABLES = list(Formatbook.builtin().tables())
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rows(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exponents(width: int = 96, seed: int = 2) -> torch.Tensor:
    return torch.randint(-15, 16, (width,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def layer(precision: str = "w4a4", equalizer: torch.Tensor | None = None, **settings) -> SeDialectLinear:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    encoded = encode(linear.weight.detach(), equalizer=equalizer, rotation=settings.get("rotation", 0))
    return SeDialectLinear.from_linear(linear, encoded=encoded, precision=precision, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_are_scaled_exactly(dtype):
    x, e = rows(5, 96, dtype=dtype), exponents()
    scaled = scale_columns(x, e, -1)
    assert scaled.dtype == (dtype if dtype == torch.bfloat16 else torch.float32)
    assert torch.equal(scaled.double(), x.double() * torch.exp2(-e.double()))
    assert torch.equal(scale_columns(scaled, e, 1), x.to(scaled.dtype))


def test_a_layers_product_is_the_same_in_floats():
    x, weight, transform = rows(5, 96).double(), rows(7, 96).double(), InputTransform(exponents().clamp(-4, 4), 32)
    product = transform_rows(x.float(), transform).double() @ transform_weight(weight.float(), transform).double().T
    assert (product - x @ weight.T).norm() < 1e-5 * product.norm()


@pytest.mark.parametrize("rotation", [0, 32])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equalization_comes_before_everything_else(bits, rotation, dtype):
    x, e = rows(6, 96, dtype=dtype), exponents().clamp(-6, 6)
    told = RowGuidance(torch.tensor([4], dtype=torch.int32) if bits < 16 else None)
    operand, scale = ops.encode(x, TABLES, 16, bits, "max", told, InputTransform(e, rotation))
    scaled = scale_columns(x, e, -1)
    wanted, wanted_scale = ops.encode(scaled, TABLES, 16, bits, "max", told, InputTransform(rotation=rotation))
    assert torch.equal(operand, wanted.to(operand.dtype)) and torch.equal(scale, wanted_scale)
    assert operand.dtype == (dtype if bits == 16 else torch.float32)


def test_exponents_of_zero_change_nothing():
    x, zeros = rows(6, 96), torch.zeros(96, dtype=torch.int8)
    for found, wanted in zip(
        ops.encode(x, TABLES, 16, 4, "max", transform=InputTransform(zeros)),
        ops.encode(x, TABLES, 16, 4, "max"),
        strict=True,
    ):
        assert torch.equal(found, wanted)
    plain, equalized = encode(x), encode(x, equalizer=zeros)
    assert torch.equal(plain.codes, equalized.codes) and torch.equal(plain.dequantize(), equalized.dequantize())


def test_an_encoded_weight_gives_back_the_weight_and_counts_its_exponents():
    weight, e = rows(64, 96), exponents()
    weight = scale_columns(weight, e, -1)  # columns that the equalizer makes alike
    encoded = encode(weight, equalizer=e)
    assert (encoded.dequantize() - weight).norm(dim=0).div(weight.norm(dim=0)).max() < 0.12
    assert encoded.bits_per_element == pytest.approx(encode(weight).bits_per_element + 8 / 64)
    assert list(encoded.stored) == ["", "_meta", "_scale", "_equalizer"] and encoded.stored["_equalizer"] is e
    assert list(encode(weight).stored) == ["", "_meta", "_scale"]


@pytest.mark.parametrize("precision", ["w4a4", "w4a8", "w4a16"])
@pytest.mark.parametrize("rotation", [0, 32])
def test_a_layer_is_the_plain_one_on_scaled_inputs(precision, rotation):
    e, x = exponents(), rows(2, 5, 96)
    equalized = layer(precision, e, rotation=rotation)
    plain = copy.deepcopy(equalized)
    plain.weight_equalizer = None
    assert torch.equal(equalized(x), plain(scale_columns(x, e, -1)))
    wanted = scale_columns(plain.dequantize(torch.float32), e, -1)
    assert torch.equal(equalized.dequantize(torch.float32), wanted)


@pytest.mark.parametrize("precision", ["w4a4", "w4a8", "w4a16"])
def test_the_gradient_is_straight_through_the_decoded_weight(precision):
    tested = layer(precision, exponents().clamp(-4, 4), rotation=32)
    x, gradient = rows(2, 5, 96).requires_grad_(), rows(2, 5, 40)
    tested(x).backward(gradient)
    wanted = gradient.double() @ tested.encoded.dequantize(torch.float64)
    # Sums in float32 that are rotated back, of columns that differ by up to 2^8.
    assert (x.grad.double() - wanted).norm() < 2**8 * 2**-24 * wanted.norm()
    assert tested.weight_equalizer.grad is None


def test_copies_pickles_and_states_keep_the_exponents():
    tested, x = layer(equalizer=exponents()), rows(5, 96)
    for twin in (copy.deepcopy(tested), pickle.loads(pickle.dumps(tested))):
        assert torch.equal(twin(x), tested(x)) and twin.weight_equalizer is not tested.weight_equalizer
    empty = SeDialectLinear(96, 40, equalized=True, compute_dtype=torch.float32)
    empty.load_state_dict(tested.state_dict())
    assert torch.equal(empty(x), tested(x))
    assert "weight_equalizer" not in layer().state_dict()
    tested.half()
    assert tested.weight_equalizer.dtype == torch.int8


def test_storing_a_plain_weight_removes_the_exponents():
    tested = layer(equalizer=exponents())
    tested.store(encode(rows(40, 96)))
    assert tested.weight_equalizer is None


def test_a_weight_is_encoded_again_by_the_layers_own_exponents():
    tested = layer(equalizer=exponents())
    again = tested.encode_weight(tested.dequantize(torch.float32))
    assert torch.equal(again.equalizer, tested.weight_equalizer)
    assert (again.dequantize() - tested.encoded.dequantize()).norm() < 0.05 * tested.encoded.dequantize().norm()


@pytest.mark.parametrize("trained", [False, True])
def test_a_compiled_layer_gives_the_same(trained):
    tested, x = layer(equalizer=exponents().clamp(-4, 4)), rows(5, 96).requires_grad_(trained)
    compiled = torch.compile(tested, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), tested(x))


@pytest.mark.parametrize("gradient", [False, True])
def test_the_operators_pass_torchs_own_checks(gradient):
    e, x = exponents(), rows(5, 96).requires_grad_(gradient)
    tested = layer(equalizer=e)
    arguments = (x, tested.weight, tested.weight_meta, tested.row_scale, tested.bias.detach(), TABLES, 4, "max")
    torch.library.opcheck(ops.linear_operator, arguments, {"equalizer": e, "rotation": 16})
    stored = (tested.weight, tested.weight_meta, tested.row_scale)
    torch.library.opcheck(ops.linear_input_gradient, (rows(5, 40), *stored, TABLES, e, 16))


def test_layers_of_one_input_encode_it_once(monkeypatch):
    e, x = exponents(), rows(5, 96)
    layers = [layer(equalizer=e) for _ in range(3)]
    wanted = [one(x) for one in layers]
    share_inputs(("input", one) for one in layers)
    calls = []
    encode_once = ops.encode
    monkeypatch.setattr(ops, "encode", lambda *a, **k: calls.append(1) or encode_once(*a, **k))
    assert all(torch.equal(one(x), y) for one, y in zip(layers, wanted, strict=True))
    assert len(calls) == 1
