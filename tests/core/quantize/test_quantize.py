"""Plans and their execution, on every video transformer that diffusers and Open-Sora have."""

import json
import pickle

import pytest
import torch
from model_outputs import outputs
from open_sora_models import OPEN_SORA
from tiny_models import TINY
from torch import nn

from sedialect import SeDialectConfig, SeDialectLinear, TokenLayout, quantize_model
from sedialect.sedialect_core.errors import ConfigError, FormatbookError, ModelError
from sedialect.sedialect_core.plan.rules import make_plan
from sedialect.sedialect_core.quantize.apply import quantize_layers

MODELS = {**TINY, **OPEN_SORA}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["w4a4", "w4a16"])
def test_every_class_runs_quantized_and_keeps_what_must_stay(name, precision):
    model, inputs = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = outputs(model, inputs)
    plan = quantize_model(model, SeDialectConfig(precision=precision))
    quantized = outputs(model, inputs)
    assert [q.shape for q in quantized] == [p.shape for p in plain]
    # A random tiny model: near, finite, and really another one. What trained models lose is measured by the bench.
    for q, p in zip(quantized, plain, strict=True):
        assert q.isfinite().all() and (q - p).norm() < 0.5 * p.norm()
    assert any(not torch.equal(q, p) for q, p in zip(quantized, plain, strict=True))
    rewritten = {name for name, module in model.named_modules() if isinstance(module, SeDialectLinear)}
    assert rewritten == {layer.name for layer in plan.quantized}
    touched = tuple(f"{name}." for name in rewritten)
    after = model.state_dict()
    for key, value in before.items():
        if not key.startswith(touched):
            assert torch.equal(after[key], value), f"{key} changed"


@pytest.mark.parametrize("name", MODELS)
def test_left_alone_are_embedders_norms_and_heads_and_each_has_its_reason(name):
    model, _ = MODELS[name]()
    plan = make_plan(model, SeDialectConfig())
    assert all(layer.reason for layer in plan.layers)
    assert {layer.role for layer in plan.quantized} <= {"attention", "feed_forward", "modulation"}
    assert {layer.precision for layer in plan.quantized if layer.role == "modulation"} <= {"w4a16"}
    linears = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert [layer.name for layer in plan.layers] == linears


def wan() -> nn.Module:
    return TINY["WanTransformer3DModel"]()[0]


def test_plans_are_data():
    plan = make_plan(wan(), SeDialectConfig(skip=("attn2",), layer_precisions=(("ffn", "w4a8"),)))
    assert make_plan(wan(), plan.config) == plan and pickle.loads(pickle.dumps(plan)) == plan
    by_name = {layer.name: layer for layer in plan.layers}
    assert by_name["blocks.0.attn2.to_q"].reason == "skipped by the pattern 'attn2'"
    assert by_name["blocks.0.ffn.net.2"].precision == "w4a8"
    assert by_name["blocks.0.attn1.to_q"].precision == "w4a4"
    assert "4 bit" in str(plan) and "blocks.*.attn1.to_q" in str(plan)


def test_making_a_plan_changes_nothing():
    model = wan()
    before = {name: id(module) for name, module in model.named_modules()}
    make_plan(model, SeDialectConfig())
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_modulation_stays_16_bit_by_request():
    model, _ = TINY["CogVideoXTransformer3DModel"]()
    kept = make_plan(model, SeDialectConfig(modulation="keep"))
    taken = make_plan(model, SeDialectConfig())
    modulation = [layer.name for layer in taken.quantized if layer.role == "modulation"]
    assert modulation and not {layer.name for layer in kept.quantized} & set(modulation)


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in ("to_q", "to_k", "to_v", "to_out")})
        self.ff = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (self.attn[name](h).unsqueeze(1) for name in ("to_q", "to_k", "to_v"))
        x = x + self.attn["to_out"](nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + self.ff(x)


class Unknown(nn.Module):
    """A transformer that no table names."""

    def __init__(self, width: int = 64, inner: int = 128) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(3))
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj_in(x)
        for block in self.blocks:
            x = block(x)
        return self.proj_out(x)


def test_unknown_models_are_quantized_by_rules():
    torch.manual_seed(0)
    model = Unknown()
    layout = TokenLayout(order="text_video", patch=(1, 2, 2))
    plan = quantize_model(model, token_layout=layout)
    assert len(plan.quantized) == 3 * 6 and plan.token_layout == layout
    assert {layer.name for layer in plan.left_alone} == {"proj_in", "proj_out"}
    assert model(torch.randn(2, 10, 64)).isfinite().all()


