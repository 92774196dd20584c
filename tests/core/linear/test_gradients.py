"""Training through frozen quantized layers: gradients are those of the decoded weight, with rounding as the identity."""

import pytest
import torch
from torch import nn

from sedialect import Formatbook, SeDialectLinear
from sedialect.kernels import ops

PRECISIONS = ("w4a4", "w4a8", "w4a16")


def layer(precision: str = "w4a4", dtype: torch.dtype = torch.float32, **settings) -> SeDialectLinear:
    torch.manual_seed(0)
    return SeDialectLinear.from_linear(nn.Linear(96, 40).to(dtype), precision=precision, **settings)


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("block_size", [16, 32])
def test_the_gradient_is_straight_through_the_decoded_weight(precision, block_size, dtype):
    tested = layer(precision, dtype, block_size=block_size)
    x, gradient = rows(2, 5, 96, dtype=dtype).requires_grad_(), rows(2, 5, 40, dtype=dtype)
    tested(x).backward(gradient)
    wanted = gradient.double() @ tested.encoded.dequantize(torch.float64)
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.shape == x.shape
    # One rounding of the result, and of float32 sums; so twice what rounding the exact gradient to this dtype loses.
    lost = (wanted.to(dtype).double() - wanted).norm() + 1e-7 * wanted.norm()
    assert (x.grad.double() - wanted).norm() < 2 * lost


def test_a_bias_is_trained_where_asked_and_codes_never():
    tested = layer()
    assert tested.bias is not None
    x = rows(5, 96)
    assert not tested(x).requires_grad
    tested.bias.requires_grad_()
    gradient = rows(5, 40)
    tested(x).backward(gradient)
    assert torch.allclose(tested.bias.grad, gradient.sum(0), atol=1e-6)
    assert all(p.grad is None for name, p in tested.named_parameters() if name != "bias")


def test_zero_rows_have_a_gradient_of_zero_rows():
    x = rows(0, 96).requires_grad_()
    layer()(x).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 96)


@pytest.mark.parametrize("trained", ["nothing", "input", "input and bias"])
def test_the_operator_keeps_its_contract_with_gradients(trained):
    tested = layer()
    bias = tested.bias.detach().requires_grad_(trained == "input and bias")
    x = rows(5, 96).requires_grad_(trained != "nothing")
    tables = list(Formatbook.builtin().tables())
    arguments = (x, tested.weight, tested.weight_meta, tested.row_scale, bias, tables, 4, "max")
    torch.library.opcheck(ops.linear_operator, arguments)


def test_the_operator_of_the_gradient_keeps_its_contract():
    tested = layer()
    arguments = (rows(5, 40), tested.weight, tested.weight_meta, tested.row_scale, list(Formatbook.builtin().tables()))
    torch.library.opcheck(ops.linear_input_gradient, arguments)


def test_a_compiled_training_step_is_one_graph_and_gives_the_same_gradient():
    model = nn.Sequential(nn.Linear(96, 96), layer(), nn.GELU(), nn.Linear(40, 8))
    gradients = []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        forward(rows(6, 96)).square().sum().backward()
        gradients.append([p.grad.clone() for p in (*model[0].parameters(), *model[3].parameters())])
    for eager, compiled in zip(*gradients, strict=True):
        assert eager.abs().sum() > 0 and torch.allclose(eager, compiled, rtol=1e-5, atol=1e-6)
