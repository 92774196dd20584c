"""The bundled model and the main job, as a newcomer runs it."""

import json
import shutil

import pytest
import torch

from sedialect import SeDialectLinear
from sedialect.cli import main as cli
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.comparison import compare
from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.video.sampling import load_pipeline
from sedialect.training import captions


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(demo.MODEL, torch.bfloat16, "cpu")


def test_the_model_is_a_whole_wan_pipeline_of_ours(pipe):
    config = pipe.transformer.config
    assert type(pipe).__name__ == "WanPipeline" and type(pipe.text_encoder).__name__ == "UMT5EncoderModel"
    assert config.attention_head_dim == 128, "ComfyUI's detection counts heads of 128"
    assert config.cross_attn_norm and config.qk_norm == "rms_norm_across_heads" and config.freq_dim == 256
    frames, size = demo.defaults()["num_frames"], demo.defaults()["height"]
    tokens = ((frames - 1) // 4 + 1) * (size // 16) ** 2
    assert tokens >= 500
    card = (demo.MODEL / "README.md").read_text(encoding="utf-8")
    for part in ("Apache-2.0", "steps", "loss", "PSNR"):
        assert part.lower() in card.lower()


def test_evaluation_prompts_are_64_and_were_held_out(pipe):
    prompts = demo.evaluation_prompts()
    assert [{"prompt": prompt, "seed": seed} for prompt, seed in prompts] == captions.evaluation_items()
    assert all(captions.is_held_out(item) for item in captions.held_out_objects())
    assert len({prompt for prompt, _ in prompts}) == len({seed for _, seed in prompts}) == 64
    for prompt, _ in (*prompts, (demo.defaults()["prompt"], 0)):
        assert demo.unknown_words(prompt, pipe.tokenizer) == []


def test_unknown_words_are_found(pipe):
    assert demo.unknown_words("a red zebra moves left", pipe.tokenizer) == ["zebra"]


@pytest.mark.parametrize("number", [0, 5])
def test_w4a4_differs_from_16_bit_in_detail_only(pipe, number):
    """26 dB are demanded on the mean over eight prompts, which `sedialect bench quality` prints; here two, one by one."""
    fresh = load_pipeline(demo.MODEL, torch.float32, "cpu")  # bfloat16 takes minutes on many CPUs
    comparison = compare(fresh, demo.request(*demo.evaluation_prompts()[number]), SeDialectConfig())
    assert comparison.fidelity.psnr > 24 and comparison.fidelity.ssim > 0.8
    frames = comparison.original.frames.astype(float)
    assert frames.std() > 20, "there is something to see"
    assert abs(frames[-1] - frames[0]).mean() > 2, "something moves"
    assert any(isinstance(module, SeDialectLinear) for module in fresh.transformer.modules())


def test_it_takes_less_than_half_of_16_bit():
    pipe = load_pipeline(demo.MODEL, torch.bfloat16, "cpu")
    pipe.enable_sedialect(progress=False)
    (model,) = pipe.sedialect_report().models
    assert model.bytes_after < 0.45 * model.bytes_before


def test_the_demo_command_notes_unknown_words_and_writes_its_files(tmp_path, capsys):
    arguments = ["demo", "--steps", "2", "--prompt", "a red zebra moves left", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    out, error = capsys.readouterr()
    assert "the bundled model does not know: zebra" in error
    assert "transformer memory, MB" in out and str(tmp_path / "side-by-side.mp4") in out
    numbers = json.loads((tmp_path / "comparison.json").read_text())
    assert numbers["request"]["num_frames"] == demo.defaults()["num_frames"]
    shutil.rmtree(tmp_path)
