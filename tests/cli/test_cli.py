"""The command line as users meet it: in processes of its own, on a real folder, with real mistakes."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from interruptible import PATIENCE, start
from tiny_pipelines import build

from sedialect import SeDialectConfig
from sedialect.cli import main as cli
from sedialect.cli.compare import add_config, config_of
from sedialect.sedialect_core.video.metrics import fidelity

SIZE = ["--height", "32", "--width", "48", "--num-frames", "5", "--steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny random Wan pipeline on disk."""
    folder = tmp_path_factory.mktemp("model")
    build("wan")[0].save_pretrained(folder)
    return str(folder)


def sedialect(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", "-m", "sedialect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def compare(model: str, output: Path, *more: str) -> list[str]:
    return ["compare", "--model", model, "--prompt", "a red ball", "--output", str(output), *SIZE, *more]


def test_compare_writes_three_videos_and_the_numbers_and_prints_the_table(model, tmp_path):
    done = sedialect(*compare(model, tmp_path / "out", "--preset", "compact", "--seed", "5"))
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["16-bit.mp4", "comparison.json", "quantized.mp4", "side-by-side.mp4", "side-by-side.png"]
    for name in written:
        if name.endswith(".mp4"):
            with av.open(str(tmp_path / "out" / name)) as container:
                assert len(list(container.decode(video=0))) == 5
    numbers = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert numbers["request"]["seed"] == 5 and numbers["config"]["block_size"] == 32
    assert 10 < numbers["psnr_db"] < 100 and 0 < numbers["ssim"] < 1
    before, after = numbers["transformer_bytes"]["transformer"]
    assert after < before and numbers["versions"]["torch"] and numbers["date"]
    for label in ("weights, effective bits", "transformer memory, MB", "seconds a step", "PSNR to 16 bit", "SSIM"):
        assert label in done.stdout
    for bar in ("16 bit: 100%", "Quantizing WanTransformer3DModel: 100%", "w4a4: 100%", "Loading pipeline components"):
        assert bar in done.stderr


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_seed_decides_the_noise(model, tmp_path):
    """Near rather than equal: CPU libraries choose code by the alignment of freshly loaded weights."""
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert cli.main(compare(model, tmp_path / folder, "--seed", seed)) == 0
    for name in ("16-bit.mp4", "quantized.mp4"):
        a, b, c = (frames(tmp_path / folder / name) for folder in "abc")
        assert fidelity(a, b).psnr > 40 > 30 > fidelity(a, c).psnr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--preset", "best"], "no preset 'best'; there are default, plain, compact, quality, weight-only"),
        (["--formatbook", "nowhere"], "no formatbook 'nowhere': it is neither a file nor one of"),
        (["--block-size", "7"], "block_size is 7; choose one of 16, 32"),
        (["--prompt", "  "], "the prompt is empty; say what the video shows"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--device", "cuda:9"], "device 'cuda:9' cannot be used"),
        (["--height", "33"], "WanPipeline refuses this request: "),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(model, tmp_path, capsys, change, message):
    assert cli.main(compare(model, tmp_path / "out", *change)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sedialect: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not list((tmp_path / "out").glob("*"))


def broken(tmp_path: Path) -> str:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return str(tmp_path / "broken")


def unquantizable(tmp_path: Path) -> str:
    """A pipeline whose blocks have 24 inputs, which no block size divides."""
    pipe, _ = build("wan")
    config = {**pipe.transformer.config, "num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 40}
    pipe.transformer = type(pipe.transformer).from_config(config)
    pipe.save_pretrained(tmp_path / "odd")
    return str(tmp_path / "odd")


def no_pipeline(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_pipeline, "is no diffusers pipeline: it has no model_index.json; pass the folder that holds one"),
        (broken, "cannot load the pipeline"),
        (unquantizable, "WanTransformer3DModel has no layer to quantize: 18 of 26 linears are left alone for: 24 inputs"),
    ],
)
def test_folders_that_will_not_do_are_named(tmp_path, make, message):
    done = sedialect(*compare(make(tmp_path), tmp_path / "out"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_name_that_is_nowhere_is_refused_without_a_traceback(tmp_path):
    done = sedialect(*compare("nobody/nothing", tmp_path / "out"), env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot load the pipeline 'nobody/nothing'" in done.stderr.splitlines()[-1]


def test_no_room_and_no_permission_are_found_out_before_sampling(model, tmp_path, capsys):
    """A file stands where the folder should be; as root, permissions alone would stop nobody."""
    (tmp_path / "taken").write_text("")
    assert cli.main(compare(model, tmp_path / "taken" / "out")) == 2
    error = capsys.readouterr().err
    assert "taken is a file, where a folder is to be written; choose another --output" in error
    assert "16 bit:" not in error


def test_a_disk_that_fills_up_leaves_nothing_half_written(model, tmp_path, monkeypatch, capsys):
    from sedialect.sedialect_core import comparison

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison, "side_by_side", full)
    (tmp_path / "out").mkdir()
    assert cli.main(compare(model, tmp_path / "out")) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_encoder_is_found_out_before_sampling(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(av, "codecs_available", set())
    assert cli.main(compare(model, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "no encoder libx264" in error and "16 bit:" not in error


def test_ctrl_c_in_the_middle_leaves_nothing(model, tmp_path):
    command = [sys.executable, "-P", "-m", "sedialect", *compare(model, tmp_path / "out")]
    command[command.index("--steps") + 1] = "5000"
    process = start(command)
    seen = ""
    deadline = time.monotonic() + PATIENCE
    while "16 bit:   0%" not in seen and "16 bit:   1%" not in seen and time.monotonic() < deadline:
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "Traceback" not in rest
    assert rest.strip().splitlines()[-1].startswith("sedialect: interrupted; nothing was written")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_doctor_names_versions_devices_and_paths_and_tests_itself():
    done = sedialect("doctor")
    assert done.returncode == 0, done.stderr
    for part in ("python", "torch", "diffusers", "sedialect-32, dialectfp4-16", "reference: plain torch", "passed in"):
        assert part in done.stdout


def test_doctor_fails_loudly_when_the_numbers_are_wrong(monkeypatch, capsys):
    from sedialect.cli import self_test as doctor

    monkeypatch.setattr(doctor, "EXPECTED_ERROR", {16: 1e-9})
    assert cli.main(["doctor"]) == 2
    out, error = capsys.readouterr()
    assert "FAILED" in out and "the self-test failed" in error


def test_no_command_prints_the_usage():
    done = sedialect()
    assert done.returncode == 2 and "usage: sedialect" in done.stderr


def test_options_make_the_settings_that_they_name():
    parser = argparse.ArgumentParser()
    add_config(parser)
    given = "--salient-ratio 0.25 --salient-by error --semantic --semantic-sharing dialect"
    parsed = parser.parse_args([*given.split(), "--protected-steps", "2", "1"])
    wanted = SeDialectConfig(salient_ratio=0.25, salient_by="error", semantic=True, semantic_sharing="dialect")
    assert config_of(parsed) == wanted.override(protected_steps=(2, 1))
