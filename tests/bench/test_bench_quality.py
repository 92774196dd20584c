"""The quality bench: that it measures what it says, resumes, and leaves the pipeline as it was."""

import importlib.util
import json
import math
import shutil
from statistics import NormalDist

import numpy as np
import pytest
import tiny_pipelines
import torch
from quality_jobs import FP8, REPEAT, W4A4, results, tiny_job
from torch import nn

from sedialect.bench import quality
from sedialect.bench.quality import (
    codes,
    measuring,
    rendering,
    runner,
    statistics,
    variants,
)
from sedialect.bench.quality import job as jobs
from sedialect.bench.quality.arms import Arm, installed
from sedialect.bench.quality.job import metrics_of
from sedialect.bench.quality.trajectory import Call, Trajectory, forced, recording, spread
from sedialect.kernels import attention_support, flash3
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.inspection.denoisers import denoisers
from sedialect.sedialect_core.video.sampling import Request


class Unusable:
    """A pipeline that must not be touched."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"nothing is left to be measured, but {name} is asked for")


@pytest.mark.parametrize("family", tiny_pipelines.PIPELINES)
def test_every_family_is_led_along_its_own_trajectory(family):
    """Led along what it recorded, an unchanged pipeline gives just that, and nothing is left on its transformers."""
    pipe, arguments = tiny_pipelines.build(family)
    models = denoisers(pipe)

    def sample() -> torch.Tensor:
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in (1, 2)]
        given = {"prompt": ["a ball", "a star"], "num_inference_steps": 3, "output_type": "latent", **arguments}
        return pipe(**given, generator=noise).frames

    with recording(models) as calls:
        wanted = sample()
    trajectory = Trajectory(2, 4.0, tuple(calls))
    assert trajectory.steps == 3
    for parameter in nn.ModuleList(models.values()).parameters():
        parameter.data.mul_(1.001)  # whatever the arm computes, the latents follow the recorded run
    with forced(models, trajectory, frozenset({0, 2})) as own:
        assert torch.equal(sample(), wanted)
    assert {call.step for call in own} == {0, 2}
    assert not any("forward" in model.__dict__ for model in models.values())
    velocities = Trajectory(2, 4.0, tuple(own)).velocities("cpu", frozenset({0, 2}))
    recorded = trajectory.velocities("cpu", frozenset({0, 2}))
    assert {step: list(found) for step, found in velocities.items()} == {s: list(found) for s, found in recorded.items()}
    assert all(len(value) == 2 for found in velocities.values() for value in found.values())


def test_steps_that_are_not_looked_at_are_run_where_an_arm_remembers():
    pipe, _ = tiny_pipelines.build("wan")
    ran = []
    pipe.transformer.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    reference = measuring.make_reference(pipe, tiny_job(), tiny_job().requests[:2])
    for every_step, calls in ((False, 2), (True, 6)):
        ran.clear()
        arm = Arm("as it is", "16 bit", every_step=every_step)
        values = measuring.measure_batch(pipe, tiny_job(forced_steps=1), arm, reference)
        assert len(ran) == calls and [len(pair["velocity_by_step"]) for pair in values] == [1, 1]
        assert all(pair["velocity"] == 0 for pair in values)


def test_guidance_is_read_from_two_calls_and_from_a_doubled_batch():
    conditional, unconditional = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    two = Trajectory(2, 5.0, (Call(0, conditional), Call(0, unconditional)))
    doubled = Trajectory(2, 5.0, (Call(0, torch.cat([unconditional, conditional])),))
    wanted = unconditional + 5 * (conditional - unconditional)
    for trajectory in (two, doubled):
        for rows in (slice(0, 2), slice(1, 2)):
            found = trajectory.part(rows).velocities("cpu", frozenset({0}))[0]
            assert torch.allclose(found["guided"], wanted[rows])
            assert torch.equal(found["conditional"], conditional[rows])
    single = Trajectory(2, 5.0, (Call(0, conditional),)).velocities("cpu", frozenset({0}))[0]
    assert list(single) == ["guided"]
    with pytest.raises(InputError, match="called the transformer 3 times"):
        Trajectory(2, 5.0, (Call(0, conditional),) * 3).velocities("cpu", frozenset({0}))


def test_steps_that_are_looked_at_are_spread_evenly():
    assert spread(20, None) == spread(20, 20) == frozenset(range(20))
    assert spread(20, 5) == {0, 5, 10, 14, 19} and spread(20, 1) == {0} and spread(3, 9) == {0, 1, 2}


def test_velocity_errors_rank_arms_and_are_resumed(tmp_path, monkeypatch):
    pipe, _ = tiny_pipelines.build("wan")
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    job = tiny_job()
    repeat, fp8, ours = quality.run(job, (REPEAT, FP8, W4A4), tmp_path, pipe)
    after = pipe.transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert len(ours.pairs) == 3 and len(ours.curve()) == 3
    for low, high in ((repeat, fp8), (fp8, ours)):
        assert all(a < b for a, b in zip(low.column("velocity"), high.column("velocity"), strict=True))
    assert max(repeat.column("velocity")) < 1e-4 and min(ours.column("velocity")) > 0.01
    assert quality.run(job, (REPEAT, FP8, W4A4), tmp_path, Unusable()) == [repeat, fp8, ours]

    runner.place(tmp_path / job.digest(), FP8, 1).unlink()
    measured = []
    monkeypatch.setattr(runner, "measure_batch", lambda p, j, arm, ref: measured.append(arm.name) or measure(p, j, arm, ref))
    measure = measuring.measure_batch
    again = quality.run(job, (REPEAT, FP8, W4A4), tmp_path, pipe)
    assert measured == ["FP8"] and again[1].pairs == fp8.pairs


def test_an_arm_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    pipe, _ = tiny_pipelines.build("wan")
    real, failed = measuring.measure_batch, {}

    def broken(pipe, job, arm, reference):
        if arm is FP8:
            raise RuntimeError("no such kernel")
        return real(pipe, job, arm, reference)

    monkeypatch.setattr(runner, "measure_batch", broken)
    (ours,) = quality.run(tiny_job(), (FP8, W4A4), tmp_path, pipe, failed)
    assert ours.arm is W4A4 and failed == {FP8.name: "RuntimeError: no such kernel"}
    with pytest.raises(RuntimeError, match="no such kernel"):
        quality.run(tiny_job(), (FP8, W4A4), tmp_path, pipe)


def test_an_interrupted_run_keeps_what_it_measured(tmp_path, monkeypatch):
    pipe, _ = tiny_pipelines.build("wan")
    job, real = tiny_job(), measuring.measure_batch
    seen = []

    def interrupted(pipe, job, arm, reference):
        seen.append(arm.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(pipe, job, arm, reference)

    monkeypatch.setattr(runner, "measure_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quality.run(job, (FP8, W4A4), tmp_path, pipe)
    assert not hasattr(pipe.transformer, "_sedialect"), "the arm is out of the pipeline again"
    quality.run(job, (FP8, W4A4), tmp_path, pipe)
    assert seen == ["FP8", "FP8", W4A4.name, W4A4.name, W4A4.name]


def test_two_pairs_in_one_batch_are_measured_as_each_alone(tmp_path):
    pipe, _ = tiny_pipelines.build("wan")
    together = quality.run(tiny_job(batch=3), (W4A4,), tmp_path, pipe)[0]
    alone = quality.run(tiny_job(batch=1), (W4A4,), tmp_path, pipe)[0]
    assert together.column("velocity") == pytest.approx(alone.column("velocity"), rel=1e-3)


@pytest.mark.parametrize("arm", quality.arms(), ids=lambda arm: arm.name)
def test_every_arm_goes_in_and_out(arm, monkeypatch):
    if arm.config is not None and arm.config.attention == "fp8" and flash3.kernel()[0] is None:
        pytest.skip("FlashAttention-3 is not installed")
    monkeypatch.setattr(attention_support, "HEAD_SIZES", (16,))  # of the tiny pipeline
    pipe, _ = tiny_pipelines.build("wan")
    types = [type(module) for module in pipe.transformer.modules()]
    sizes = variants.input_sizes(pipe, tiny_job(steps=1)) if arm.smoothed else None
    with installed(pipe, arm, sizes=sizes) as bits:
        assert 4 <= bits.weight <= 16 and 4 <= bits.activation <= 16
        inside = [type(module) for module in pipe.transformer.modules()]
        as_they_are = arm.config.attention_alone if arm.config is not None else arm.peer is None
        assert (inside == types) == as_they_are
    assert [type(module) for module in pipe.transformer.modules()] == types
    assert json.dumps(arm.key())


def test_names_of_arms_are_unique_and_arms_are_chosen_by_pattern():
    names = [arm.name for arm in quality.arms()]
    assert len(set(names)) == len(names) and quality.BASE in names
    assert {arm.name for arm in quality.choose("^fp8|^nvfp4-16$", quality.BASE, quick=False)} == {
        "FP8 rows",
        "NVFP4-16",
        quality.BASE,
    }
    assert all(arm.quick for arm in quality.choose(None, quality.BASE, quick=True))
    for pattern, base, message in (
        ("nothing", quality.BASE, "finds none"),
        ("(", quality.BASE, "no regular"),
        ("", "x", "no arm"),
    ):
        with pytest.raises(InputError, match=message):
            quality.choose(pattern, base, quick=False)


def test_all_metrics_of_videos(tmp_path):
    """On two clips of the bundled model, small and few-stepped: every metric is there and says that FP8 is nearer."""
    asked = [metric for metric in jobs.METRICS if metric != "cvvdp" or importlib.util.find_spec("pycvvdp")]
    job = quality.bundled_job(
        2,
        {"steps": 2, "height": 64, "width": 64, "num_frames": 9},
        metrics=",".join(asked),
        forced_steps=1,
        batch=2,
        device="cpu",
    )
    fp8, ours = quality.run(job, (FP8, W4A4), tmp_path)
    higher, lower = {"psnr", "ssim", "cvvdp"} & set(asked), {"flicker", "velocity", "difference_error"}
    for metric in higher | lower:
        better = 1 if metric in higher else -1
        for a, b in zip(fp8.column(metric), ours.column(metric), strict=True):
            assert better * a > better * b, metric
    for result in (fp8, ours):
        assert all(0 <= value <= 1 for name in ("accuracy", "same_code") for value in result.column(name))
        assert all(value > 0 for value in result.column("warping"))


def test_the_layers_codes_are_what_the_codes_are_read_from():
    """Weights of one: then a layer's output is the sum of what its input decodes to."""
    from sedialect.sedialect_core.linear import SeDialectLinear

    linear = nn.Linear(64, 16, bias=False)
    linear.weight.data.fill_(1.0)
    layer = SeDialectLinear.from_linear(linear)
    x = torch.randn(2, 6, 64)
    values, quantized = codes.coded_input(layer, x)
    assert torch.equal(values, x) and torch.allclose(layer(x)[..., 0], quantized.sum(-1), atol=1e-4)
    assert codes.coded_input(SeDialectLinear.from_linear(linear, precision="w4a16"), x) is None


