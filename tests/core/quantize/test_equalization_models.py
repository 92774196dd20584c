"""Equalization in whole models: chosen, carried out, saved, loaded, converted, and kept when LoRAs are fused."""

import copy
from dataclasses import replace

import diffusers
import pytest
import torch
from checkpoint_files import RECORD, WEIGHTS, record, rewrite, same
from model_outputs import outputs
from quantized_pipelines import load_two
from safetensors.torch import load_file
from tiny_models import TINY
from tiny_pipelines import build, generate

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.cli import main as cli
from sedialect.kernels import ops
from sedialect.sedialect_core.calibration import moments
from sedialect.sedialect_core.errors import ConfigError, InputError, ModelError
from sedialect.sedialect_core.plan.layers import LayerPlan
from sedialect.sedialect_core.plan.report import report_of
from sedialect.sedialect_core.quantize import weights as calibrated
from sedialect.sedialect_core.quantize.equalization import by_inputs, by_weights, column_norms
from sedialect.sedialect_core.quantize.weights import InputStatistics, WeightEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
WAN = "WanTransformer3DModel"


def plant(model: torch.nn.Module, size: float, channels: tuple[int, ...] = (3,)) -> torch.nn.Module:
    """Outlier channels `size` times as large in what self-attention and feed-forward layers of a Wan read; its function
    stays as it is."""
    rows, count = list(channels), len(model.blocks)
    projection = model.condition_embedder.time_proj
    weight, bias = projection.weight.data.view(6, -1, projection.in_features), projection.bias.data.view(6, -1)
    for shift, scale in ((0, 1), (3, 4)):
        for part in (shift, scale):
            weight[part, rows] *= size
            bias[part, rows] *= size
        for number in range(count):
            table = model.blocks[number].scale_shift_table.data[0]
            table[shift, rows] *= size
            table[scale, rows] = size * (1 + table[scale, rows]) - 1
    for block in model.blocks:
        for reader in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.ffn.net[0].proj):
            reader.weight.data[:, rows] /= size
        for attention in (block.attn1, block.attn2):
            attention.to_v.weight.data[rows] *= size
            attention.to_v.bias.data[rows] *= size
            attention.to_out[0].weight.data[:, rows] /= size
    return model


def planted(size: float = 32.0) -> tuple[torch.nn.Module, dict]:
    model, inputs = TINY[WAN]()
    return plant(model, size), inputs


def equalized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SeDialectLinear)}
    return {name: layer.weight_equalizer for name, layer in layers.items() if layer.weight_equalizer is not None}


@pytest.fixture
def folder(tmp_path):
    planted()[0].save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_planted_outliers_are_removed_and_cost_nothing():
    lost = {}
    for size in (1.0, 8.0, 32.0):
        for equalize in (True, False):
            model, inputs = planted(size)
            (wanted,) = outputs(model, inputs)
            quantize_model(model, SeDialectConfig(equalize=equalize))
            (found,) = outputs(model, inputs)
            lost[size, equalize] = float((found - wanted).norm() / wanted.norm())
    assert max(lost[8.0, True], lost[32.0, True]) < 1.15 * lost[1.0, False]
    assert lost[1.0, True] < 1.02 * lost[1.0, False]
    assert lost[32.0, False] > 1.3 * lost[1.0, False]


def test_exponents_are_of_the_columns_far_from_the_median():
    norms = torch.ones(32, dtype=torch.float64)
    norms[[1, 2, 3, 4, 5]] = torch.tensor([1 / 32, 1 / 2.7, 8, 0, 2.0**-40], dtype=torch.float64)
    found = by_weights(norms)
    assert found.dtype == torch.int8 and found.tolist()[:7] == [0, 5, 0, -3, 0, 15, 0]
    assert by_weights(torch.ones(8)) is None and by_weights(torch.zeros(8)) is None
    weights = [torch.randn(300, 8), torch.randn(40, 8)]
    torch.testing.assert_close(column_norms(weights), torch.cat(weights).double().square().mean(0).sqrt())


def test_exponents_by_inputs_split_the_scale_between_both_sides():
    rms, norms = torch.tensor([1.0, 64, 1, 0, 1, 1, 2]), torch.tensor([1.0, 1, 1 / 16, 1, 1, 1, 1])
    half, third = by_inputs(rms, norms)
    assert half.tolist() == [0, 3, 2, 0, 0, 0, 0] and third.tolist() == [0, 2, 3, 0, 0, 0, 0]


def test_the_plan_says_what_was_equalized_and_by_what():
    model, _ = planted()
    plan = quantize_model(model)
    names = {layer.name for layer in plan.quantized if layer.equalized == "weights"}
    assert names == set(equalized(model))
    assert {f"blocks.{n}.{part}" for n in (0, 1) for part in ("attn1.to_q", "attn1.to_out.0", "ffn.net.0.proj")} <= names
    by_name = {layer.name: layer for layer in plan.layers}
    assert "equalized by weights" in by_name["blocks.0.attn1.to_q"].explanation
    report = str(report_of("transformer", model, plan, 1))
    assert f"{len(names)} layers have scaled channels: {len(names)} by weights" in report
    layer = model.blocks[0].attn1.to_q
    assert by_name["blocks.0.attn1.to_q"].weight_bits(16) == layer.encoded.bits_per_element
    plain = quantize_model(planted()[0], SeDialectConfig(equalize=False))
    assert not any(layer.equalized for layer in plain.layers)
    with pytest.raises(ConfigError, match="equalize is 1; it is True or False"):
        SeDialectConfig(equalize=1)


