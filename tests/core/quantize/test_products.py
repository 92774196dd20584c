"""Which units multiply: what is asked for, what codes allow, and what a measurement finds."""

import json

import pytest
import torch
from tiny_models import TINY

from sedialect import SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.kernels import capabilities
from sedialect.sedialect_core.config import PRESETS
from sedialect.sedialect_core.errors import ConfigError
from sedialect.sedialect_core.integrations.semantics import reguide
from sedialect.sedialect_core.plan.report import report_of
from sedialect.sedialect_core.quantize import units
from sedialect.sedialect_core.quantize.products import check_products

GPU = torch.device("cuda", 0)
UNEVEN = ("blocks.0.attn1.to_k", "blocks.1.ffn.net.2")


def uneven_model() -> tuple[torch.nn.Module, dict]:
    """A model two of whose layers hold columns of very unlike sizes, which INT8 rounds."""
    torch.manual_seed(0)
    model, inputs = TINY["WanTransformer3DModel"]()
    for name in UNEVEN:
        linear = model.get_submodule(name)
        with torch.no_grad():
            linear.weight *= torch.logspace(-3, 0, linear.in_features)
    return model, inputs


def products_of(model: torch.nn.Module) -> dict[str, str]:
    return {name: layer.products for name, layer in model.named_modules() if isinstance(layer, SeDialectLinear)}


@pytest.mark.parametrize(("products", "instead"), [("auto", capabilities.EXACT), ("int8", "16bit")])
def test_layers_that_int8_would_round_too_much_are_named_and_run_on_other_units(products, instead):
    model, _ = uneven_model()
    plan = quantize_model(model, SeDialectConfig(products=products, equalize=False))
    found = products_of(model)
    rounded = {layer.name: layer for layer in plan.quantized if layer.integer_loss}
    queries = {f"blocks.0.attn1.to_{which}" for which in "qkv"}  # of one input, whose operands are the same
    assert {*UNEVEN, *queries} == {name for name, chosen in found.items() if chosen == instead} == set(rounded)
    assert {found[name] for name in found.keys() - rounded.keys()} == {products}
    assert len({rounded[name].integer_loss for name in queries}) == 1 and rounded[UNEVEN[0]].integer_loss > 0.02
    told = f"never on INT8 units: they would add {rounded[UNEVEN[0]].integer_loss:.0%} to its error"
    assert told in str(plan) and told in str(report_of("transformer", model, plan, 0))
    assert model.get_submodule(UNEVEN[0]).shared_input is model.get_submodule("blocks.0.attn1.to_q").shared_input


@pytest.mark.parametrize("products", ["fp8", "16bit"])
def test_other_units_round_nothing_so_that_nothing_is_asked(products, monkeypatch):
    monkeypatch.setattr(SeDialectLinear, "rounding_loss", property(lambda layer: pytest.fail("asked")))
    model, _ = uneven_model()
    assert set(products_of(model)) == set() and quantize_model(model, SeDialectConfig(products=products)).quantized
    assert set(products_of(model).values()) == {products}


@torch.no_grad()
def test_the_choice_survives_saving_can_be_changed_later_and_changes_no_file(tmp_path):
    model, inputs = uneven_model()
    quantize_model(model, SeDialectConfig(precision="w4a8", products="int8", equalize=False))
    found, whole = products_of(model), model(**inputs).sample
    model.save_pretrained(tmp_path / "int8")
    loaded = type(model).from_pretrained(tmp_path / "int8", torch_dtype=torch.float32)
    assert loaded.config.quantization_config.products == "int8" and products_of(loaded) == found
    assert torch.equal(loaded(**inputs).sample, whole)
    plan = reguide(loaded, products="16bit")
    assert set(products_of(loaded).values()) == {"16bit"} and not any(layer.integer_loss for layer in plan.layers)
    exact = loaded(**inputs).sample
    assert 0 < float((exact - whole).norm() / whole.norm()) < 0.02
    reguide(loaded, products="int8")
    assert products_of(loaded) == found and torch.equal(loaded(**inputs).sample, whole)