def test_intervals_are_right_for_a_large_sample_and_the_same_every_time():
    values = np.random.default_rng(0).normal(3, 2, size=400).tolist()
    found = statistics.bootstrap(values)
    half = NormalDist().inv_cdf(0.975) * np.std(values) / math.sqrt(400)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.02)
    assert statistics.bootstrap(values) == found
    assert statistics.bootstrap([2.0] * 5) == (2, 2, 2)


def test_differences_are_taken_pair_by_pair():
    base = np.random.default_rng(0).normal(0, 100, size=20)
    found = statistics.paired_difference((base + 1).tolist(), base.tolist())
    assert found == pytest.approx((1, 1, 1)) and found.clear
    assert not statistics.bootstrap([-1.0, 1.0, -2.0, 2.0]).clear


def test_results_are_written_as_numbers_tables_and_a_picture(tmp_path):
    from PIL import Image

    paths = rendering.write_results(tiny_job(), results(), quality.BASE, tmp_path)
    assert [path.name for path in paths] == ["quality.json", "quality.md", "quality.png"]
    data = json.loads(paths[0].read_text())
    other = data["arms"][1]
    assert other["means"]["velocity"][0] == pytest.approx(0.25)
    assert other["minus_base"]["velocity"] == pytest.approx([0.05] * 3)
    assert len(other["pairs"]) == 3 and data["job"]["requests"][0]["prompt"] == "a ball"
    text = paths[1].read_text()
    assert "| other | 4.50 | 4.60 | 0.2500 [" in text and "+0.0500 [+0.0500, +0.0500]" in text
    assert "3 pairs of prompt and seed" in text and "5 frames of 48x32" in text
    with Image.open(paths[2]) as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors(256)) > 10