def test_layers_of_one_input_have_the_same_exponents_and_encode_it_once(monkeypatch):
    pipe, arguments = build("wan")
    plant(pipe.transformer, 32.0)
    pipe.enable_sedialect(progress=False)
    attention = pipe.transformer.blocks[0].attn1
    q, k, v = attention.to_q, attention.to_k, attention.to_v
    assert torch.equal(q.weight_equalizer, k.weight_equalizer) and torch.equal(q.weight_equalizer, v.weight_equalizer)
    assert q.shared_input is k.shared_input is v.shared_input is not None
    calls, once = [], ops.encode
    monkeypatch.setattr(ops, "encode", lambda *a, **k: calls.append(1) or once(*a, **k))
    x = torch.randn(2, 6, q.in_features)
    for reader in (q, k, v):
        reader(x)
    assert len(calls) == 1
    assert torch.isfinite(torch.as_tensor(generate(pipe, arguments))).all()


def test_every_way_to_quantize_gives_the_same_bytes(folder, tmp_path):
    model = planted()[0]
    plan = quantize_model(model)
    loading = diffusers.WanTransformer3DModel.from_pretrained(
        folder, quantization_config=SeDialectConfig(), dtype=torch.float32
    )
    assert same(loading, model) and equalized(loading)
    assert loading._sedialect.plan.layers == plan.layers
    loading.save_pretrained(tmp_path / "saved", max_shard_size="30KB")
    again = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert same(again, model)
    assert [layer.equalized for layer in again._sedialect.plan.layers] == [layer.equalized for layer in plan.layers]
    arguments = ["quantize", str(folder), "--output", str(tmp_path / "converted"), "--dtype", "float32"]
    assert cli.main(arguments) == 0
    converted = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "converted", dtype=torch.float32)
    assert same(converted, model)
    inputs = TINY[WAN]()[1]
    assert all(torch.equal(a, b) for a, b in zip(outputs(converted, inputs), outputs(model, inputs), strict=True))
    plain = again.dequantize()
    weight = model.blocks[0].attn1.to_q.dequantize(torch.float32)
    assert torch.equal(plain.blocks[0].attn1.to_q.weight, weight)


def test_a_model_gains_one_byte_a_channel():
    sizes = []
    for equalize in (False, True):
        model = planted()[0]
        quantize_model(model, SeDialectConfig(equalize=equalize))
        layers = [module for module in model.modules() if isinstance(module, SeDialectLinear)]
        sizes.append(sum(parameter.numel() for layer in layers for parameter in layer.parameters()))
        assert bool(equalized(model)) == equalize
    assert sizes[1] - sizes[0] == sum(e.numel() for e in equalized(model).values())


EXPONENTS = "blocks.0.attn1.to_q.weight_equalizer"
DAMAGE = {
    "missing": (lambda state, _: state.pop(EXPONENTS), ModelError, f"the key '{EXPONENTS}' is missing"),
    "too large": (
        lambda state, _: state[EXPONENTS].fill_(16),
        InputError,
        f"'{EXPONENTS}' holds the exponent 16",
    ),
    "shape": (
        lambda state, _: state.update({EXPONENTS: state[EXPONENTS][:-1]}),
        ModelError,
        f"'{EXPONENTS}' is I8 .*",
    ),
    "dtype": (lambda state, _: state.update({EXPONENTS: state[EXPONENTS].float()}), ModelError, f"'{EXPONENTS}' is F32"),
    "unrecorded": (lambda state, _: record(state, equalized={}), ModelError, "weight_equalizer' belongs nowhere"),
    "unknown": (lambda state, _: record(state, equalized={"luck": ["blocks.0.attn1.to_q"]}), InputError, "do not exist"),
    "nowhere": (
        lambda state, _: record(state, equalized={"weights": ["x"]}),
        InputError,
        "an equalized layer",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_exponents_are_refused(folder, tmp_path, damage):
    load = diffusers.WanTransformer3DModel.from_pretrained
    load(folder, quantization_config=SeDialectConfig()).save_pretrained(tmp_path / "saved")
    assert RECORD in load_file(tmp_path / "saved" / WEIGHTS)
    change, error, message = DAMAGE[damage]
    rewrite(tmp_path / "saved", change)
    with pytest.raises(error, match=message):
        load(tmp_path / "saved")


def test_fused_loras_keep_the_exponents_and_unfuse_bit_for_bit():
    pipe, arguments = build("wan")
    plant(pipe.transformer, 32.0)
    pipe.enable_sedialect(progress=False)
    load_two(pipe)
    state = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    layer = pipe.transformer.blocks[1].attn1.to_k
    unfused = generate(pipe, arguments)
    pipe.fuse_lora()
    fused = pipe.transformer.state_dict()
    assert any(not torch.equal(fused[name], state[name]) for name in state if name.endswith(".weight"))
    exponents = [name for name in state if name.endswith("weight_equalizer")]
    assert exponents and all(torch.equal(fused[name], state[name]) for name in exponents)
    assert layer.base_layer.weight_equalizer is not None
    pipe.unfuse_lora()
    assert all(torch.equal(tensor, state[name]) for name, tensor in pipe.transformer.state_dict().items())
    assert torch.equal(generate(pipe, arguments), unfused)


def test_a_copied_model_gives_the_same():
    model, inputs = planted()
    quantize_model(model)
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(twin, inputs), outputs(model, inputs), strict=True))


