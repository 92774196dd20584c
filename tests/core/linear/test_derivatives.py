"""`torch.func`, forward-mode derivatives and vmap on quantized layers: right, or an error, and never a wrong number."""

import diffusers
import pytest
import torch
from quantized_pipelines import WEIGHT_ONLY
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from sedialect import SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.sedialect_core.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
feature = pytest.mark.feature
FUNC = feature(
    "`torch.func`, forward-mode derivatives, `vmap`",
    "first",
    "Rounding counts as the identity. With attention, groups or protected steps: refused, as they are remembered between "
    "steps.",
)
SETTINGS = [{}, {"precision": "w4a16"}, {"precision": "w4a8", "rotation": 32}, {"block_size": 32, "candidates": "all"}]


def layer(**settings) -> SeDialectLinear:
    torch.manual_seed(0)
    return SeDialectLinear.from_linear(nn.Linear(96, 40), **settings)


def rows(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-5, atol=2e-6 * float(wanted.abs().max()))


@FUNC
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_forward_derivative_is_that_of_the_decoded_weight(settings, grad):
    tested, x, v = layer(**settings), rows(2, 5, 96), rows(2, 5, 96, seed=2)
    wanted = v @ tested.dequantize(torch.float32).T
    with torch.set_grad_enabled(grad):
        y, derivative = torch.func.jvp(tested, (x,), (v,))
        _, linearized = torch.func.linearize(tested, x)
        assert torch.equal(y, tested(x)) and near(derivative, wanted) and near(linearized(v), wanted)
        with forward_ad.dual_level():
            assert near(forward_ad.unpack_dual(tested(forward_ad.make_dual(x, v))).tangent, wanted)


def test_float_types_keep_their_type():
    tested = layer()
    for dtype in (torch.float16, torch.bfloat16):
        x, v = rows(5, 96).to(dtype), rows(5, 96, seed=2).to(dtype)
        y, derivative = torch.func.jvp(tested, (x,), (v,))
        assert y.dtype == derivative.dtype == dtype and torch.equal(y, tested(x))
        wanted = v.float() @ tested.dequantize(torch.float32).T
        assert (derivative.float() - wanted).abs().max() < torch.finfo(dtype).eps * wanted.abs().max()


@FUNC
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_jacobians_and_hessians(settings):
    tested, x = layer(**settings), rows(96)
    weight = tested.dequantize(torch.float32)
    assert near(torch.func.jacfwd(tested)(x), weight) and near(torch.func.jacrev(tested)(x), weight)

    def loss(x):
        return tested(x).square().sum()

    assert near(torch.func.grad(loss)(x), 2 * tested(x).detach() @ weight)
    assert near(torch.func.hessian(loss)(x), 2 * weight.T @ weight)
    assert near(torch.func.jacrev(torch.func.jacfwd(loss))(x), 2 * weight.T @ weight)