def test_jobs_name_what_they_cannot_do(tmp_path):
    requests = quality.requests_of(2, [("a ball", 0)], Request(prompt="-"))
    assert [request.seed for request in requests] == [0, 1000], "a prompt that comes again has other noise"
    with pytest.raises(InputError, match="--pairs is 1"):
        quality.requests_of(1, [("a ball", 0)], Request(prompt="-"))
    with pytest.raises(InputError, match="no metric 'fvd'"):
        metrics_of("velocity,fvd", requests)
    with pytest.raises(InputError, match="evaluation prompts alone"):
        metrics_of("accuracy", requests)
    assert "accuracy" not in metrics_of("all", requests)
    assert "accuracy" in metrics_of("all", [demo.request(*demo.evaluation_prompts()[0])])
    with pytest.raises(InputError, match="--batch is 0"):
        tiny_job(batch=0)
    assert tiny_job().digest() == tiny_job().digest() != tiny_job(steps=4).digest() != tiny_job(metrics="psnr").digest()


def test_results_of_other_code_are_not_gone_on_with(tmp_path, monkeypatch):
    assert all((jobs.ROOT / source).exists() for source in jobs.SOURCES)
    before = tiny_job().digest()
    shutil.copytree(jobs.ROOT / "kernels", tmp_path / "kernels")
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    partly = tiny_job().digest()
    assert partly != before
    with (tmp_path / "kernels" / "reference.py").open("a") as file:
        file.write("# changed\n")
    assert tiny_job().digest() not in (partly, before)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("p.txt", "a ball\n\n a star \n", [("a ball", 0), ("a star", 1)]),
        ("p.json", '[{"prompt": "a ball", "seed": 7}]', [("a ball", 7)]),
        ("p.json", '[{"prompt": "a ball"}]', None),
        ("p.json", "{", None),
        ("p.txt", "\n", None),
    ],
)
def test_prompts_are_read_from_lines_and_from_json(tmp_path, name, text, wanted):
    path = tmp_path / name
    path.write_text(text)
    if wanted is None:
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            quality.read_prompts(path)
    else:
        assert quality.read_prompts(path) == wanted
    with pytest.raises(InputError, match="cannot be read"):
        quality.read_prompts(tmp_path / "absent.txt")
