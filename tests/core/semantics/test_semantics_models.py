"""Salient tokens, groups and protected steps in whole models: every family, batches, broken-off runs, compiled graphs."""

import copy
import pickle
import re
import warnings

import open_sora_models
import pytest
import tiny_models
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from open_sora_models import OPEN_SORA
from quantized_pipelines import layers
from tiny_cross_attention import kandinsky5_nabla, kandinsky6_sr
from tiny_pipelines import build, generate
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from sedialect import SeDialectConfig, SeDialectLinear, TokenLayout, quantize_model
from sedialect.sedialect_core.errors import ConfigError, ModelError
from sedialect.sedialect_core.formatbook import book
from sedialect.sedialect_core.integrations.semantics import reguide
from sedialect.sedialect_core.plan.rules import make_plan
from sedialect.sedialect_core.semantics import probe
from sedialect.sedialect_core.semantics.hook import StepHook

ATTENTION = {"salient_ratio": 0.25, "salient_by": "attention", "salient_layers": "all", "refresh_every": 2}
GROUPS = {"semantic": True, "semantic_window": (1, 2, 2), "semantic_similarity": 0.3, "refresh_every": 2}
NORM = {"salient_ratio": 0.25, "salient_layers": "all"}
PROTECTED = {"protected_steps": (1, 2)}
EVERYTHING = {**GROUPS, **ATTENTION, **PROTECTED}
OTHERWISE = {
    **EVERYTHING,
    "salient_by": "attention-error",
    "semantic_sharing": "dialect",
    "refresh_at": (0.0, 0.5),
    "rotation": 32,
}
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
BACKENDS = _AttentionBackendRegistry._backends


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
    monkeypatch.setattr("sedialect.sedialect_core.semantics.attention.QUERIES", 1 << 20)  # all of them
    attend, flex = functional.scaled_dot_product_attention, BACKENDS["flex"]

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        eye = torch.eye(key.shape[2]).expand(*key.shape[:3], -1)
        mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.float()
        seen.append(attend(query.float(), key.float(), eye, mask, *args, **kwargs).mean((1, 2)))
        return attend(query, key, value, attn_mask, *args, **kwargs)

    def spy_on_flex(query, key, value, *args, **kwargs):
        """The same for sparse attention, whose sequences come before the heads."""
        eye = torch.eye(key.shape[1], dtype=query.dtype)[:, None].expand(len(key), -1, key.shape[2], -1)
        seen.append(flex(query, key, eye, *args, **kwargs).float().mean((1, 2)))
        return flex(query, key, value, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    monkeypatch.setitem(BACKENDS, "flex", spy_on_flex)
    yield seen
    probe.unwatch_functions()


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


def one_of(inputs: dict, sample: int) -> dict:
    """The inputs of one sample of a batch of two, twice: sums of other shapes are rounded in another order."""
    return {
        key: value[[sample, sample]] if isinstance(value, torch.Tensor) and value.shape[:1] == (2,) else value
        for key, value in inputs.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["WanTransformer3DModel", "HunyuanVideoTransformer3DModel", "CogVideoXTransformer3DModel"])
@pytest.mark.parametrize("settings", [NORM, {**GROUPS, **ATTENTION}], ids=["norm", "attention and groups"])
def test_a_prompt_in_a_batch_gives_the_same_whatever_stands_beside_it(name, settings):
    model, inputs = tiny_models.TINY[name]()
    quantize_model(model, SeDialectConfig(**settings))

    def run(inputs):
        model._sedialect_steps.counter.restart()
        for time in (900.0, 600.0, 300.0):
            output = model(**{**inputs, "timestep": torch.full_like(inputs["timestep"], time)})[0]
        return output

    both = run(inputs)
    for sample in range(2):
        assert torch.allclose(run(one_of(inputs, sample))[sample], both[sample], atol=2e-5)


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


@torch.no_grad()
@pytest.mark.parametrize("name", ["WanTransformer3DModel", "CogVideoXTransformer3DModel"])
def test_guidance_in_turn_keeps_its_branches_apart(name):
    """With and without the prompt, the model is called twice a step: each call gives what it gives in a run of its own."""
    model, inputs = tiny_models.TINY[name]()
    quantize_model(model, SeDialectConfig(**{**GROUPS, **ATTENTION}))
    branches = [one_of(inputs, 0), one_of(inputs, 1)]

    def run(branches):
        model._sedialect_steps.counter.restart()
        for time in (900.0, 600.0, 300.0):
            outputs = [model(**{**one, "timestep": torch.full((1,), time)})[0] for one in branches]
        return outputs

    together = run(branches)
    for branch, output in zip(branches, together, strict=True):
        assert torch.equal(run([branch])[0], output)
    states = model._sedialect_steps.blocks.values()
    run(branches)
    assert not any(torch.equal(state.received[0], state.received[1]) for state in states)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
@pytest.mark.parametrize("settings", [EVERYTHING, OTHERWISE], ids=["everything", "otherwise"])
def test_compiled_and_eager_agree_and_compile_once(family, settings):
    torch._dynamo.reset()
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False, **settings)
    wanted = generate(pipe, arguments, steps=5)
    counter = CompileCounter()
    pipe.transformer.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        assert torch.equal(generate(pipe, arguments, steps=5), wanted)
    assert counter.frame_count == 1


