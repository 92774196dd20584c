"""State belongs to a run: modes, threads, runs that take turns, pipelines that share a model, and other processes."""

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_pipelines import build, generate

from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.semantics import probe
from sedialect.sedialect_core.semantics.runs import Runs
from sedialect.sedialect_core.semantics.state import BlockState, Flags, GroupState
from sedialect.sedialect_core.semantics.steps import StepCounter

pytestmark = pytest.mark.usefixtures("one_thread")
feature = pytest.mark.feature
EVERYTHING = {
    "salient_by": "attention",
    "salient_ratio": 0.25,
    "salient_layers": "all",
    "semantic": True,
    "semantic_window": (1, 2, 2),
    "semantic_similarity": 0.3,
    "protected_steps": (1, 1),
    "refresh_every": 1,
}
LONG = {"height": 32, "width": 64}


def enabled(family="wan", **settings):
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False, **(settings or EVERYTHING))
    return pipe, arguments


def beside(pipe):
    """A second pipeline of the same parts with a scheduler of its own."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = type(pipe)(**{**pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    return other


def run(model, latents, text, times, mode=torch.no_grad):
    with mode():
        for time in times:
            output = model(latents, torch.tensor([time]), text, return_dict=False)[0]
    return output.clone()


def inputs(seed, width=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, 2, 4, width, generator=generator), torch.randn(1, 8, 32, generator=generator)


@feature("Runs under `inference_mode` and without, in turn", "first")
@pytest.mark.parametrize(
    "modes", [("inference_mode", "no_grad", "inference_mode"), ("no_grad", "inference_mode", "enable_grad")]
)
def test_runs_under_different_modes_follow_each_other(modes):
    settings = {key: value for key, value in EVERYTHING.items() if key != "protected_steps"}
    model = enabled(**settings)[0].transformer
    latents, text = inputs(1)
    wanted = run(enabled(**settings)[0].transformer, latents, text, (900.0, 600.0, 300.0))
    for mode in modes:
        assert torch.equal(run(model, latents, text, (900.0, 600.0, 300.0), getattr(torch, mode)).detach(), wanted)


@feature(
    "Two threads, a pipeline each, one model",
    "first",
    "Attention, groups and protected steps included. Each with a VAE of its own: diffusers' keeps its cache.",
)
@pytest.mark.parametrize("family", ["wan", "hunyuan"])
@pytest.mark.parametrize("settings", [EVERYTHING, {"salient_ratio": 0.25}], ids=["everything", "norm"])
def test_threads_with_a_pipeline_each_do_not_disturb_each_other(family, settings):
    pipe, arguments = enabled(family, **settings)
    other = beside(pipe)
    other.vae, other.tokenizer = copy.deepcopy(pipe.vae), copy.deepcopy(pipe.tokenizer)  # neither may be used by two threads
    jobs = [(pipe, arguments, 4), (other, {**arguments, **LONG}, 5)]
    wanted = [generate(*job) for job in jobs]
    found = [None, None]

    def work(number):
        found[number] = [generate(*jobs[number]) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each, right in zip(found, wanted, strict=True):
        assert all(torch.equal(one, right) for one in each)


@feature(
    "A second pipeline that shares the transformer", "first", "Each with its own scheduler, in turn or within each other."
)
@pytest.mark.parametrize("family", ["wan", "hunyuan", "cogvideox"])
@pytest.mark.parametrize("steps", [4, 5])
def test_a_run_inside_another_leaves_it_alone(family, steps):
    pipe, arguments = enabled(family)
    other = beside(pipe)
    wanted, inner = generate(pipe, arguments, 4), generate(pipe, arguments, steps)
    found = []

    def between(pipe, step, time, tensors):
        if step == 1:
            found.append(generate(other, arguments, steps))
        return {}

    assert torch.equal(generate(pipe, {**arguments, "callback_on_step_end": between}, 4), wanted)
    assert torch.equal(found[0], inner)
    assert torch.equal(generate(pipe, arguments, 4), wanted), "the first one's steps are still known"


def in_turn(model, order):
    """Two runs of a plain loop, without a scheduler, in a given order of their steps."""
    given = {"a": inputs(1), "b": inputs(2)}
    times = {"a": iter((900.0, 600.0, 300.0)), "b": iter((900.0, 600.0, 300.0))}
    outputs = {}
    with torch.no_grad():
        for name in order:
            latents, text = given[name]
            outputs[name] = model(latents, torch.tensor([next(times[name])]), text, return_dict=False)[0]
    return outputs


@pytest.mark.parametrize("order", ["ababab", "aabbab", "aababb"])
def test_runs_that_take_turns_in_one_thread_keep_their_states(order):
    settings = {key: value for key, value in EVERYTHING.items() if key != "protected_steps"}
    model = enabled(**settings)[0].transformer
    wanted = in_turn(model, "aaabbb")
    model._sedialect_steps.counter.restart()
    found = in_turn(enabled(**settings)[0].transformer, order)
    assert all(torch.equal(found[name], wanted[name]) for name in "ab")


def test_runs_that_nothing_tells_apart_are_refused():
    class Pipeline(SimpleNamespace):
        pass

    pipelines = [Pipeline(scheduler=FlowMatchEulerDiscreteScheduler()) for _ in range(2)]
    for pipeline in pipelines:
        pipeline.scheduler.set_timesteps(4)
    runs, counter, prompt = Runs(), StepCounter(), torch.ones(1)
    time = pipelines[0].scheduler.timesteps[0]
    assert runs.enter([counter], pipelines, time, counter, [prompt]) is pipelines[0]
    assert runs.enter([counter], pipelines, pipelines[1].scheduler.timesteps[0], counter, [prompt]) is pipelines[1]
    with pytest.raises(ModelError, match="stand at the same step, and nothing tells their forwards apart"):
        runs.enter([counter], pipelines, time.clone(), counter, [prompt])


def test_the_first_pipeline_keeps_its_steps_when_a_second_is_made():
    pipe, arguments = enabled(protected_steps=(0, 1))
    wanted = generate(pipe, arguments, 3)
    other = beside(pipe)
    assert torch.equal(generate(pipe, arguments, 3), wanted)
    assert torch.equal(generate(other, arguments, 3), wanted)
    del other
    assert torch.equal(generate(pipe, arguments, 3), wanted)


ELSEWHERE = """
import sys, torch
import sedialect
torch.set_num_threads(1)
model, latents, text = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    for time in (900.0, 600.0, 300.0):
        output = model(latents, torch.tensor([time]), text, return_dict=False)[0]
assert all(bool(state.received.any()) for state in model._sedialect_steps.blocks.values())
torch.save(output, sys.argv[2])
"""


@feature("A model in another process (`torch.save`, `spawn`)", "first")
def test_a_model_in_another_process_looks_at_attention_there(tmp_path):
    settings = {key: value for key, value in EVERYTHING.items() if key != "protected_steps"}
    model = enabled(**settings)[0].transformer
    latents, text = inputs(1)
    wanted = run(model, latents, text, (900.0, 600.0, 300.0))
    torch.save((model, latents, text), tmp_path / "model.pt")
    command = [sys.executable, "-P", "-W", "error::UserWarning", "-c", ELSEWHERE, tmp_path / "model.pt", tmp_path / "out.pt"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "helpers")}
    subprocess.run(command, check=True, env=environment)
    assert torch.equal(torch.load(tmp_path / "out.pt"), wanted)


@pytest.mark.parametrize("state", [Flags(), BlockState(0.25), GroupState(4), probe.RUNNING])
def test_what_graphs_read_is_no_attribute_of_a_class(state):
    """Of a `threading.local`, torch 2.11 compiles the class's attribute in place of the object's, without a word."""
    assert vars(state) and not vars(state).keys() & vars(type(state)).keys()
