"""On a GPU: kernels give the reference's bits, products lose no more than bfloat16's, models compile and graph."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from tiny_models import TINY
from torch import nn

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, encode, quantize_model
from sedialect.cli import self_test as doctor
from sedialect.kernels import capabilities, cuda, dispatch, ops, reference
from sedialect.kernels.activations import encode_activations
from sedialect.kernels.compensation import DAMPING, factorize
from sedialect.kernels.dialect_blocks import encode_calibrated_rows
from sedialect.kernels.guidance import RowGuidance
from sedialect.kernels.transform import InputTransform
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.calibration.gathering import _product
from sedialect.sedialect_core.comparison import compare
from sedialect.sedialect_core.quantize.apply import quantize_layers
from sedialect.sedialect_core.video.sampling import load_pipeline

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BOOKS = ["sedialect-32", "dialectfp4-16"]


@pytest.fixture(autouse=True)
def no_kernel_fails():
    """What something else had to stand in for would make these tests say nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the (Triton kernel|FP8 product)")
        yield


def numbers(dtype: torch.dtype = torch.float32, count: int = 257, width: int = 1536) -> torch.Tensor:
    """Rows over many exponents, with zeros, a huge value, subnormal numbers and rows that are not finite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator) * torch.rand(count, width, generator=generator).mul(-12).exp2()
    x *= torch.logspace(-8, 4, count)[:, None]
    x[3], x[4, 5], x[5], x[6, 7], x[7, 9] = 0, 1e30, 1e-41, torch.nan, -torch.inf
    x[:, 16:32] = 0
    return x.to(dtype)


def finite(dtype: torch.dtype = torch.float32, count: int = 257, width: int = 1536) -> torch.Tensor:
    return numbers(dtype, count, width).nan_to_num(1.0, 1.0, -1.0)


def guidance(count: int, blocks: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = torch.randint(1, 16, (3, blocks), generator=generator, dtype=torch.uint8)
    dialects = torch.randint(0, 32, (2, blocks), generator=generator, dtype=torch.uint8)
    return {
        "salient": torch.cat([torch.randperm(count, generator=generator)[: count // 4], torch.tensor([-1, -1])]).int(),
        "group": torch.randint(-1, 5, (count,), generator=generator).int(),
        "choice": torch.cat([shapes, reference.SHARED_DIALECT + dialects]),
    }


def assert_values(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Operands times row scales are the same numbers; in float64, which holds them all."""
    there, here = ((operand.double().cpu() * scale.double().cpu().unsqueeze(1)) for operand, scale in (found, wanted))
    assert torch.equal(there.isnan(), here.isnan())
    assert torch.equal(there.nan_to_num(), here.nan_to_num())


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm()).detach())


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


@pytest.mark.parametrize("precision", ["w4a4", "w4a16"])
def test_no_rows_give_no_rows(precision):
    layer = SeDialectLinear.from_linear(nn.Linear(64, 32).cuda().bfloat16(), precision=precision)
    assert layer(torch.empty(2, 0, 64, device="cuda", dtype=torch.bfloat16)).shape == (2, 0, 32)


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


@contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """So much is left to allocate; what other tests have left in the allocator's cache is taken, too."""
    total, held = torch.cuda.get_device_properties(0).total_memory, []
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    for size in (1 << 28, 1 << 24, 1 << 20):
        with suppress(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (megabytes << 20)) / total)
    try:
        yield
    finally:
        held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_running_out_of_memory_says_of_what():
    layer = SeDialectLinear.from_linear(nn.Linear(4096, 4096).cuda().bfloat16())
    x = torch.randn(1 << 16, 4096, device="cuda", dtype=torch.bfloat16)
    with little_memory(300), pytest.raises(torch.OutOfMemoryError, match=r"out of GPU memory while .* MB\. Offload"):
        layer(x)


def test_running_out_of_memory_while_quantizing_says_how_to_quantize():
    weight = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    message = "encoding a weight of 8192 x 8192, 34 MB. Quantize while .* CPU"
    with little_memory(16), pytest.raises(torch.OutOfMemoryError, match=message):
        encode(weight)


def test_inputs_on_another_device_are_refused_by_name():
    layer = SeDialectLinear.from_linear(nn.Linear(64, 64))
    with pytest.raises(RuntimeError, match="the input lies on cuda:0 and the layer's weight on cpu"):
        layer(torch.randn(4, 64, device="cuda"))


def test_decoded_weights_live_for_one_product():
    layers = nn.Sequential(*(SeDialectLinear.from_linear(nn.Linear(2048, 2048).cuda().bfloat16()) for _ in range(8)))
    x = torch.randn(64, 2048, device="cuda").bfloat16()
    with torch.no_grad():
        layers(x)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layers(x)
    assert torch.cuda.max_memory_allocated() - before < 1.5 * 2048 * 2048


def test_a_model_on_the_cpu_is_encoded_on_the_gpu_one_layer_at_a_time():
    torch.manual_seed(0)
    model, _ = TINY["WanTransformer3DModel"]()
    model.blocks[0].ffn.net[2] = nn.Linear(8192, 2048)
    model.blocks[1].ffn.net[2] = nn.Linear(8192, 2048)
    twin = copy.deepcopy(model)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    quantize_layers(model)
    peak = torch.cuda.max_memory_allocated() - before
    quantize_layers(twin, device="cpu")
    elements = 8192 * 2048
    assert 4 * elements < peak < 1.25 * 4 * elements, "one float32 weight, and its codes"
    for (name, here), there in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert here.device.type == "cpu" and torch.equal(here, there), name


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