@pytest.mark.filterwarnings("error")
def test_gradients_of_gradients():
    tested, x = layer(), rows(5, 96).requires_grad_()
    weight = tested.dequantize(torch.float32)
    (once,) = torch.autograd.grad(tested(x).square().sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(once.square().sum(), x, create_graph=True)
    assert near(twice.detach(), 2 * once.detach() @ (2 * weight.T @ weight))
    assert torch.autograd.grad(twice.square().sum(), x)[0].abs().max() > 0


@FUNC
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_mapping_over_inputs_gives_what_each_gives(settings):
    tested, x = layer(**settings), rows(3, 5, 96)
    wanted = torch.stack([tested(one) for one in x])
    assert near(torch.vmap(tested)(x), wanted)
    assert near(torch.vmap(tested, in_dims=2, out_dims=1)(x.movedim(0, 2)), wanted.movedim(0, 1))
    assert near(torch.vmap(torch.vmap(tested))(x), wanted)
    weight = tested.dequantize(torch.float32)
    gradients = torch.vmap(torch.func.grad(lambda one: tested(one).sum()))(x)
    assert near(gradients, weight.sum(0).expand_as(gradients))


def test_the_bias_has_its_derivative():
    tested, x = layer(), rows(5, 96)

    def of_bias(bias):
        return torch.func.functional_call(tested, {"bias": bias}, (x,)).sum()

    assert torch.allclose(torch.func.grad(of_bias)(tested.bias), torch.full((40,), 5.0))
    biases, v = rows(3, 40), rows(40, seed=2)
    assert near(torch.func.jvp(of_bias, (tested.bias,), (v,))[1], 5 * v.sum())
    assert near(torch.vmap(of_bias)(biases), torch.stack([of_bias(bias) for bias in biases]))


def test_mapping_over_weights_is_refused():
    models = [layer(), layer()]
    parameters, buffers = torch.func.stack_module_state(models)

    def call(parameters, buffers, x):
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))

    with pytest.raises(RuntimeError, match="packed codes cannot be stacked|Batching rule not implemented"):  # torch 2.6's
        torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, rows(5, 96))


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiled_derivatives(backend):
    tested, x, v = layer(), rows(5, 96), rows(5, 96, seed=2)
    weight = tested.dequantize(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, v: torch.func.jvp(tested, (x,), (v,))[1], backend=backend)
    assert near(compiled(x, v), v @ weight.T)
    compiled = torch.compile(torch.func.grad(lambda x: tested(x).square().sum()), backend=backend)
    assert near(compiled(x), 2 * tested(x).detach() @ weight)
    torch._dynamo.reset()


# Whole models


def model(**settings):
    torch.manual_seed(7)
    size = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2}
    made = diffusers.WanTransformer3DModel(**size, text_dim=32, freq_dim=32, ffn_dim=96).eval()
    return made, quantize_model(made, SeDialectConfig(**settings)) if settings else None


def velocity(transformer):
    text = rows(1, 8, 32, seed=3)
    return lambda latents: transformer(latents, torch.tensor([500]), text, return_dict=False)[0]


@FUNC
@pytest.mark.parametrize("settings", [WEIGHT_ONLY, {**WEIGHT_ONLY, "rotation": 32}], ids=["plain", "rotated"])
def test_the_derivative_of_a_transformer_is_that_of_the_decoded_one(settings):
    quantized, plain = model(**settings)[0], model()[0]
    for name, module in quantized.named_modules():
        if isinstance(module, SeDialectLinear):
            plain.get_submodule(name).weight.data.copy_(module.dequantize(torch.float32))
    x, v = rows(1, 16, 2, 4, 6), rows(1, 16, 2, 4, 6, seed=2)
    with sdpa_kernel(SDPBackend.MATH):  # torch has no forward derivative of the others
        found, wanted = (torch.func.jvp(velocity(each), (x,), (v,))[1] for each in (quantized, plain))
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
        losses = (lambda x, each=each: velocity(each)(x).square().sum() for each in (quantized, plain))
        gradients = [torch.func.grad(loss)(x) for loss in losses]
        assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


@FUNC
def test_rows_with_second_terms_are_chosen_for_each_input_of_a_map():
    quantized = model(salient_ratio=0.25, salient_layers="all")[0]
    tested, x = quantized.blocks[0].ffn.net[0].proj, rows(3, 2, 12, 64)
    assert tested.guide is not None
    wanted = torch.stack([tested(one) for one in x])
    tested.guide, guide = None, tested.guide
    assert not near(tested(x), wanted), "no row has a second term"
    tested.guide = guide
    assert near(torch.vmap(tested)(x), wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"salient_by": "attention", "salient_ratio": 0.25},
        {"semantic": True, "semantic_window": (1, 2, 2)},
        {"protected_steps": (1, 0)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_remembered_between_steps_is_refused_under_transforms(settings):
    run, x = velocity(model(**settings)[0]), rows(1, 16, 2, 4, 6)
    for transform in (lambda x: torch.func.jvp(run, (x,), (x,)), torch.vmap(run), torch.func.grad(lambda x: run(x).sum())):
        with pytest.raises(ModelError, match=r"transforms of torch\.func allow no memory"):
            transform(x)
