"""Salient tokens, groups and protected steps in whole runs: batches, guidance, broken-off runs, copies, compiled graphs."""

import copy
import pickle

import pytest
import tiny_models
import torch
from quantized_pipelines import layers
from semantic_settings import ATTENTION, EVERYTHING, GROUPS, NORM
from tiny_pipelines import build, generate
from torch._dynamo.testing import CompileCounter

from sedialect import SeDialectConfig, quantize_model
from sedialect.sedialect_core.formatbook import book

OTHERWISE = {
    **EVERYTHING,
    "salient_by": "attention-error",
    "semantic_sharing": "dialect",
    "refresh_at": (0.0, 0.5),
    "rotation": 32,
}
pytestmark = pytest.mark.usefixtures("strict")


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
