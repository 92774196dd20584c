"""The LoRA for four steps without guidance: its training, its file, and the command that runs it."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sedialect.cli import main as cli
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.video.sampling import Request, generate, load_pipeline
from sedialect.training import few_steps
from sedialect.training.distilling import (
    Deadline,
    Denoiser,
    Student,
    guided_run,
    schedule_of,
    smoke_distillation,
    teach,
    tokens_of,
)

SMALL = {"height": 32, "width": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LoRA of a few updates."""
    folder = tmp_path_factory.mktemp("few_steps")
    few_steps.main(["--smoke", "--device", "cpu", "--output", str(folder)])
    return folder / few_steps.NAME


def test_training_writes_a_small_lora_and_its_record(trained):
    record = json.loads(trained.with_suffix(".json").read_text())
    assert record["runs"] == 4 and set(record["distance"]) == {"untrained", "segments", "runs"}
    assert record["bytes"] == trained.stat().st_size < 400_000
    layers = load_file(trained)
    assert all(value.dtype == torch.bfloat16 for value in layers.values())
    assert {min(value.shape) for value in layers.values()} == {2}
    assert len(layers) == 2 * (1 + 8 * 10) and any(value.any() for name, value in layers.items() if "lora_B" in name)


def test_the_student_runs_as_the_pipeline_does():
    """From the same noise: the student's loop and WanPipeline without guidance, the teacher's and WanPipeline with it."""
    settings = smoke_distillation()
    prompt, seed = demo.evaluation_prompts()[0]
    pipe = load_pipeline(demo.MODEL, torch.float32, "cpu")
    noise = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator("cpu").manual_seed(seed))

    def sampled(guidance: float, steps: int) -> torch.Tensor:
        request = Request(prompt, seed=seed, steps=steps, guidance_scale=guidance, **SMALL)
        return generate(pipe, request, "", output_type="latent", progress=False).frames

    guided = sampled(2.0, settings.teacher_steps)
    first_order = {**pipe.scheduler.config, "solver_order": 1, "disable_corrector": [0, 1, 2, 3]}
    original, pipe.scheduler = pipe.scheduler, type(pipe.scheduler).from_config(first_order)
    straight = sampled(1.0, 4)
    pipe.scheduler = original
    denoiser = Denoiser(pipe, settings, torch.device("cpu"))
    ids = tokens_of(pipe, [prompt], settings)
    empty = tokens_of(pipe, [""], settings)
    with torch.no_grad():
        states = guided_run(pipe, denoiser, settings, noise, ids, empty)
        *_, last = Student(denoiser, schedule_of(pipe, 4), settings).run(noise, ids)
    torch.testing.assert_close(states[:, -1], guided, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(last, straight, rtol=1e-3, atol=1e-3)


def test_training_brings_the_student_nearer_to_its_teacher():
    """On runs that it learns by heart: a few updates must lower the loss that it is trained on."""
    settings = smoke_distillation()
    torch.manual_seed(0)
    pipe = load_pipeline(demo.MODEL, torch.float32, "cpu")
    denoiser = Denoiser(pipe, settings, torch.device("cpu"))
    runs = teach(pipe, denoiser, settings, lambda _: None, Deadline(600), 1.0)
    student = Student(denoiser, schedule_of(pipe, settings.steps), settings)
    before = student.distance(runs)
    student.train(lambda: student.run_loss(runs), "runs", 40, 1e-3, lambda _: None, Deadline(600))
    assert student.distance(runs) < 0.97 * before


def test_a_run_ends_when_the_time_is_over():
    settings, said = smoke_distillation(), []
    pipe = load_pipeline(demo.MODEL, torch.float32, "cpu")
    denoiser = Denoiser(pipe, settings, torch.device("cpu"))
    runs = teach(pipe, denoiser, settings, said.append, Deadline(1e-6), 0.5)
    assert len(runs) == settings.teacher_batch < settings.trajectories and "time is short" in said[-1]
    student = Student(denoiser, schedule_of(pipe, settings.steps), settings)
    student.train(lambda: student.run_loss(runs), "runs", 5, 1e-3, said.append, Deadline(1e-6))
    assert "time is over after 0 of 5 updates" in said[-1]


def test_fast_runs_four_steps_by_the_lora(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FEW_STEPS", trained)
    settings = {**demo.defaults(), **SMALL}
    monkeypatch.setattr(demo, "defaults", lambda: settings)
    plain = load_pipeline(demo.MODEL, torch.bfloat16, "cpu").transformer.blocks[0].attn1.to_q.weight
    pipe = load_pipeline(demo.MODEL, torch.bfloat16, "cpu")
    demo.use_few_steps(pipe)
    layer = pipe.transformer.blocks[0].attn1.to_q
    assert type(layer) is nn.Linear and not torch.equal(layer.weight, plain), "fused, and peft is gone again"
    assert pipe.scheduler.config.solver_order == 1
    assert cli.main(["demo", "--fast", "--device", "cpu", "--output", str(tmp_path)]) == 0
    assert "4 steps" in capsys.readouterr().err
    asked = json.loads((tmp_path / "comparison.json").read_text())["request"]
    assert asked["steps"] == 4 and asked["guidance_scale"] == 1.0


def test_a_missing_lora_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FEW_STEPS", tmp_path / "none.safetensors")
    assert cli.main(["demo", "--fast", "--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sedialect: ")]
    assert len(lines) == 1 and "none.safetensors, is missing" in lines[0] and "training.few_steps --output DIR" in lines[0]


def test_the_lora_of_the_repository_is_small_and_nearer_than_the_model_without_it():
    record = json.loads(demo.FEW_STEPS.with_suffix(".json").read_text())
    assert demo.FEW_STEPS.stat().st_size == record["bytes"] < 1_500_000 and record["settings"]["rank"] <= 32
    assert record["distance"]["runs"] < 0.7 * record["distance"]["untrained"]
    plain, fast = (load_pipeline(demo.MODEL, torch.float32, "cpu") for _ in range(2))
    demo.use_few_steps(fast)
    ways = {"teacher": (plain, 20, 2.0), "fast": (fast, 4, 1.0), "plain": (plain, 4, 1.0)}
    apart = dict.fromkeys(ways, 0.0)
    for prompt, seed in demo.evaluation_prompts()[:6]:
        made = {
            name: generate(
                pipe, replace(demo.request(prompt, seed, steps), guidance_scale=scale), "", "latent", False
            ).frames
            for name, (pipe, steps, scale) in ways.items()
        }
        for name, latents in made.items():
            apart[name] += float((latents - made["teacher"]).norm() / made["teacher"].norm())
    assert apart["fast"] < 0.8 * apart["plain"]