@pytest.mark.parametrize("settings", [{"salient_by": "error"}, EVERYTHING], ids=["error", "everything"])
def test_a_model_that_was_just_loaded_compiles_once(settings, tmp_path, monkeypatch):
    torch._dynamo.reset()
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, **settings)
    wanted = generate(pipe, arguments, steps=4)
    pipe.transformer.save_pretrained(tmp_path)
    loaded = type(pipe.transformer).from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipe = type(pipe)(**{**pipe.components, "transformer": loaded})
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(book, "_TABLES", {})  # as on a device that no weight was encoded on
    pipe.to("cpu")
    counter = CompileCounter()
    pipe.transformer.compile(backend=counter, fullgraph=True)
    assert torch.equal(generate(pipe, arguments, steps=4), wanted)
    assert counter.frame_count == 1


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


@pytest.mark.parametrize("rotation", [0, 32])
def test_protected_steps_run_with_8_bit_activations(rotation):
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, protected_steps=(2, 3), salient_ratio=0.0, rotation=rotation)
    plain, _ = build("wan")
    plain.enable_sedialect(progress=False, precision="w4a8", rotation=rotation)
    assert torch.equal(generate(plain, arguments, steps=5), generate(pipe, arguments, steps=5))
    reguide(pipe.transformer, protected_steps=(0, 0))
    assert not torch.equal(generate(plain, arguments, steps=5), generate(pipe, arguments, steps=5))


def test_protected_steps_are_the_first_and_the_last():
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False, protected_steps=(2, 3))
    seen = []

    def note(pipe, step, time, tensors):
        seen.append(bool(pipe.transformer._sedialect_steps.flags.protected))
        return {}

    generate(pipe, {**arguments, "callback_on_step_end": note}, steps=7)
    assert seen == [True, True, False, False, True, True, True]


@pytest.mark.parametrize(
    ("family", "settings", "profiled", "grouped"),
    [
        ("wan", {"refresh_every": 0}, [0], [1]),
        ("wan", {"refresh_every": 3}, [0, 3, 6], [1, 4, 7]),
        ("wan", {"refresh_at": (0.0, 0.5, 0.99)}, [0, 4, 7], [1, 5]),
        ("wan", {"refresh_at": (0.3, 1.0)}, [2, 7], [3]),
        # The second expert takes over at step 6. It looks as it begins, if it is not to wait for a later part.
        ("wan-2.2", {"refresh_every": 0}, [0, 6], [1, 7]),
        ("wan-2.2", {"refresh_every": 4}, [0, 4, 6], [1, 5, 7]),
        ("wan-2.2", {"refresh_at": (0.0, 0.5, 0.99)}, [0, 4, 6, 7], [1, 5, 7]),
        ("wan-2.2", {"refresh_at": (0.99,)}, [7], []),
    ],
    ids=str,
)
def test_attention_is_profiled_when_the_schedule_says(family, settings, profiled, grouped, monkeypatch):
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False, **{**GROUPS, **settings})
    seen, tell = [], StepHook._tell

    def note(hook):
        tell(hook)
        seen.append((hook.counter.position, hook.counter.call, bool(hook.flags.profile), bool(hook.flags.assign)))

    monkeypatch.setattr(StepHook, "_tell", note)
    for _ in range(2):
        seen.clear()
        generate(pipe, arguments, steps=8)
        assert [place for place, call, *_ in seen if call == 0] == list(range(8))
        for call in (0, 1):
            assert [step for step, number, profile, _ in seen if profile and number == call] == profiled
            assert [step for step, number, _, assign in seen if assign and number == call] == grouped
    if family == "wan-2.2":
        assert pipe.transformer._sedialect_steps.counter.step == 5 and pipe.transformer_2._sedialect_steps.counter.step == 1


