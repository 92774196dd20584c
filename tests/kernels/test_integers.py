"""Operands of INT8 units: what is exact in them, what is rounded, and that kernels agree with the specification."""

import pytest
import torch
from interpreted import decoded, encoded, interpreter

from sedialect.kernels import integers, ops, reference
from sedialect.kernels.activations import encode_activations
from sedialect.kernels.guidance import UNGUIDED, RowGuidance
from sedialect.kernels.transform import InputTransform
from sedialect.sedialect_core.formatbook import Formatbook

__all__ = ["interpreter"]

TABLES = Formatbook.builtin().tables("cpu")
WHOLE = InputTransform(products="int8")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """Rows whose blocks differ by up to 2^20, rows of zeros, of tiny numbers, and one that is not finite."""
    rows = torch.randn(9, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 96)
    rows[3], rows[5] = 0, rows[5] * 1e-30
    rows[4, 1] = torch.nan
    return rows


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("salient", [None, torch.tensor([1, -1, 5], dtype=torch.int32)], ids=["rows", "with residual rows"])
def test_the_kernel_rounds_as_the_specification_does(interpreter, x, bits, salient):
    guidance = UNGUIDED if salient is None else RowGuidance(salient)
    operand, scale = interpreter(encoded, x, TABLES, 16, bits, "max", torch.int8, guidance, WHOLE)
    wanted, wanted_scale = encode_activations(x, TABLES, 16, bits, "max", guidance, WHOLE)
    assert operand.dtype == torch.int8 and torch.equal(operand.float(), wanted)
    assert torch.equal(scale.nan_to_num(7), wanted_scale.nan_to_num(7))


def test_dialects_are_exact_down_to_an_eighth_of_the_row_scale(x):
    """Blocks with an exponent offset of at most 3 lose nothing; others are off by a sixteenth of the scale at most."""
    finite = x[:3]
    plain, scale = encode_activations(finite, TABLES, 16, 4, "max")
    whole, lowered = encode_activations(finite, TABLES, 16, 4, "max", UNGUIDED, WHOLE)
    assert torch.equal(lowered, scale / 8) and whole.abs().max() <= 120
    offset = (whole / 8 - plain).abs()
    blocks = plain.view(3, 6, 16).abs().amax(2) >= 1  # a maximum of 8 or more, times 2^-3
    assert blocks.any() and not blocks.all()
    assert offset.view(3, 6, 16)[blocks].max() == 0 and 0 < offset.max() <= 1 / 16


def test_a_weight_is_decoded_alike_by_the_kernel(interpreter):
    weight = reference.encode_weight_rows(torch.randn(20, 96) * torch.logspace(-2, 0, 96), TABLES, 16)
    operand, scale = interpreter(decoded, weight, TABLES, torch.int8, False)
    wanted, wanted_scale = integers.decode_rows(weight, TABLES)
    assert torch.equal(operand, wanted) and torch.equal(scale, wanted_scale)


def test_the_loss_by_rounding_is_what_it_is():
    """Against the weight itself, where rounding is independent of the code's own error; and 0 where nothing is rounded."""
    even, uneven = torch.randn(64, 512), torch.randn(64, 512) * torch.logspace(-2, 0, 512)
    for weight, bounds in ((even, (0, 1e-3)), (uneven, (0.02, 0.5))):
        encoded_weight = reference.encode_weight_rows(weight, TABLES, 16)
        exact = reference.decode_rows(encoded_weight.codes, encoded_weight.meta, TABLES) * encoded_weight.scale[:, None]
        operand, scale = integers.decode_rows(encoded_weight, TABLES)
        own = (exact - weight).square().sum()
        added = (operand * scale[:, None] - weight).square().sum() / own - 1
        loss = integers.rounding_loss(encoded_weight, TABLES)
        assert bounds[0] <= loss < bounds[1]
        assert loss == pytest.approx(float(added), rel=0.35, abs=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_products_of_integers_are_those_of_the_rounded_numbers(bits):
    x, bias = torch.randn(7, 128), torch.randn(40)
    weight = reference.encode_weight_rows(torch.randn(40, 128), TABLES, 16)
    operand, scale = ops.encode(x, list(TABLES), 16, bits, "max", transform=WHOLE)
    y = ops.matmul(operand, scale, weight, bias, list(TABLES), torch.float32)
    decoded_weight, lowered = integers.decode_rows(weight, TABLES)
    exact = (operand.double() * scale[:, None].double()) @ (decoded_weight.double() * lowered[:, None].double()).T + bias
    assert operand.dtype == torch.int8 and (y - exact).abs().max() < 1e-6 * exact.abs().max() * 8
    assert torch.equal(ops.linear(x, weight, bias, list(TABLES), bits, "max", transform=WHOLE), y)
