"""What `ops.encode` does besides encoding: residual rows, shared shapes, protected steps, rotation."""

import pytest
import torch

from sedialect import Formatbook, encode
from sedialect.kernels import ops, reference
from sedialect.kernels.activations import allowed_shapes
from sedialect.kernels.guidance import RowGuidance
from sedialect.kernels.rotation import rotate_rows
from sedialect.kernels.transform import InputTransform

BOOK = Formatbook.builtin()
TABLES = list(BOOK.tables("cpu"))


def rows(count: int = 9, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator) * torch.rand(1, width, generator=generator).exp2()


def values(operand: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return operand.float() * scale.unsqueeze(1)


@pytest.mark.parametrize("bits", [4, 8])
def test_salient_rows_gain_the_encoding_of_their_residual(bits):
    x, salient = rows(), torch.tensor([7, 2], dtype=torch.int32)
    operand, scale = ops.encode(x, TABLES, 16, bits, "max", RowGuidance(salient))
    plain, plain_scale = ops.encode(x, TABLES, 16, bits, "max")
    assert torch.equal(operand[:9], plain) and torch.equal(scale[:9], plain_scale)
    residual = x[[7, 2]] - values(plain, plain_scale)[[7, 2]]
    extra, extra_scale = ops.encode(residual, TABLES, 16, bits, "max")
    assert torch.equal(operand[9:], extra) and torch.equal(scale[9:], extra_scale)
    once = (values(plain, plain_scale)[[7, 2]] - x[[7, 2]]).square().sum()
    twice = (values(plain, plain_scale)[[7, 2]] + values(extra, extra_scale) - x[[7, 2]]).square().sum()
    assert twice < once / 50  # notes: two terms are 110 to 145 times nearer than one


def test_the_product_adds_the_extra_rows_to_their_own():
    x, salient = rows(), torch.tensor([0, 8, 3], dtype=torch.int32)
    weight = encode(rows(24))
    bias = torch.randn(24)
    rows_of_weight = reference.EncodedRows(weight.codes, weight.meta, weight.scale)
    y = ops.linear(x, rows_of_weight, bias, TABLES, 4, "max", RowGuidance(salient))
    operand, scale = ops.encode(x, TABLES, 16, 4, "max", RowGuidance(salient))
    x_hat = values(operand, scale)
    x_hat[salient.long()] += x_hat[9:]
    wanted = x_hat[:9].double() @ weight.dequantize(torch.float64).T + bias
    assert torch.allclose(y.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_rows_of_minus_one_are_zeros_and_are_added_nowhere():
    x, weight = rows(), encode(rows(24))
    x[0] = torch.nan  # the row that a careless index would take
    stored = reference.EncodedRows(weight.codes, weight.meta, weight.scale)
    few, padded = (torch.tensor(numbers, dtype=torch.int32) for numbers in ([8, 3], [8, -1, 3, -1]))
    operand, scale = ops.encode(x, TABLES, 16, 4, "max", RowGuidance(padded))
    assert (operand[[10, 12]] == 0).all() and (scale[[10, 12]] == 1).all()
    y = [ops.linear(x, stored, None, TABLES, 4, "max", RowGuidance(salient)) for salient in (few, padded)]
    assert torch.equal(y[0][1:], y[1][1:]) and y[1][0].isnan().all()


@pytest.mark.parametrize("candidates", ["max", "all"])
def test_groups_take_only_the_shapes_that_they_chose(candidates):
    x, blocks = rows(), 6
    group = torch.tensor([0, 0, 1, -1, 1, -1, 0, 2, 2], dtype=torch.int32)
    choice = torch.randint(1, 16, (3, blocks), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    allowed = allowed_shapes(group, choice)
    assert torch.equal(allowed[group >= 0], choice[group[group >= 0].long()]) and (allowed[group < 0] == 255).all()
    magnitude = (x.abs() / reference.activation_scale(x).unsqueeze(1)).view(9, blocks, 16)
    free = reference.assign(magnitude, BOOK.tables(), candidates, 13)
    bound = reference.assign(magnitude, BOOK.tables(), candidates, 13, allowed)
    assert ((allowed.long() >> (bound.dialect % 4)) & 1 == 1).all()
    kept = (allowed.long() >> (free.dialect % 4)) & 1 == 1
    assert torch.equal(bound.dialect[kept], free.dialect[kept]) and not kept.all()
    operand, scale = ops.encode(x, TABLES, 16, 4, candidates, RowGuidance(None, group, choice))
    whole, _ = ops.encode(x, TABLES, 16, 4, candidates)
    assert torch.equal(operand[group < 0], whole[group < 0])
    assert (values(operand, scale) - x).square().sum() > (values(whole, scale) - x).square().sum()


@pytest.mark.parametrize("candidates", ["max", "all"])
def test_groups_take_the_very_dialect_that_they_share(candidates):
    x = rows()
    x[4, 16:32] = 0
    group = torch.tensor([0, 0, 1, -1, 1, -1, 0, 1, 1], dtype=torch.int32)
    dialect = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    operand, scale = ops.encode(x, TABLES, 16, 4, candidates, RowGuidance(None, group, reference.SHARED_DIALECT + dialect))
    whole, _ = ops.encode(x, TABLES, 16, 4, candidates)
    tables = BOOK.tables()
    value = tables.half_units.gather(1, tables.indices.long()).float()
    for row in range(9):
        if group[row] < 0:
            assert torch.equal(operand[row], whole[row])
            continue
        for block in range(6):
            number = x[row, 16 * block : 16 * block + 16] / scale[row]
            top = number.abs().max()
            unit = 1.0 if top == 0 else 2.0 ** -(3 - int(torch.floor(torch.log2(top))))
            q = (2 * number.abs() / unit).long().clamp(max=31)
            wanted = torch.copysign(value[dialect[group[row], block].long(), q] * unit, number)
            assert torch.equal(operand[row, 16 * block : 16 * block + 16], wanted)


def test_a_protected_step_takes_eight_bits_when_the_flag_says_so():
    x, salient, flag = rows(), torch.tensor([1], dtype=torch.int32), torch.tensor([False])
    four = ops.encode(x, TABLES, 16, 4, "max", RowGuidance(salient, protected=flag))
    flag.fill_(True)
    eight = ops.encode(x, TABLES, 16, 4, "max", RowGuidance(salient, protected=flag))
    assert torch.equal(four[0], ops.encode(x, TABLES, 16, 4, "max", RowGuidance(salient))[0])
    assert torch.equal(eight[0], ops.encode(x, TABLES, 16, 8, "max", RowGuidance(salient))[0])


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_rotation_comes_before_everything_else(bits):
    x, salient = rows(), torch.tensor([4], dtype=torch.int32) if bits < 16 else None
    operand, scale = ops.encode(x, TABLES, 16, bits, "max", RowGuidance(salient), InputTransform(rotation=32))
    wanted, wanted_scale = ops.encode(rotate_rows(x, 32), TABLES, 16, bits, "max", RowGuidance(salient))
    assert torch.equal(operand, wanted) and torch.equal(scale, wanted_scale)


@pytest.mark.parametrize(
    "further",
    [{}, {"salient": torch.tensor([1, 0], dtype=torch.int32)}, {"protected": torch.tensor([True]), "rotation": 16}],
    ids=["plain", "salient", "protected"],
)
def test_the_operators_pass_torchs_own_checks(further):
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    x, weight = rows(4), encode(rows(24))
    torch.library.opcheck(ops.encode_operator, (x, TABLES, 16, 4, "max"), further, test_utils=checks)
    operand, scale = ops.encode_operator(x, TABLES, 16, 4, "max", **further)
    stored = (weight.codes, weight.meta, weight.scale, None, TABLES, torch.float32)
    torch.library.opcheck(ops.matmul_operator, (operand, scale, *stored, further.get("salient")), test_utils=checks)
