"""Salient tokens, groups and protected steps in whole models: every family, batches, broken-off runs, compiled graphs."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from quantized_pipelines import layers
from tiny_pipelines import build, generate
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from sedialect import Plan, SeDialectConfig, quantize_model
from sedialect.sedialect_core.errors import ConfigError, InputError, ModelError
from sedialect.sedialect_core.integrations.semantics import evidence_of, reguide
from sedialect.sedialect_core.semantics import probe
from sedialect.sedialect_core.semantics.evidence import Evidence

from . import tiny_models

ATTENTION = {"salient_ratio": 0.25, "salient_by": "attention", "salient_layers": "all", "refresh_every": 2}
GROUPS = {"semantic": True, "semantic_window": (1, 2, 2), "semantic_similarity": 0.3, "refresh_every": 2}
NORM = {"salient_ratio": 0.25, "salient_layers": "all"}
PROTECTED = {"protected_steps": (1, 2)}
EVERYTHING = {**GROUPS, **ATTENTION, **PROTECTED}
NO_PROFILE = {  # why nothing is profiled
    "HunyuanVideoFramepackTransformer3DModel": "does not tell how many tokens stand around",
    "LatteTransformer3DModel": "its sequences are single frames",
    "MiniMaxH3Transformer3DModel": "does not tell|its tokens are packed",
}
GRID_IS_NONE = {"AnyFlowFARTransformer3DModel"}  # past frames are compressed: the latents' grid is no grid of the sequence


@pytest.fixture(autouse=True)
def strict():
    """An attention that passes by unseen is a failure here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the attention of")
        yield


@pytest.fixture
def softmaxes(monkeypatch):
    """Mean over heads and queries of every explicit softmax(q k^T), in the order of the calls; watched functions call it."""
    seen = []
    probe.unwatch_functions()
    original = functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        eye = torch.eye(key.shape[2], dtype=query.dtype).expand(*key.shape[:3], -1)
        weights = original(query, key, eye, attn_mask, *args, **kwargs)
        seen.append((query.shape[2] == key.shape[2], weights.float().mean((1, 2))))
        return original(query, key, value, attn_mask, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    yield seen
    probe.unwatch_functions()


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(tiny_models.TINY.keys() - GRID_IS_NONE))
def test_attention_of_every_family_is_seen_as_it_is(name, softmaxes):
    model, inputs = tiny_models.TINY[name]()
    plan = quantize_model(model, SeDialectConfig(**{**EVERYTHING, "protected_steps": (0, 0)}))
    hook = model._sedialect_steps
    if not hook.blocks:
        assert any(re.search(NO_PROFILE[name], note) for note in plan.notes)
        assert not any(layer.grouped for layer in plan.layers)
        return
    model(**inputs)
    video = hook.flags.video_tokens
    assert video == hook.seen_layout.video_tokens > 0
    for state in hook.blocks.values():
        received = state.received[0]
        candidates = [weights for square, weights in softmaxes if square and weights.shape[1] >= video]
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


def one_of(inputs: dict, sample: int) -> dict:
    """The inputs of one sample of a batch."""
    return {
        key: value[sample : sample + 1] if isinstance(value, torch.Tensor) and value.shape[:1] == (2,) else value
        for key, value in inputs.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["WanTransformer3DModel", "HunyuanVideoTransformer3DModel", "CogVideoXTransformer3DModel"])
@pytest.mark.parametrize("settings", [NORM, {**GROUPS, **ATTENTION}], ids=["norm", "attention and groups"])
def test_two_prompts_in_a_batch_give_what_each_gives_alone(name, settings):
    model, inputs = tiny_models.TINY[name]()
    quantize_model(model, SeDialectConfig(**settings))

    def run(inputs):
        model._sedialect_steps.counter.restart()
        for time in (900.0, 600.0, 300.0):
            output = model(**{**inputs, "timestep": torch.full_like(inputs["timestep"], time)})[0]
        return output

    both = run(inputs)
    for sample in range(2):
        assert torch.allclose(run(one_of(inputs, sample))[0], both[sample], atol=2e-5)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_a_run_that_is_broken_off_does_not_change_the_next(family):
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False, **EVERYTHING)
    wanted = generate(pipe, arguments, steps=4)
    for stop in (0, 2):

        def interrupt(pipe, step, time, tensors, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return {}

        with pytest.raises(KeyboardInterrupt):
            generate(pipe, {**arguments, "callback_on_step_end": interrupt}, steps=4)
        assert torch.equal(generate(pipe, arguments, steps=4), wanted)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_compiled_and_eager_agree_and_compile_once(family):
    torch._dynamo.reset()
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False, **EVERYTHING)
    wanted = generate(pipe, arguments, steps=5)
    counter = CompileCounter()
    pipe.transformer.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        assert torch.equal(generate(pipe, arguments, steps=5), wanted)
    assert counter.frame_count == 1


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