@torch.no_grad()
@pytest.mark.parametrize("preset", PRESETS)
def test_integers_give_what_float32_gives_but_for_their_rounding(preset):
    outputs = {}
    for products in ("16bit", "int8"):
        torch.manual_seed(0)
        model, inputs = TINY["WanTransformer3DModel"]()
        quantize_model(model, SeDialectConfig.preset(preset, products=products))
        outputs[products] = model(**inputs).sample
        operand = model.blocks[0].ffn.net[2]._encode(torch.randn(3, model.blocks[0].ffn.net[2].in_features)).operand
        assert (operand.dtype == torch.int8) == (products == "int8" and preset != "weight-only")
    a, b = outputs.values()
    assert (a - b).norm() < 0.02 * a.norm() and torch.equal(a, b) >= (preset == "weight-only")


def test_units_that_the_gpu_lacks_are_refused_before_anything_is_done(monkeypatch):
    refused = capabilities.Refusals(None, None, "Some GPU has 8.0, they need 8.9", "not here")
    monkeypatch.setattr(capabilities, "refusals", lambda device: refused)
    with pytest.raises(ConfigError, match="products='fp8', and this device does no FP8 products: Some GPU.*choose 'auto'"):
        check_products(GPU, "fp8")
    with pytest.raises(ConfigError, match="no INT8 products: not here"):
        check_products(GPU, "int8")
    check_products(GPU, "auto")
    check_products(torch.device("cpu"), "fp8")


@pytest.fixture
def ada(monkeypatch, tmp_path):
    """A GPU of 8.9, whose times are told; gives how often it was measured."""
    calls: list[int] = []

    def measure(device: torch.device) -> dict[str, float]:
        calls.append(1)
        return {"fp8": 1.5, "int8": 1.0}

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(capabilities, "FASTER", {})
    monkeypatch.setattr(capabilities, "MEASURED", {})
    monkeypatch.setattr(capabilities, "refusals", lambda device: capabilities.Refusals(None, None, None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "RTX 4090")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(units, "measure", measure)
    return calls


def test_faster_units_are_measured_once_and_kept_on_disk(ada):
    told = units.compare_units(GPU)
    assert told == "measured for 8192 x 3072 x 3072: FP8 1.50 ms, INT8 1.00 ms" and capabilities.FASTER == {0: "int8"}
    assert capabilities.units_for(GPU) == "int8" and capabilities.units_for(GPU, capabilities.EXACT) == "fp8"
    capabilities.FASTER.clear()
    assert units.compare_units(GPU) == told and ada == [1]
    (key,) = json.loads(units.measured_file().read_text())
    assert key.startswith("RTX 4090; torch ") and "; triton " in key
    capabilities.FASTER.clear()
    units.measured_file().write_text('{"RTX 4090": 3}')
    assert units.compare_units(GPU) == told and ada == [1, 1]


def test_nothing_is_measured_where_it_does_not_matter_or_a_graph_is_made(ada, monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert units.compare_units(GPU, "fp8") is None
    with FakeTensorMode():
        assert units.compare_units(GPU) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert units.compare_units(GPU) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert units.compare_units(GPU) is None and ada == [] and capabilities.FASTER == {}


def test_what_cannot_be_kept_or_measured_is_said(ada, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/proc/nowhere")
    assert "(not kept: cannot write /proc/nowhere" in units.compare_units(GPU) and capabilities.FASTER == {0: "int8"}
    capabilities.FASTER.clear()

    def full(device: torch.device) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(units, "measure", full)
    assert units.compare_units(GPU).endswith("too little GPU memory is free; FP8 runs")
    assert capabilities.FASTER == {0: "fp8"}


def test_what_is_measured_runs(monkeypatch):
    """On the CPU, with a small layer and a clock of its own."""
    for name, value in (("ROWS", 32), ("WIDTH", 64), ("OUTPUTS", 32), ("ROUNDS", 3)):
        monkeypatch.setattr(units, name, value)
    monkeypatch.setattr(units, "_milliseconds", lambda call, device: float(call().shape[0]))
    assert units.measure(torch.device("cpu")) == {"fp8": 32.0, "int8": 32.0}
