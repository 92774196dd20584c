"""Which path layers take on which GPU, what is said about the others, and what happens when a kernel fails."""

import importlib.util
import re
import warnings

import pytest
import torch
from tiny_models import TINY

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, encode, quantize_model
from sedialect.kernels import capabilities, cuda, dispatch, reference
from sedialect.kernels.activations import encode_activations
from sedialect.sedialect_core.plan.report import implementations, report_of
from sedialect.sedialect_core.plan.rules import make_plan

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is a GPU of some compute capability."""
    monkeypatch.setattr(dispatch, "_FAILED", {})
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object() if name == "triton" else find(name, *rest))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Some GPU")

    def pretend(major: int, minor: int, torch_version: str = "2.13.0") -> torch.device:
        capabilities._refusals.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (major, minor))
        monkeypatch.setattr(torch, "__version__", torch_version)
        return GPU

    yield pretend
    capabilities._refusals.cache_clear()


def dtype_of(device: torch.device, bits: int, products: str = "auto") -> torch.dtype:
    class Input:
        dtype = torch.float16

    Input.device = device
    return capabilities.operand_dtype(Input, bits, products)


@pytest.mark.parametrize(
    ("capability", "version", "product", "operand"),
    [
        ((8, 0), "2.13.0", "INT8", torch.int8),
        ((8, 6), "2.13.0", "INT8", torch.int8),
        ((8, 9), "2.13.0", "FP8", torch.float8_e4m3fn),
        ((8, 9), "2.6.0", "bfloat16", torch.bfloat16),
        ((9, 0), "2.6.0+cu124", "FP8", torch.float8_e4m3fn),
        ((12, 0), "2.13.0", "FP8", torch.float8_e4m3fn),
    ],
)
def test_each_generation_multiplies_what_it_can(gpu, capability, version, product, operand):
    device = gpu(*capability, version)
    name, reason = dispatch.implementation(device)
    assert name == f"triton, {product} products"
    assert (product == "FP8") == ("no FP8 products" not in reason)
    assert dtype_of(device, 4) == dtype_of(device, 8) == operand and dtype_of(device, 16) == torch.float16


def test_every_refusal_has_its_sentence(gpu, monkeypatch):
    assert "Some GPU has compute capability 8.6, they need 8.9 (Ada) or newer" in dispatch.implementation(gpu(8, 6)).reason
    assert "torch 2.7.1, they need 2.8 or newer here" in dispatch.implementation(gpu(10, 0, "2.7.1")).reason
    device = gpu(9, 0)
    assert "FP8 has too few digits for 16-bit activations" in dispatch.implementation(device, "w4a16").reason
    assert "24 outputs are no multiple of 16" in dispatch.implementation(device, "w4a4", (24, 64)).reason
    assert dispatch.implementation(device, "w4a4", (32, 64)) == dispatch.implementation(device)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    name, reason = dispatch.implementation(gpu(9, 0))
    assert name == "reference" and "the package triton is not installed" in reason and "FP8 matrix products" in reason


def test_reports_name_the_layers_that_take_another_path_and_say_why(gpu):
    model, _ = TINY["WanTransformer3DModel"]()
    plan = make_plan(model, SeDialectConfig(layer_precisions=(("ffn", "w4a16"),)))
    text = implementations(gpu(9, 0), plan)
    parts = text.split("; ", 1)[1].split(" layers")
    assert text.startswith("cuda:0; 16 layers: triton, FP8 products: ") and len(parts) == 3
    assert " (blocks.*.ffn.net.*.proj, blocks.*.ffn.net.*): triton, 16-bit products: " in text
    assert "no FP8 products: FP8 has too few digits for 16-bit activations" in text


@pytest.mark.parametrize(("lies_on", "told"), [("cpu", "cuda:0, triton"), ("meta", "cuda:0, triton")])
def test_reports_are_about_the_gpu_that_an_offloaded_model_runs_on(gpu, lies_on, told):
    model, _ = TINY["WanTransformer3DModel"]()
    plan = quantize_model(model, SeDialectConfig())
    model.to(lies_on)
    assert report_of("transformer", model, plan, 0, gpu(9, 0)).implementation.startswith(told)
    assert report_of("transformer", model, plan, 0).implementation.startswith(f"{lies_on}, reference")


def test_a_gpu_without_bfloat16_multiplies_integers_and_takes_no_bfloat16(gpu):
    device = gpu(7, 5)
    name, reason = dispatch.implementation(device)
    assert name == "triton, INT8 products" and "compute capability 7.5, they need 8.9 (Ada) or newer" in reason
    assert reason.endswith("; torch._int_mm multiplies)")  # Triton compiles no matrix products for it
    assert dtype_of(device, 4) == torch.int8 and dtype_of(device, 16) == torch.float16
    assert dtype_of(device, 4, "16bit") == dtype_of(device, 8, capabilities.EXACT) == torch.float32
    assert dispatch.implementation(device, products="16bit").reason.endswith("float32 matrix products (asked for)")
    capabilities.check(GPU, GPU, torch.float16)
    with pytest.raises(RuntimeError, match="no bfloat16 units; load the model in float16: torch_dtype=torch.float16"):
        capabilities.check(GPU, GPU, torch.bfloat16)


def test_a_gpu_that_is_too_old_is_refused_with_what_would_do(gpu):
    name, reason = dispatch.implementation(gpu(7, 0))
    assert name == "none" and "compute capability 7.0; quantized layers need 7.5 (Turing)" in reason
    with pytest.raises(RuntimeError, match=r"quantized layers need 7.5 \(Turing\) or newer, or the CPU"):
        capabilities.check(GPU, GPU)


@pytest.mark.parametrize(
    ("capability", "products", "units", "told"),
    [
        ((9, 0), "int8", "int8", "INT8 matrix products (asked for)"),
        ((9, 0), "16bit", "16bit", "bfloat16 matrix products (asked for)"),
        ((9, 0), capabilities.EXACT, "fp8", "FP8 matrix products"),
        ((8, 0), capabilities.EXACT, "16bit", "bfloat16 matrix products (INT8 would round these codes too much)"),
        ((8, 9), "auto", "fp8", "FP8 and INT8 are not compared here yet, `sedialect doctor` does it"),
    ],
)
def test_products_are_what_was_asked_for_and_reports_say_so(gpu, capability, products, units, told):
    device = gpu(*capability)
    assert capabilities.units_for(device, products) == units
    assert told in dispatch.implementation(device, products=products).reason


def test_units_that_a_device_lacks_are_refused_with_the_remedy_and_never_others(gpu, monkeypatch):
    told = "products='fp8', and this device does no FP8 products: Some GPU has compute capability 8.0, they need 8.9"
    device = gpu(8, 0)
    with pytest.raises(RuntimeError, match=re.escape(told) + ".*; choose 'auto', or '16bit'"):
        capabilities.units_for(device, "fp8")
    assert dispatch.implementation(device, products="fp8").name == "none"
    assert capabilities.products_refusal(torch.device("mps"), "int8").endswith("kernels for mps; choose 'auto', or '16bit'")
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.raises(RuntimeError, match="no INT8 products: measured on NVIDIA GPUs only"):
        capabilities.units_for(gpu(8, 0), "int8")


def test_what_a_measurement_found_decides_and_is_told(gpu, monkeypatch):
    monkeypatch.setitem(capabilities.FASTER, 0, "int8")
    monkeypatch.setitem(capabilities.MEASURED, 0, "INT8 1.0 ms, FP8 1.5 ms")
    device = gpu(8, 9)
    assert dtype_of(device, 4) == torch.int8 and dtype_of(device, 4, "fp8") == torch.float8_e4m3fn
    assert dispatch.implementation(device) == (
        "triton, INT8 products",
        "Triton kernels encode and decode; INT8 matrix products (INT8 1.0 ms, FP8 1.5 ms)",
    )


def test_a_kernel_that_fails_is_replaced_for_good_with_one_warning(gpu):
    device = gpu(9, 0)
    tries = []

    def fails() -> str:
        tries.append(1)
        raise OSError("ptxas is not there\nand more")

    with pytest.warns(
        RuntimeWarning, match=r"kernel for decoding failed on cuda:0 \(OSError: ptxas is not there\); plain torch"
    ):
        assert dispatch.run("decoding", device, fails, lambda: "plain") == "plain"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.run("decoding", device, fails, lambda: "plain") == "plain"
        assert dispatch.run("encoding", device, lambda: "fast", lambda: "plain") == "fast"
    assert len(tries) == 1
    told = "plain torch for Triton kernel for decoding, since that failed: OSError: ptxas is not there"
    assert told in dispatch.implementation(device).reason


@pytest.mark.parametrize("error", [TypeError, AttributeError, NotImplementedError, RuntimeError, ImportError, ValueError])
def test_a_mistake_of_ours_is_an_error_and_never_slower(gpu, error):
    def mistaken() -> None:
        raise error("one argument too many")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match="one argument too many"):
            dispatch.run("decoding", gpu(9, 0), mistaken, lambda: "plain")
    assert dispatch._FAILED == {}


def test_what_triton_or_cuda_refuses_is_replaced(gpu):
    """A kernel that does not compile, Triton's own errors without a class, and the driver's."""
    triton = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})
    inside: dict[str, object] = {"__name__": "triton.runtime.build"}
    exec("def build():\n    raise RuntimeError('Failed to find C compiler')", inside)  # as if Triton's code had raised it

    def raises(error: Exception) -> None:
        raise error

    for number, fast in enumerate(
        (lambda: raises(triton("shared memory")), inside["build"], lambda: raises(RuntimeError("CUDA error: out of range")))
    ):
        with pytest.warns(RuntimeWarning, match=f"kernel for thing {number} failed on cuda:0"):
            assert dispatch.run(f"thing {number}", gpu(9, 0), fast, lambda: "plain") == "plain"


def test_a_product_that_cublas_refuses_is_done_in_bfloat16_with_one_warning(gpu, monkeypatch):
    device = gpu(9, 0)

    def refused(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    weight, x = encode(torch.randn(48, 256)), torch.randn(3, 256)
    tables = Formatbook.builtin().tables()
    operand, row_scale = encode_activations(x, tables, 16, 4, "max")
    lowered = (operand.mul(16).to(cuda.FP8), row_scale / 16)
    decoded = reference.decode_rows(weight.codes, weight.meta, tables).mul_(16).to(cuda.FP8), weight.scale / 16
    bias = torch.randn(48)
    monkeypatch.setattr(cuda, "fp8_product", refused)
    with pytest.warns(RuntimeWarning, match="the FP8 product of 3 x 256 x 48 failed on cpu .*NOT_SUPPORTED.*; bfloat16"):
        found = cuda.scaled_product(*lowered, *decoded, bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cuda.scaled_product(*lowered, *decoded, bias), found)
    wanted = (operand * row_scale[:, None]).double() @ weight.dequantize(torch.float64).T + bias
    assert found.dtype == torch.bfloat16 and (found - wanted).norm() < 0.01 * wanted.norm()
    assert "bfloat16 for FP8 product of 3 x 256 x 48, since that failed" in dispatch.implementation(device).reason


def test_too_little_memory_is_not_taken_for_a_kernel_that_fails(gpu):
    def fails() -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        dispatch.run("decoding", gpu(9, 0), fails, lambda: None)
    assert dispatch._FAILED == {}
    error = dispatch.explain_memory(torch.OutOfMemoryError("no room"), "decoding a weight", 71_000_000)
    assert "while decoding a weight, 71 MB. Offload" in str(error) and "no room" in str(error)


def test_inputs_on_another_device_than_the_weight_are_refused():
    layer = SeDialectLinear.from_linear(torch.nn.Linear(32, 16))
    with pytest.raises(RuntimeError, match="the input lies on meta and the layer's weight on cpu"):
        capabilities.check(torch.device("meta"), layer.weight.device)
