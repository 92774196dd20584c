"""What is chosen in a model: tokens with a second term, by error and attention; dialects of groups; what its plan says."""

import copy

import pytest
import tiny_models
import torch
from quantized_pipelines import layers
from semantic_settings import GROUPS

from sedialect import SeDialectConfig, quantize_model
from sedialect.sedialect_core.errors import ConfigError, ModelError
from sedialect.sedialect_core.integrations.semantics import reguide

pytestmark = pytest.mark.usefixtures("strict")


@torch.no_grad()
def test_second_terms_are_what_the_rows_lacked():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    config = SeDialectConfig(salient_ratio=1.0, salient_layers="all", modulation="keep")
    exact = copy.deepcopy(model)
    quantize_model(exact, config.override(salient_ratio=0.0, precision="w4a16"))
    wanted = exact(**inputs)[0]
    quantize_model(model, config)
    all_rows = (model(**inputs)[0] - wanted).norm()
    reguide(model, salient_ratio=0.0)
    assert all_rows < 0.3 * (model(**inputs)[0] - wanted).norm()


@torch.no_grad()
def test_groups_share_a_dialect_where_they_are_told_to():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    settings = {**GROUPS, "semantic_similarity": -1.0, "formatbook": "dialectfp4-16"}
    with pytest.raises(ModelError, match="has no sub-formatbooks, which semantic=True shares"):
        quantize_model(copy.deepcopy(model), SeDialectConfig(**settings))
    quantize_model(model, SeDialectConfig(**settings, semantic_sharing="dialect"))
    outputs = [model(**{**inputs, "timestep": torch.full_like(inputs["timestep"], time)})[0] for time in (9.0, 8.0)]
    groups = model._sedialect_steps.groups
    assert all((state.group[0] >= 0).any() for state in groups)
    assert all((state.choice[0] & 0xE0 == 0x80).all() and (state.choice[0] & 31 < 16).all() for state in groups)
    free, _ = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(free, SeDialectConfig(formatbook="dialectfp4-16"))
    alone = [free(**{**inputs, "timestep": torch.full_like(inputs["timestep"], time)})[0] for time in (9.0, 8.0)]
    assert torch.equal(outputs[0], alone[0]) and not torch.equal(outputs[1], alone[1])


@torch.no_grad()
def test_attention_error_chooses_by_error_times_received_attention():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    settings = {"salient_ratio": 0.25, "salient_by": "attention-error"}
    quantize_model(model, SeDialectConfig(**settings))
    read = {}
    layer = model.blocks[1].ffn.net[2]
    layer.register_forward_pre_hook(lambda module, inputs: read.update(x=inputs[0]))
    for time in (9.0, 8.0):
        model(**{**inputs, "timestep": torch.full_like(inputs["timestep"], time)})
    x, received = read["x"], model._sedialect_steps.blocks["blocks.1"].received[0]
    operand, scale = layer._encode(x)[:2]
    error = (operand[:48] * scale[:48, None] - x.flatten(0, 1)).square().sum(1).view(2, 24)
    wanted = (error * received).topk(6).indices + torch.tensor([[0], [24]])
    assert sorted(layer.guide(x).salient.tolist()) == sorted(wanted.flatten().tolist())
    by_error = error.topk(6).indices + torch.tensor([[0], [24]])
    assert sorted(by_error.flatten().tolist()) != sorted(wanted.flatten().tolist()), "otherwise this shows nothing"


def test_a_plan_says_what_is_done_and_settings_can_change():
    model, _ = tiny_models.TINY["WanTransformer3DModel"]()
    plan = quantize_model(model, SeDialectConfig(salient_ratio=0.1))
    salient = {layer.name: layer.salient for layer in plan.quantized if layer.salient}
    assert set(salient.values()) == {"norm", "text"} and all("attn2.to_" in name or "ffn" in name for name in salient)
    plan = reguide(model, salient_ratio=0.0)
    assert not any(layer.salient for layer in plan.layers) and all(layer.guide is None for layer in layers(model))
    with pytest.raises(ConfigError, match="block_size cannot be changed in a quantized model"):
        reguide(model, block_size=32)