def test_widths_that_the_block_size_does_not_divide_are_left_with_the_reason():
    plan = quantize_model(Unknown(width=48), SeDialectConfig(block_size=32))
    reasons = {layer.reason for layer in plan.left_alone if layer.in_features == 48 and layer.role != "embedder"}
    assert "48 inputs are not a multiple of the block size 32" in reasons
    assert {layer.in_features for layer in plan.quantized} == {128}


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(32, 32)), nn.Conv2d(3, 3, 3), Unknown(width=40, inner=40)])
def test_models_with_nothing_to_quantize_are_refused_with_the_reason(model):
    with pytest.raises(ModelError, match="no layer to quantize: "):
        quantize_model(model)


def test_quantizing_twice_is_refused():
    model = wan()
    quantize_model(model)
    with pytest.raises(ModelError, match="WanTransformer3DModel is quantized by sedialect already"):
        quantize_model(model)


def test_a_model_quantized_without_a_pipeline_saves_and_loads(tmp_path):
    model = wan()
    plan = quantize_model(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    layers = [module for module in again.modules() if isinstance(module, SeDialectLinear)]
    assert len(layers) == len(plan.quantized)
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[key], loaded[key]) for key in saved)
    with pytest.raises(ValueError, match="quantized"):
        model.to(torch.bfloat16)


def spoil_last(model: nn.Module) -> None:
    model.get_submodule("blocks.1.ffn.net.2").weight.data[0, 0] = torch.nan


def to_meta(model: nn.Module) -> None:
    model.get_submodule("blocks.1").to("meta")


def to_float8(model: nn.Module) -> None:
    linear = model.get_submodule("blocks.1.attn1.to_q")
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_last, r"blocks\.1\.ffn\.net\.2\.weight holds NaN"),
        (to_meta, r"blocks\.1\.attn1\.to_q\.weight is not in memory .* then enable offloading"),
        (to_float8, r"blocks\.1\.attn1\.to_q\.weight is torch\.float8_e4m3fn"),
    ],
)
def test_errors_leave_the_model_as_it_was(spoil, message):
    model = wan()
    spoil(model)
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(ModelError, match=message):
        quantize_model(model)
    assert {name: id(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "w8a8"}, "precision is 'w8a8'; choose one of w4a4, w4a8, w4a16"),
        ({"block_size": 64}, "block_size is 64"),
        ({"candidates": "best"}, "candidates is 'best'"),
        ({"modulation": "w4a4"}, "modulation is 'w4a4'"),
        ({"skip": ("(",)}, "no regular expression"),
        ({"layer_precisions": (("ffn", "w2a2"),)}, "w2a2"),
        ({"salience": 1}, "no setting 'salience'; did you mean 'salient_"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SeDialectConfig().override(**settings)


def test_settings_survive_as_json():
    config = SeDialectConfig.preset("compact", skip=["blocks.0"], layer_precisions=[("ffn", "w4a16")])
    assert SeDialectConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="update sedialect"):
        SeDialectConfig.from_dict({**config.to_dict(), "version": 99})
    with pytest.raises(ConfigError, match="no preset 'tiny'; there are default, plain, compact"):
        SeDialectConfig.preset("tiny")


def test_an_unknown_book_is_refused_before_anything_is_changed():
    model = wan()
    with pytest.raises(FormatbookError, match="no formatbook 'other'"):
        quantize_model(model, SeDialectConfig(formatbook="other"))
    assert not any(isinstance(module, SeDialectLinear) for module in model.modules())


def test_layers_take_the_book_and_the_settings_of_the_plan():
    model = wan()
    quantize_model(model, SeDialectConfig(formatbook="dialectfp4-16", block_size=32, candidates="all", precision="w4a8"))
    layers = [module for module in model.modules() if isinstance(module, SeDialectLinear)]
    settings = {(layer.formatbook.name, layer.block_size, layer.candidates, layer.precision) for layer in layers}
    assert settings == {("dialectfp4-16", 32, "all", "w4a8")}


def test_keep_is_handed_each_original_before_it_goes():
    model, kept = wan(), {}
    originals = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    plan = quantize_layers(model, keep=kept.__setitem__)
    assert kept == {layer.name: originals[layer.name] for layer in plan.quantized}
