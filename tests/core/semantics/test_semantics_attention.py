"""The attention that is seen is the model's own: every family, sparse masks, other functions, forwards that fail."""

import copy
import re

import open_sora_models
import pytest
import tiny_models
import torch
from open_sora_models import OPEN_SORA
from semantic_settings import ATTENTION, EVERYTHING, GROUPS
from tiny_cross_attention import kandinsky5_nabla, kandinsky6_sr

from sedialect import SeDialectConfig, quantize_model
from sedialect.sedialect_core.integrations.semantics import reguide
from sedialect.sedialect_core.plan.rules import make_plan
from sedialect.sedialect_core.semantics import probe

NO_PROFILE = {  # why nothing is profiled
    "AnyFlowFARTransformer3DModel": "the token grid cannot be read",  # past frames are compressed
    "HunyuanVideoFramepackTransformer3DModel": "does not tell how many tokens stand around",
    "LatteTransformer3DModel": "its sequences are single frames",
    "MiniMaxH3Transformer3DModel": "does not tell|its tokens are packed",
    "STDiT3": "its sequences are single frames",
    "STDiT3 (apart)": "its sequences are single frames",
    "SanaVideoTransformer3DModel": "its block has no softmax self-attention",
    "SanaWMLTX2RefinerTransformer3DModel": "the token grid cannot be read",
}
MODELS = {**tiny_models.TINY, **OPEN_SORA, "Kandinsky5Transformer3DModel (nabla)": kandinsky5_nabla}
pytestmark = pytest.mark.usefixtures("strict")


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(MODELS))
def test_attention_of_every_family_is_seen_as_it_is(name, softmaxes):
    model, inputs = MODELS[name]()
    plan = quantize_model(model, SeDialectConfig(**{**EVERYTHING, "protected_steps": (0, 0)}))
    hook = model._sedialect_steps
    model(**inputs)
    by_norm = SeDialectConfig(salient_ratio=0.25, salient_layers="all")
    assert not any(
        "are off" in note and "neither video nor text" not in note for note in make_plan(MODELS[name]()[0], by_norm).notes
    )
    assert (name in NO_PROFILE) == (not hook.blocks)
    if name in NO_PROFILE:
        assert any(re.search(NO_PROFILE[name], note) for note in plan.notes)
        assert not any(layer.grouped for layer in plan.layers)
        return
    video = hook.flags.video_tokens
    assert video == hook.seen_layout.video_tokens > 0
    for state in hook.blocks.values():
        received = state.received[0]
        candidates = [weights for weights in softmaxes if weights.shape[1] >= video]
        parts = [weights[:, s : s + video] for weights in candidates for s in {0, weights.shape[1] - video}]
        rows = [row for part in parts for row in part]
        for sample in received:
            assert any(torch.allclose(sample, row, atol=1e-5) for row in rows), "no softmax gives what was noted"
        top = received.topk(state.salient.shape[2]).values.sort().values
        assert torch.equal(received.gather(1, state.salient[0]).sort().values, top)


@torch.no_grad()
@pytest.mark.parametrize("name", ["WanTransformer3DModel", "CogVideoXTransformer3DModel"])
def test_watching_changes_nothing(name):
    model, inputs = tiny_models.TINY[name]()
    before = model(**inputs)[0]
    quantized = copy.deepcopy(model)
    quantize_model(quantized, SeDialectConfig(**EVERYTHING))
    assert torch.equal(model(**inputs)[0], before), "a model that is not watched"
    plain = copy.deepcopy(model)
    quantize_model(plain, SeDialectConfig())
    first = plain(**inputs)[0]
    reguide(plain, **{**GROUPS, "semantic_similarity": 1.0, "refresh_every": 0})  # looks, and groups nothing
    assert torch.equal(plain(**inputs)[0], first)
    assert all(bool(state.received.any()) for state in plain._sedialect_steps.blocks.values())


@torch.no_grad()
@pytest.mark.parametrize("make", [kandinsky5_nabla, kandinsky6_sr])
def test_sparse_masks_are_read_in_compiled_blocks_too(make):
    torch._dynamo.reset()
    model, inputs = make()
    quantize_model(model, SeDialectConfig(**{**GROUPS, **ATTENTION}))
    wanted = model(**inputs)[0]
    states = model._sedialect_steps.blocks.values()
    received = [state.received.clone() for state in states]
    model._sedialect_steps.counter.restart()
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert torch.allclose(model(**inputs)[0], wanted, atol=1e-6)
    assert all(torch.allclose(state.received, kept, atol=1e-6) for state, kept in zip(states, received, strict=True))
    assert all(bool(kept.any()) for kept in received)


@torch.no_grad()
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_forward_that_fails_inside_an_attention_leaves_nothing_behind(failure):
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    other, others = tiny_models.TINY["CogVideoXTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**GROUPS))
    wanted, wanted_of_other = model(**inputs)[0], other(**others)[0]

    def fail(module, inputs):
        raise failure("enough")

    handle = model.blocks[1].attn1.to_out[0].register_forward_pre_hook(fail)
    with pytest.raises(failure):
        model(**inputs)
    handle.remove()
    before = {name: state.received.clone() for name, state in model._sedialect_steps.blocks.items()}
    assert torch.equal(other(**others)[0], wanted_of_other)
    assert all(torch.equal(state.received, before[name]) for name, state in model._sedialect_steps.blocks.items())
    model._sedialect_steps.counter.restart()
    assert torch.equal(model(**inputs)[0], wanted)


def softmax_attention(q, k, v, angles=None):
    """An attention function of a model's own, which torch's does not know of."""
    if angles is not None:
        q, k = open_sora_models.rotate(q, angles), open_sora_models.rotate(k, angles)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def read_rotated(q, k, v, angles=None):
    if angles is not None:
        q, k = open_sora_models.rotate(q, angles), open_sora_models.rotate(k, angles)
    return probe.Seen(q, k)


@torch.no_grad()
@pytest.mark.parametrize("name", ["MMDiTModel", "MMDiTModel (fused)"])
def test_a_model_s_own_attention_function_is_watched_by_its_name(name, monkeypatch):
    monkeypatch.setattr(open_sora_models, "attention", softmax_attention)
    model, inputs = OPEN_SORA[name]()
    quantize_model(model, SeDialectConfig(**{**GROUPS, **ATTENTION}))
    model(**inputs)
    assert not any(state.received.any() for state in model._sedialect_steps.blocks.values()), "nobody named the function"
    probe.watch_function(open_sora_models, "attention", read_rotated)
    try:
        quantize_model(again := OPEN_SORA[name]()[0], SeDialectConfig(**{**GROUPS, **ATTENTION}))
        output = again(**inputs)
    finally:
        probe.unwatch_functions()
    assert open_sora_models.attention is softmax_attention
    monkeypatch.undo()
    quantize_model(plain := OPEN_SORA[name]()[0], SeDialectConfig(**{**GROUPS, **ATTENTION}))
    assert torch.allclose(output, plain(**inputs), atol=1e-5)
    for block, state in plain._sedialect_steps.blocks.items():
        assert torch.allclose(again._sedialect_steps.blocks[block].received, state.received, atol=1e-6)
        assert state.received[0].any()
