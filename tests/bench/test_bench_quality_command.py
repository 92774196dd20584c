"""`sedialect bench quality` as a command: what it writes, what it refuses, and what its arms show."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from quality_jobs import FP8, REPEAT, W4A4, results, tiny_job
from torch import nn

from sedialect.bench import quality
from sedialect.bench.quality import (
    catalogue,
    chart,
    measuring,
    rendering,
    statistics,
    variants,
)
from sedialect.bench.quality.arms import EffectiveBits
from sedialect.bench.quality.catalogue import PLAIN
from sedialect.cli.main import main
from sedialect.sedialect_core.config import PRESETS, SeDialectConfig
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.storage.marked import marks
from sedialect.sedialect_core.video.sampling import Request


def test_the_quick_command(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks(rendering.PART)))
    small = ["--pairs", "2", "--steps", "2", "--height", "32", "--width", "32", "--num-frames", "5", "--forced-steps", "1"]
    command = ["bench", "quality", "--quick", "--arms", "fp8", "--device", "cpu", *small, "--output", str(tmp_path / "out")]
    assert main([*command, "--write", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "| FP8 rows |" in printed and f"| {quality.BASE} |" in printed and "| FP8 rows |" in page.read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"quality.json", "quality.md", "quality.png"}
    assert main(["bench", "quality", "--list"]) == 0
    assert "peers: NVFP4-16 (quick)" in capsys.readouterr().out


def test_what_a_pipeline_does_not_take_is_named():
    pipe, _ = tiny_pipelines.build("wan")
    with pytest.raises(InputError, match="WanPipeline refuses this request"):
        measuring.sample_batch(pipe, [Request(prompt="a ball", height=33)], decode=False)
    pipe.__class__ = type("Short", (type(pipe),), {"__call__": lambda self, prompt, num_inference_steps: None})
    with pytest.raises(InputError, match="Short takes no guidance_scale; leave it out"):
        measuring.sample_batch(pipe, [Request(prompt="a ball", guidance_scale=3.0)], decode=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--prompts", "p.txt"], "--prompts needs --model"), (["--model", "m"], "--model needs --prompts")],
)
def test_prompts_and_model_come_together(options, message, capsys):
    assert main(["bench", "quality", "--device", "cpu", *options]) != 0
    assert message in capsys.readouterr().err


def test_a_pipeline_of_ones_own(tmp_path, capsys):
    pipe, _ = tiny_pipelines.build("ltx")
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a ball\na star\n")
    size = ["--height", "64", "--width", "96", "--num-frames", "9", "--steps", "2", "--guidance-scale", "3", "--pairs", "2"]
    files = [
        "--model",
        str(tmp_path / "model"),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--output",
        str(tmp_path / "out"),
    ]
    command = ["bench", "quality", *files, *size, "--metrics", "psnr,flicker", "--arms", "fp8", "--device", "cpu"]
    assert main(command) == 0
    data = json.loads((tmp_path / "out" / "quality.json").read_text())
    fp8, ours = ({arm["name"]: arm for arm in data["arms"]}[name]["means"] for name in ("FP8 rows", quality.BASE))
    assert fp8["psnr"][0] > ours["psnr"][0] and fp8.keys() == {"psnr", "flicker"}, "what is not asked for is not computed"


def test_arms_of_the_table_are_about_the_precision_they_name():
    for arm in quality.arms():
        if arm.config is not None:
            named = re.search(r"\bw4a\d+(?! steps)\b", arm.name.split("steps in")[0])
            assert named is None or named[0] == arm.config.precision, arm.name
            assert ("calibrated" in arm.name) == arm.calibrated and ("B=32" in arm.name) <= (arm.config.block_size == 32)
    for name, settings in catalogue.PRESETS.items():
        assert SeDialectConfig(**{**PLAIN, **settings}) == SeDialectConfig.preset(name)
    assert {*catalogue.PRESETS, "plain"} == set(PRESETS)
    base = next(arm for arm in quality.arms() if arm.name == quality.BASE)
    assert base.config == SeDialectConfig(**PLAIN) == SeDialectConfig.preset("plain", equalize=False)
    assert replace(W4A4, sampled=False).digest() == W4A4.digest() != FP8.digest()
    assert Path(quality.bundled_job(2, {}, metrics="velocity", forced_steps=1, batch=1, device="cpu").model).is_dir()


def test_the_worst_tenth_is_the_mean_of_the_worst_pairs():
    values = [float(value) for value in range(1, 21)]
    assert statistics.worst_tenth(values) == 19.5 and statistics.worst_tenth(values, higher_is_nearer=True) == 1.5
    assert statistics.worst_tenth(values[:3]) == 3
    for name, wanted in (("velocity", 0.3), ("psnr", 29.7), ("ssim", None)):
        assert results()[0].worst_tenth(name) == (wanted if wanted is None else pytest.approx(wanted))


SMALL = ["--height", "32", "--width", "48", "--num-frames", "5", "--pairs", "2", "--steps", "2", "--forced-steps", "1"]


def test_planted_outliers_cost_peers_and_smoothing_takes_them_away(tmp_path, capsys):
    """The table of the command: one column a size, 16 bit unchanged, and the results of each size in a folder."""
    tiny_pipelines.build("wan")[0].save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a ball\na star\n")
    files = ["--model", tmp_path / "model", "--prompts", tmp_path / "prompts.txt", "--output", tmp_path / "out"]
    arms = ["--arms", r"^(FP8 rows|NVFP4-16|NVFP4-16, smoothed)$", "--metrics", "velocity", "--device", "cpu"]
    command = ["bench", "quality", *map(str, files), *SMALL, *arms, "--guidance-scale", "3", "--dtype", "bfloat16"]
    command += ["--planted", "1", "32"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| arm | weight bits | activation bits | none planted | worst tenth | x32 | worst tenth | x32 / none |" in printed
    assert "outlier channels x32 planted" in printed
    data = json.loads((tmp_path / "out" / "planted.json").read_text())["planted"]
    assert data.keys() == {"1", "32"} and data["32"]["job"]["planted"] == 32
    means = {size: {arm["name"]: arm["means"]["velocity"][0] for arm in found["arms"]} for size, found in data.items()}
    cost = {arm: means["32"][arm] - means["1"][arm] for arm in means["1"]}
    assert cost["NVFP4-16"] > 0.3 * means["1"]["NVFP4-16"]
    assert cost["NVFP4-16, smoothed"] < cost["NVFP4-16"] / 2, "of 32 channels one is planted, and the others' mean moves"
    assert means["32"]["FP8 rows"] < 1.3 * means["1"]["FP8 rows"]
    assert data["32"]["arms"][0]["worst_tenth"]["velocity"] >= data["32"]["arms"][0]["means"]["velocity"][0]
    written = {path.name for path in (tmp_path / "out" / "planted-x32").iterdir()}
    assert written == {"quality.json", "quality.md", "quality.png"}
    assert main([*command[:-2], "12"]) == 2
    assert "--planted is 12; outliers are planted exactly in powers of two" in capsys.readouterr().err


def test_a_lora_is_fused_before_anything_is_measured(tmp_path):
    """And changes the digest of the job: the same name may hold other weights tomorrow."""
    from peft import LoraConfig, get_peft_model_state_dict

    pipe, _ = tiny_pipelines.build("wan")
    plain = pipe.transformer.blocks[0].attn1.to_q.weight.detach().clone()
    pipe.save_pretrained(tmp_path / "model")
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["attn1.to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers, weight_name="few.safetensors")
    file = tmp_path / "lora" / "few.safetensors"
    job = replace(tiny_job(), model=str(tmp_path / "model"), lora=str(file))
    linear = variants.pipeline_of(job).transformer.blocks[0].attn1.to_q
    delta = layers["blocks.0.attn1.to_q.lora_B.weight"] @ layers["blocks.0.attn1.to_q.lora_A.weight"]
    wanted = plain + delta.detach()
    assert type(linear) is nn.Linear and torch.allclose(linear.weight.float(), wanted.float(), atol=1e-2)
    assert not torch.allclose(linear.weight.float(), plain, atol=1e-2)
    before = job.digest()
    file.write_bytes(file.read_bytes() + b" ")
    assert job.digest() != before
    with pytest.raises(InputError, match="cannot fuse the LoRA"):
        variants.pipeline_of(replace(job, lora=str(tmp_path / "none")))


def test_fast_is_of_the_bundled_model(capsys):
    assert main(["bench", "quality", "--fast", "--model", "m", "--prompts", "p", "--device", "cpu"]) == 2
    assert "--fast is about the bundled model" in capsys.readouterr().err
    job = quality.bundled_job(2, {}, metrics="velocity", forced_steps=None, batch=1, device="cpu", fast=True)
    assert job.requests[0].steps == 4 and job.requests[0].guidance_scale == 1.0


def test_two_arms_are_held_against_each_other(tmp_path):
    job, pipe = tiny_job(), tiny_pipelines.build("wan")[0]
    results = {result.arm.name: result for result in quality.run(job, (FP8, W4A4), tmp_path, pipe)}
    path = quality.write_results(job, list(results.values()), FP8.name, tmp_path)[0]
    line = quality.held_against(path, [(W4A4.name, FP8.name)]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    ours, theirs = (results[arm.name].column("velocity") for arm in (W4A4, FP8))
    assert cells[:2] == [W4A4.name, FP8.name]
    assert float(cells[2]) == pytest.approx(sum(ours) / sum(theirs), abs=1e-3)
    mean, low, high = (float(number) for number in cells[3].replace("[", "").replace("]", "").replace(",", "").split())
    assert mean == pytest.approx(sum(a - b for a, b in zip(ours, theirs, strict=True)) / len(ours), abs=1e-4)
    assert low <= mean <= high
    with pytest.raises(InputError, match=rf"no arm 'none' was measured; there are .*{W4A4.name}"):
        quality.held_against(path, [("none", FP8.name)])
    path.write_text("{}")
    with pytest.raises(InputError, match="no result of `sedialect bench quality`"):
        quality.held_against(path, [(W4A4.name, FP8.name)])


def test_arms_are_named_two_by_two(tmp_path, capsys):
    assert main(["bench", "pairs", str(tmp_path), "one", "two", "three"]) == 2
    assert "3 names of arms were given" in capsys.readouterr().err


def test_16_bit_does_not_stretch_the_axes_of_the_others():
    class Seen:
        def __init__(self) -> None:
            self.texts, self.dots = [], []

        def text(self, x: float, y: float, text: str, **_: object) -> None:
            self.texts.append(text)

        def dot(self, x: float, *_: object, **__: object) -> None:
            self.dots.append(x)

        def line(self, *_: object, **__: object) -> None: ...

    floor = quality.Result(REPEAT, EffectiveBits(16, 16), ({"psnr": 60.0}, {"psnr": 62.0}), 1.0)
    pen, shown = Seen(), [floor, *results()]
    chart._draw_panel(pen, chart.PANELS[1], shown, [0.0, 1.0, 2.0], 100.0, 50.0, quality.BASE)
    assert "61" in pen.texts and len(pen.dots) == 4, "two means, and two rings for the worst tenth"
    assert all(100 <= x <= 100 + chart.PANEL for x in pen.dots) and "40" not in pen.texts