def test_protected_steps_run_in_eight_bits():
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, protected_steps=(2, 3))
    everything_protected = generate(pipe, arguments, steps=5)
    eight, _ = build("wan")
    eight.enable_sedialect(progress=False, precision="w4a8")
    assert torch.equal(generate(eight, arguments, steps=5), everything_protected)
    seen = []

    def note(pipe, step, time, tensors):
        seen.append(bool(pipe.transformer._sedialect_steps.flags.protected))
        return {}

    generate(pipe, {**arguments, "callback_on_step_end": note}, steps=7)
    assert seen == [True, True, False, False, True, True, True]


@torch.no_grad()
def test_the_last_steps_are_unknown_without_a_pipeline():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(protected_steps=(0, 1)))
    with pytest.raises(ModelError, match="known only in a diffusers pipeline"):
        model(**inputs)
    reguide(model, protected_steps=(1, 0))
    model(**inputs)


def test_unknown_tokens_are_refused_and_windows_checked():
    block = torch.nn.Module()
    block.attn = torch.nn.Module()
    block.attn.to_q = torch.nn.Linear(32, 32)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([block])
    with pytest.raises(ModelError, match="semantic=True needs to know where the video tokens of Module stand"):
        quantize_model(model, SeDialectConfig(semantic=True))
    wan, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(wan, SeDialectConfig(semantic=True, semantic_window=(2, 3, 2)))
    with pytest.raises(ModelError, match=r"semantic_window is \(2, 3, 2\), and the grid has \(3, 2, 4\) tokens"):
        wan(**inputs)


def test_a_plan_says_what_is_done_and_settings_can_change():
    model, _ = tiny_models.TINY["WanTransformer3DModel"]()
    plan = quantize_model(model, SeDialectConfig(salient_ratio=0.1))
    salient = {layer.name: layer.salient for layer in plan.quantized if layer.salient}
    assert set(salient.values()) == {"norm", "text"} and all("attn2.to_" in name or "ffn" in name for name in salient)
    assert Plan.from_json(plan.to_json()) == plan
    plan = reguide(model, salient_ratio=0.0)
    assert not any(layer.salient for layer in plan.layers) and all(layer.guide is None for layer in layers(model))
    with pytest.raises(ConfigError, match="block_size cannot be changed in a quantized model"):
        reguide(model, block_size=32)


@torch.no_grad()
def test_copies_remember_for_themselves():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**GROUPS, **NORM))
    wanted = model(**inputs)[0]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin._sedialect_steps.counter.restart()
        assert torch.equal(twin(**inputs)[0], wanted)
        theirs, ours = twin._sedialect_steps, model._sedialect_steps
        assert theirs.flags is not ours.flags and next(iter(theirs.blocks.values())) is not next(iter(ours.blocks.values()))
        guide = next(layer.guide for layer in layers(twin) if layer.guide is not None)
        assert guide.flags is theirs.flags


@torch.no_grad()
def test_evidence_is_what_was_seen_and_speaks_for_one_model_at_one_size(tmp_path):
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**GROUPS))
    with pytest.raises(ModelError, match="no attention was profiled yet"):
        evidence_of(model)
    model(**inputs)
    evidence = evidence_of(model)
    assert evidence.grid == tiny_models.GRID and set(evidence.received) == {"blocks.0", "blocks.1"}
    state = model._sedialect_steps.blocks["blocks.1"]
    assert torch.equal(evidence.received["blocks.1"][0, 1].flatten(), state.received[0, 1])
    assert float(evidence.received["blocks.0"][0].sum((1, 2, 3)).mean()) == pytest.approx(1, abs=1e-5)
    evidence.save(tmp_path / "seen.safetensors")
    again = Evidence.load(tmp_path / "seen.safetensors")
    assert again.fingerprint == evidence.fingerprint and torch.equal(again.claims["blocks.0"], evidence.claims["blocks.0"])
    again.check(evidence.fingerprint, evidence.grid)
    other, inputs = tiny_models.TINY["SkyReelsV2Transformer3DModel"]()
    quantize_model(other, SeDialectConfig(**GROUPS))
    other(**inputs)
    theirs = evidence_of(other)
    with pytest.raises(ModelError, match=f"{evidence.fingerprint[:12]} at .*{theirs.fingerprint[:12]}"):
        again.check(theirs.fingerprint, theirs.grid)
    with pytest.raises(ModelError, match=r"at \(3, 2, 4\), not of model .* at \(3, 4, 4\)"):
        again.check(evidence.fingerprint, (3, 4, 4))
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read the evidence"):
        Evidence.load(tmp_path / "broken")


def test_a_model_that_was_quantized_before_its_pipeline_follows_it():
    pipe, arguments = build("wan")
    quantize_model(pipe.transformer, SeDialectConfig(protected_steps=(0, 1)))
    again = type(pipe)(**pipe.components)
    again.set_progress_bar_config(disable=True)
    generate(again, arguments)
    assert again.transformer._sedialect_steps.counter.total == 2
