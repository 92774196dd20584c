"""`sedialect quantize --calibrate`: the same codes as in memory, from files, stopped and gone on."""

from pathlib import Path

import diffusers
import pytest
import torch
from checkpoint_files import same
from tiny_pipelines import build

from sedialect.cli import main as cli
from sedialect.sedialect_core.calibration import moments
from sedialect.sedialect_core.calibration.cache import CalibrationCache
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.quantize import weights as calibrated

SIZE = ["--height", "32", "--width", "48", "--num-frames", "5"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A pipeline on disk, and prompts beside it."""
    folder = tmp_path_factory.mktemp("base")
    build("wan")[0].save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("a red ball\n\na blue box\n")
    return folder / "model"


def quantize(model: Path, output: Path, *arguments: str) -> int:
    prompts = ["--prompts", str(model.parent / "prompts.txt")]
    common = ["--calibrate", *prompts, *SIZE, "--dtype", "float32", "--rotate", "16"]
    return cli.main(["quantize", str(model), "--output", str(output), *common, *arguments])


@pytest.fixture(scope="module")
def quantized(model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("quantized") / "out"
    assert quantize(model, output) == 0
    return output


def load(folder: Path) -> torch.nn.Module:
    return diffusers.WanTransformer3DModel.from_pretrained(folder, dtype=torch.float32)


def test_files_are_quantized_as_a_pipeline_in_memory_is(model, quantized):
    cache = CalibrationCache.load(quantized.parent / "out.calibration")
    pipe = diffusers.WanPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.enable_sedialect(calibration=cache, rotation=16, progress=False)
    loaded = load(quantized)
    assert same(loaded, pipe.transformer)
    plans = loaded._sedialect.plan, pipe.transformer._sedialect.plan
    rotations = [[layer.rotation for layer in plan.quantized] for plan in plans]
    assert rotations[0] == rotations[1]
    assert {0, 16} <= set(rotations[0])


class Stopped(BaseException):
    """As sudden as a kill, for a test."""


def test_a_stopped_run_goes_on_and_knows_what_was_rotated(model, quantized, tmp_path, monkeypatch):
    count = []

    def encode(*arguments, **settings):
        count.append(1)
        if len(count) == 40:
            raise Stopped
        return original(*arguments, **settings)

    original = calibrated.encode_calibrated
    monkeypatch.setattr(calibrated, "encode_calibrated", encode)
    with pytest.raises(Stopped):
        quantize(model, tmp_path / "out", "--max-shard-size", "4KB")
    assert list((tmp_path / ".out.unfinished").glob("*.safetensors"))
    monkeypatch.setattr(moments, "generate", lambda *_, **__: pytest.fail("sampled again"))
    assert quantize(model, tmp_path / "out", "--max-shard-size", "4KB") == 0
    assert same(load(tmp_path / "out"), load(quantized))


def test_a_finished_output_is_accepted_and_other_settings_are_not(model, quantized, capsys):
    assert quantize(model, quantized) == 0
    assert "linears at" in capsys.readouterr().out
    assert cli.main(["quantize", str(model), "--output", str(quantized)]) == 2
    assert "holds other files already" in capsys.readouterr().err


def test_a_glance_is_that_of_a_pipeline_in_memory(model, tmp_path, capsys):
    command = ["quantize", str(model), "--output", str(tmp_path / "out"), "--calibration", "glance", "--dtype", "float32"]
    assert cli.main([*command, *SIZE]) == 0
    pipe = diffusers.WanPipeline.from_pretrained(model, dtype=torch.float32)
    size = {"height": 32, "width": 48, "num_frames": 5}
    cache = moments.calibrate(pipe, "glance", size=size, progress=False)
    assert all(entry.diagonal for entry in cache.inputs)
    with pytest.raises(InputError, match="size holds 'frames'; give height, width, num_frames, or some of them"):
        moments.calibrate(pipe, "glance", size={"frames": 5})
    pipe.enable_sedialect(calibration=cache, progress=False)
    loaded = load(tmp_path / "out")
    assert same(loaded, pipe.transformer)
    kept = CalibrationCache.load(tmp_path / "out.glance")
    assert kept.fingerprint == cache.fingerprint
    assert kept.describe().startswith("equalized by a glance at one prompt at 32x48x5")
    assert cli.main([*command, *SIZE]) == 0, "the finished output is known again"
    capsys.readouterr()
    alone = ["quantize", str(model / "transformer"), "--output", str(tmp_path / "alone"), "--calibration", "glance"]
    assert cli.main(alone) == 2
    assert "is no diffusers pipeline: it has no model_index.json; pass the folder that holds one" in capsys.readouterr().err
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "x.txt"], "--prompts is for calibrating; add --calibrate"),
        (["--height", "32"], "--height is for calibrating; add --calibrate"),
        (["--calibration", "somewhere"], "--calibration is for calibrating; add --calibrate"),
        (["--calibrate", "--calibration", "glance"], "--calibrate and --calibration glance are two ways to look at inputs"),
        (["--calibration", "glance", "--prompts", "x.txt"], "--prompts is not for --calibration glance, which samples one"),
        (["--calibrate", "--prompts", "no-such-file"], "no-such-file cannot be read"),
        (["--rotate", "24"], "rotation is 24; choose one of 0, 16, 32, 64, 128"),
    ],
)
def test_options_that_will_not_do_are_refused(model, tmp_path, capsys, arguments, message):
    assert cli.main(["quantize", str(model), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