def chosen(rows: torch.Tensor, weight: torch.Tensor, rotation: int = 0, precision: str = "w4a4", diagonal: bool = False):
    moment = rows.T @ rows / len(rows)
    statistics = InputStatistics(moment.diagonal().clone() if diagonal else moment, rows.abs().amax(0), rows, len(rows))
    width = weight.shape[1]
    kinds = {"rotation": rotation, "equalized": "weights"}
    layer = LayerPlan("one", "attention", width, len(weight), precision, 16, "for a test", **kinds)
    encoder = WeightEncoder(Formatbook.builtin(), calibration={"one": statistics})
    ((plan, encoded),) = encoder.encode([layer], lambda _: weight)
    return plan, encoded


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("rotation", [0, 16])
def test_with_inputs_in_view_exponents_are_taken_where_they_help_and_only_there(rotation, diagonal):
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(64, 64, generator=generator), torch.randn(400, 64, generator=generator)
    plan, encoded = chosen(rows, weight, rotation, diagonal=diagonal)
    assert plan.equalized == "" and encoded.equalizer is None
    size = 1 + 60.0 * (torch.arange(64) % 16 == 3)
    plan, encoded = chosen(rows * size, weight / size, rotation, diagonal=diagonal)
    assert plan.equalized in ("weights", "inputs") and plan.calibrated == (not diagonal)
    assert (encoded.equalizer[size > 1] >= 5).all() and (encoded.equalizer[size == 1].abs() <= 1).all()
    plan, encoded = chosen(rows * size, weight, rotation, diagonal=diagonal)  # the weight does not tell
    assert plan.equalized == "inputs" and (encoded.equalizer[size > 1] >= 2).all()


def test_equalized_and_calibrated_weights_lose_little_of_planted_outliers():
    generator = torch.Generator().manual_seed(1)
    weight, rows = torch.randn(96, 64, generator=generator), torch.randn(800, 64, generator=generator)
    size = 1 + 31.0 * (torch.arange(64) % 32 == 3)
    lost = []
    for x, w in ((rows, weight), (rows * size, weight / size)):
        _, encoded = chosen(x, w, precision="w4a16")
        lost.append(float((x @ (encoded.dequantize() - w).T).norm() / (x @ w.T).norm()))
    assert lost[1] < 1.1 * lost[0]


def test_a_weight_that_shares_its_input_with_none_is_asked_for_once(monkeypatch):
    """Conversion reads it from disk each time."""
    asked = []
    encode = calibrated.WeightEncoder.encode

    def counting(self, group, weight_of):
        return encode(self, group, lambda layer: asked.append(layer.name) or weight_of(layer))

    monkeypatch.setattr(calibrated.WeightEncoder, "encode", counting)
    quantize_model(planted()[0])
    assert asked.count("blocks.0.attn1.to_out.0") == 1 and asked.count("blocks.0.attn1.to_q") == 2


def test_a_glance_equalizes_by_inputs_and_calibrates_nothing(tmp_path, monkeypatch):
    real = moments.requests_of
    small = {"height": 32, "width": 48, "num_frames": 5}  # the pipeline's own size is for real models
    monkeypatch.setattr(moments, "requests_of", lambda *given: [replace(one, **small) for one in real(*given)])
    pipe, arguments = build("wan")
    plant(pipe.transformer, 32.0)
    twin = copy.deepcopy(pipe.transformer)
    cache = moments.calibrate(pipe, "glance", folder=tmp_path / "glance", progress=False)
    statistics = cache.component("transformer")["blocks.0.attn1.to_k"]
    assert statistics.moment.ndim == 1 and statistics.rows.shape[0] > 16
    peak, rms = statistics.peak, statistics.rms
    assert (rms <= peak * (1 + 1e-6)).all() and rms[3] > 8 * rms.median()
    pipe.enable_sedialect(calibration=tmp_path / "glance", progress=False)
    plan = pipe.transformer._sedialect.plan
    assert "equalized by a glance at one prompt" in str(plan)
    assert not any(layer.calibrated for layer in plan.quantized)
    assert {"weights", "inputs"} & {layer.equalized for layer in plan.quantized}
    assert torch.isfinite(torch.as_tensor(generate(pipe, arguments))).all()
    again, _ = build("wan")
    again.transformer = twin
    again.enable_sedialect(calibration="glance", progress=False)
    assert same(again.transformer, pipe.transformer)