@torch.no_grad()
def test_parts_of_the_schedule_are_unknown_without_a_pipeline():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**GROUPS, refresh_at=(0.5,)))
    with pytest.raises(
        ModelError, match=r"refresh_at is \(0.5,\), but how many steps there are is known only in a diffusers"
    ):
        model(**inputs)


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


def test_a_model_that_was_quantized_before_its_pipeline_follows_it():
    pipe, arguments = build("wan")
    quantize_model(pipe.transformer, SeDialectConfig(protected_steps=(0, 1)))
    again = type(pipe)(**pipe.components)
    again.set_progress_bar_config(disable=True)
    generate(again, arguments)
    assert again.transformer._sedialect_steps.counter.total == 2


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


class Unknown(torch.nn.Module):
    """A plain module that no table knows: self-attention over a video in THW order, and a feed-forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        block = torch.nn.Module()
        block.attention = SelfAttention()
        block.mlp = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64))
        self.blocks = torch.nn.ModuleList([block])

    def forward(self, x, t):
        tokens = x.flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block.attention(tokens)
            tokens = tokens + block.mlp(tokens)
        return tokens


class SelfAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(64, 64) for _ in range(3))
        self.out = torch.nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(2, (2, 32)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_a_plain_module_is_profiled_by_the_layout_it_is_given(softmaxes):
    model, x = Unknown(), torch.randn(2, 64, 2, 4, 4)
    with pytest.raises(ModelError, match="pass token_layout"):
        quantize_model(model, SeDialectConfig(**GROUPS))
    layout = TokenLayout("video", patch=(1, 1, 1), sources=("x",))
    plan = quantize_model(model, SeDialectConfig(**{**GROUPS, **ATTENTION}), layout)
    assert all(layer.grouped and layer.salient == "attention" for layer in plan.quantized) and not plan.notes
    model(x, torch.tensor(9.0))
    received = model._sedialect_steps.blocks["blocks.0"].received[0]
    assert torch.allclose(received, softmaxes[0], atol=1e-6)


@torch.no_grad()
def test_a_grid_that_does_not_match_the_sequence_is_refused():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**GROUPS), TokenLayout("video", patch=(1, 1, 2)))
    with pytest.raises(ModelError, match="a layer reads 24 tokens where the grid has 48"):
        model(**inputs)


def salient_rows(model: torch.nn.Module, run) -> list[int]:
    """How many rows of each quantized layer's input have a second term in one forward."""
    found = []
    layers = [layer for layer in model.modules() if isinstance(layer, SeDialectLinear) and layer.guide is not None]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, args: found.append(len(layer.guide(args[0]).salient)))
    run()
    return found


@torch.no_grad()
def test_tokens_are_chosen_by_norm_among_all_rows_where_the_grid_is_not_told():
    """What every model runs with by default must not ask for anything but the input."""
    settings = SeDialectConfig(salient_ratio=0.25, salient_by="norm", salient_layers="all")
    model, inputs = tiny_models.TINY["LTXVideoTransformer3DModel"]()
    quantize_model(model, settings)
    del inputs["num_frames"]
    told = salient_rows(model, lambda: model(**inputs, video_coords=torch.rand(2, 3, 24)))
    assert 2 * 6 in told and min(told) > 0

    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, settings, TokenLayout("video", patch=(1, 1, 2)))
    assert min(salient_rows(model, lambda: model(**inputs))) > 0

    class NoSteps(Unknown):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.blocks[0].mlp(tokens + self.blocks[0].attention(tokens))

    model = NoSteps()
    quantize_model(model, settings)
    assert salient_rows(model, lambda: model(torch.randn(2, 10, 64))) == [2 * 3] * 6


@torch.no_grad()
def test_a_forward_without_its_grid_says_so():
    model, inputs = tiny_models.TINY["LTXVideoTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**ATTENTION))
    del inputs["num_frames"]
    with pytest.raises(ModelError, match="the token grid is not known: this forward lacks the arguments that tell it"):
        model(**inputs, video_coords=torch.rand(2, 3, 24))
