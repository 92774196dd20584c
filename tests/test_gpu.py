"""On a GPU: products lose no more than bfloat16's, operators keep their contracts, models compile, calibrate and run."""

import warnings

import pytest
import torch
from gpu_numbers import DTYPES, assert_values, error, guidance
from tiny_models import TINY
from torch import nn

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, encode, quantize_model
from sedialect.cli import self_test as doctor
from sedialect.kernels import dispatch, ops, reference
from sedialect.kernels.activations import encode_activations
from sedialect.kernels.compensation import DAMPING, factorize
from sedialect.kernels.dialect_blocks import encode_calibrated_rows
from sedialect.kernels.guidance import RowGuidance
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.calibration.gathering import _product
from sedialect.sedialect_core.comparison import compare
from sedialect.sedialect_core.video.sampling import load_pipeline

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("no_kernel_fails"),
]


@pytest.mark.parametrize("precision", ["w4a4", "w4a16"])
def test_no_rows_give_no_rows(precision):
    layer = SeDialectLinear.from_linear(nn.Linear(64, 32).cuda().bfloat16(), precision=precision)
    assert layer(torch.empty(2, 0, 64, device="cuda", dtype=torch.bfloat16)).shape == (2, 0, 32)


@pytest.mark.parametrize("precision", ["w4a4", "w4a8", "w4a16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "outputs"), [(300, 768), (1, 768), (17, 768), (300, 776)])
def test_layers_lose_no_more_than_bfloat16_does(precision, dtype, count, outputs):
    torch.manual_seed(0)
    linear = nn.Linear(1536, outputs).cuda().to(dtype)
    layer = SeDialectLinear.from_linear(linear, precision=precision)
    x = torch.randn(count, 1536, device="cuda", dtype=dtype)
    activation = x.double().cpu()
    if precision != "w4a16":
        bits = {"w4a4": 4, "w4a8": 8}[precision]
        operand, scale = encode_activations(x.cpu(), layer.formatbook.tables("cpu"), 16, bits, "max")
        activation = operand.double() * scale.double().unsqueeze(1)
    wanted = activation.cuda() @ layer.dequantize(torch.float64).T + linear.bias.double()
    rounded = nn.functional.linear(x.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16())
    exact = x.bfloat16().double() @ linear.weight.bfloat16().double().T + linear.bias.bfloat16().double()
    assert layer(x).dtype == dtype
    assert error(layer(x), wanted) < 2 * error(rounded, exact)


@pytest.mark.parametrize("outputs", [768, 776])
def test_residual_rows_are_added_to_their_tokens(outputs):
    torch.manual_seed(0)
    weight, x = encode(torch.randn(outputs, 1536, device="cuda")), torch.randn(257, 1536, device="cuda").bfloat16()
    tables = list(Formatbook.builtin().tables("cuda"))
    salient = torch.cat([torch.randperm(257, device="cuda")[:64], torch.tensor([-1], device="cuda")]).int()
    bias = torch.randn(outputs, device="cuda").bfloat16()
    operand, scale = ops.encode(x, tables, 16, 4, "max", RowGuidance(salient))
    stored = reference.EncodedRows(weight.codes, weight.meta, weight.scale)
    y = ops.matmul(operand, scale, stored, bias, tables, x.dtype, salient)
    x_hat = operand.double() * scale.double().unsqueeze(1)
    x_hat[salient[:64].long()] += x_hat[257:-1]
    wanted = x_hat[:257] @ weight.dequantize(torch.float64).T + bias
    assert y.is_contiguous() and error(y, wanted) < 2 * error(wanted.bfloat16(), wanted)


@pytest.mark.parametrize("precision", ["w4a4", "w4a8"])
def test_rows_that_are_not_finite_stay_so_and_change_no_other(precision):
    layer = SeDialectLinear.from_linear(nn.Linear(256, 128).cuda().bfloat16(), precision=precision)
    x = torch.randn(40, 256, device="cuda").bfloat16()
    y = layer(x)
    x[5, 3], x[9, 200] = torch.nan, torch.inf
    spoilt = layer(x)
    others = [row for row in range(40) if row not in (5, 9)]
    assert not spoilt[[5, 9]].isfinite().any() and torch.equal(spoilt[others], y[others])


def test_operators_keep_their_contracts():
    layer = SeDialectLinear.from_linear(nn.Linear(96, 48).cuda().bfloat16())
    x = torch.randn(20, 96, device="cuda").bfloat16()
    tables = list(layer.formatbook.tables("cuda"))
    weight = (layer.weight, layer.weight_meta, layer.row_scale)
    settings = {name: value.cuda() for name, value in guidance(20, 6).items()}
    settings["protected"] = torch.tensor([False], device="cuda")
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    for bits in (4, 8, 16):
        torch.library.opcheck(ops.encode_operator, (x, tables, 16, bits, "max"), test_utils=checks)
        torch.library.opcheck(ops.linear_operator, (x, *weight, layer.bias, tables, bits, "max"), test_utils=checks)
    torch.library.opcheck(ops.encode_operator, (x, tables, 16, 4, "all"), settings, test_utils=checks)
    operand, scale = ops.encode_operator(x, tables, 16, 4, "max", **settings)
    arguments = (scale, *weight, layer.bias, tables, x.dtype, settings["salient"])
    torch.library.opcheck(ops.matmul_operator, (operand.bfloat16(), *arguments), test_utils=checks)
    # The schema check looks for changed inputs by arithmetic that torch does not have for E4M3.
    torch.library.opcheck(ops.matmul_operator, (operand, *arguments), test_utils=checks[1:2])
    gradient = torch.randn(20, 48, device="cuda").bfloat16()
    torch.library.opcheck(ops.linear_input_gradient, (gradient, *weight, tables), test_utils=checks)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_compiles_to_one_graph_for_all_steps(mode, dtype):
    model, inputs = TINY["WanTransformer3DModel"]()
    model, inputs = model.cuda().to(dtype), {name: value.to("cuda", dtype) for name, value in inputs.items()}
    with torch.no_grad():
        before = model(**inputs, return_dict=False)[0]
        quantize_model(model, SeDialectConfig())
        eager = model(**inputs, return_dict=False)[0]
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, mode=mode)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(4):
                timestep = inputs["timestep"] - 100 * torch.rand_like(inputs["timestep"])
                compiled(**inputs | {"timestep": timestep}, return_dict=False)
            found = compiled(**inputs, return_dict=False)[0].clone()
    # Fused operations round differently, so some elements fall into other bins: less than what quantizing changes. In
    # bfloat16 the roundings of a model as small as this one are as large as that.
    difference, lost = (found - eager).float().norm(), (eager - before).float().norm()
    assert difference < (0.5 if dtype == torch.float32 else 2) * lost


def test_a_compiled_layer_is_protected_without_compiling_again():
    book = Formatbook.builtin()
    tables, flag = list(book.tables("cuda")), torch.tensor([False], device="cuda")
    x = torch.randn(64, 256, device="cuda").bfloat16()

    def encoded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.encode(x, tables, 16, 4, "max", RowGuidance(protected=flag))

    torch._dynamo.reset()
    compiled = torch.compile(encoded, fullgraph=True, mode="reduce-overhead")
    for state, bits in ((False, 4), (True, 8), (False, 4), (True, 8), (True, 8)):
        flag.fill_(state)
        found = [part.clone() for part in compiled(x)]
        assert_values(found, encode_activations(x.cpu(), book.tables("cpu"), 16, bits, "max"))


def test_a_kernel_that_fails_is_replaced_with_one_warning(monkeypatch):
    from sedialect.kernels import triton_encode

    def broken(*_, **__):
        raise OSError("no ptxas here")

    x = torch.randn(20, 256, device="cuda").bfloat16()
    tables = list(Formatbook.builtin().tables("cuda"))
    wanted = ops.encode(x, tables, 16, 4, "max")
    monkeypatch.setattr(dispatch, "_FAILED", {})
    monkeypatch.setattr(triton_encode, "encode", broken)
    with pytest.warns(RuntimeWarning, match="encoding activations failed on cuda:0 .*no ptxas here"):
        found = ops.encode(x, tables, 16, 4, "max")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ops.encode(x, tables, 16, 4, "max")
    assert all(torch.equal(part.float(), other.float()) for part, other in zip((*found, *again), wanted * 2, strict=True))
    assert "no ptxas here" in dispatch.implementation("cuda").reason


def test_inputs_on_another_device_are_refused_by_name():
    layer = SeDialectLinear.from_linear(nn.Linear(64, 64))
    with pytest.raises(RuntimeError, match="the input lies on cuda:0 and the layer's weight on cpu"):
        layer(torch.randn(4, 64, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_lose_little_to_tensor_cores(dtype):
    rows = torch.randn(20_000, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = rows.double().T @ rows.double()
    moment = _product(rows.cuda())
    assert moment.dtype == torch.float32
    assert error(moment.cpu(), wanted) < (1e-6 if dtype == torch.float32 else DAMPING / 100)


def test_weights_are_calibrated_on_a_gpu_as_well_as_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    weight, seen = torch.randn(256, 512, generator=generator), torch.randn(4000, 20, generator=generator)
    seen = seen @ torch.randn(20, 512, generator=generator) + 0.3 * torch.randn(4000, 512, generator=generator)
    moment, tables = seen.T @ seen, Formatbook.builtin().tables(torch.device("cpu"))
    here = encode_calibrated_rows(weight, moment, factorize(moment, 16), tables, 16)
    moment, weight, tables = moment.cuda(), weight.cuda(), Formatbook.builtin().tables(torch.device("cuda"))
    there = encode_calibrated_rows(weight, moment, factorize(moment, 16), tables, 16)
    assert (there.error <= there.plain).all()
    assert float(there.error.sum()) == pytest.approx(float(here.error.sum()), rel=0.02)
    assert float(there.plain.sum()) == pytest.approx(float(here.plain.sum()), rel=1e-3)


def test_the_self_test_passes_on_every_gpu():
    _, sound = doctor.examine()
    assert sound


def test_the_main_job_runs_on_a_gpu():
    pipe = load_pipeline(demo.MODEL, torch.bfloat16, "cuda")
    comparison = compare(pipe, demo.request(*demo.evaluation_prompts()[0]), SeDialectConfig())
    assert comparison.fidelity.psnr > 24
