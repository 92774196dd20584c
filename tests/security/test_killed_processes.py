"""Conversions that are killed, run twice, or find the disk full or their own work damaged."""

import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import pytest
import torch
from damaged import flip
from interruptible import PATIENCE
from safetensors import SafetensorError
from safetensors.torch import load_file

from sedialect.cli.main import main
from sedialect.sedialect_core.calibration.cache import save_statistics
from sedialect.sedialect_core.checkpoint import conversion
from sedialect.sedialect_core.checkpoint.record import RECORD
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.quantize.weights import InputStatistics
from sedialect.sedialect_core.storage import atomic
from sedialect.sedialect_core.storage.locking import only_one

KILLS = 15
PART = "25KB"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A 16-bit Wan whose conversion takes some seconds and makes some thirty parts."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=64, text_dim=32, freq_dim=32, ffn_dim=256, num_layers=6
    )
    model.save_pretrained(folder)
    return folder


def command(base: Path, output: Path) -> list[str]:
    return ["quantize", str(base), "--output", str(output), "--max-shard-size", PART, "--device", "cpu"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def same(one: Path, two: Path) -> bool:
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """What an uninterrupted run writes."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(base, output)) == 0
    return output


def parts(output: Path) -> list[Path]:
    return sorted((output.parent / f".{output.name}.unfinished").glob("diffusion*.safetensors"))


def test_a_run_that_is_killed_fifteen_times_ends_with_the_same_tensors(base, whole, tmp_path):
    """Each time at a random moment after it has begun to write, so that parts are really cut off."""
    output, log = tmp_path / "out", tmp_path / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    random.seed(20)
    killed, between = 0, 0
    while killed < KILLS and not output.exists():
        before = len(parts(output))
        with log.open("a") as said:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sedialect", *command(base, output)], env=environment, stderr=said, stdout=said
            )
        deadline = time.monotonic() + PATIENCE
        staging = output.parent / f".{output.name}.unfinished"
        while process.poll() is None and not list(staging.glob(".diffusion*")) and len(parts(output)) == before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.03))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait(PATIENCE)
        between += len(parts(output)) > 0
        for path in parts(output):
            load_file(path)  # whole or absent
    assert killed == KILLS and between, log.read_text()
    assert main(command(base, output)) == 0
    assert same(output, whole) and "Traceback" not in log.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]
    assert not list(output.glob(".*"))


def test_the_second_of_two_runs_on_one_output_is_told_so(base, tmp_path, capsys):
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sedialect", *command(base, output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not parts(output):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        assert main(command(base, output)) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sedialect: ")]
        assert len(lines) == 1 and f"another process is writing {output}; wait until it has ended" in lines[0]
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.wait(PATIENCE)
    assert process.returncode == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_lock_ends_with_its_block_and_cannot_be_had_twice(tmp_path):
    with only_one(tmp_path / "a" / "out"), only_one(tmp_path / "a" / "other"):
        again = only_one(tmp_path / "a" / "out")
        with pytest.raises(InputError, match="another process is writing"):
            again.__enter__()
    with only_one(tmp_path / "a" / "out"):
        pass
    assert not list((tmp_path / "a").iterdir())


class Stopped(BaseException):
    """As sudden as a kill, for a test."""


def stop_before_finish(base: Path, output: Path, monkeypatch) -> None:
    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(conversion._Task, "_finish", stop)
        with pytest.raises(Stopped):
            main(command(base, output))


def test_a_damaged_part_and_all_behind_it_are_made_again(base, whole, tmp_path, monkeypatch, caplog):
    output = tmp_path / "out"
    stop_before_finish(base, output, monkeypatch)
    found = parts(output)
    assert len(found) >= 5
    times = [path.stat().st_mtime_ns for path in found]
    flip(found[2], found[2].stat().st_size - 7)
    with caplog.at_level(logging.WARNING):
        assert main(command(base, output)) == 0
    assert f"{found[2]} is damaged, or stands behind a damaged file; it is made again" in caplog.text
    written = sorted(output.glob("*.safetensors"))
    assert [path.stat().st_mtime_ns == was for path, was in zip(written, times, strict=True)] == [True, True] + [False] * (
        len(times) - 2
    )
    assert same(output, whole)


def test_a_part_that_was_cut_off_is_made_again(base, whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    stop_before_finish(base, output, monkeypatch)
    found = parts(output)
    found[-1].write_bytes(found[-1].read_bytes()[:-50])
    assert main(command(base, output)) == 0 and same(output, whole)


def test_work_that_cannot_be_finished_names_its_folder_and_the_remedy(base, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    stop_before_finish(base, output, monkeypatch)
    parts(output)[1].unlink()
    assert main(command(base, output)) == 2
    staging = tmp_path / ".out.unfinished"
    assert f"{staging} says that it is complete, and lacks " in (said := capsys.readouterr().err)
    assert "; remove it to start anew" in said


def test_a_finished_output_that_was_damaged_is_not_taken_for_done(base, whole, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(command(base, output)) == 0
    path = sorted(output.glob("*.safetensors"))[1]
    flip(path, path.stat().st_size - 3)
    assert main(command(base, output)) == 2
    assert "differs from its digest" in capsys.readouterr().err


def test_a_full_disk_is_told_in_a_sentence_wherever_tensors_are_written(base, tmp_path):
    """The real writer, in a process that may write no file larger than 20 kB: the system refuses what goes beyond."""
    log = tmp_path / "log"
    with log.open("w") as said:
        code = subprocess.run(
            [sys.executable, "-P", "-m", "sedialect", *command(base, tmp_path / "out")],
            stderr=said,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
            check=False,
        ).returncode
    lines = [line for line in log.read_text().splitlines() if line.startswith("sedialect: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in log.read_text()
    assert "cannot write" in lines[0] and lines[0].endswith("choose a writable place with free space")
    assert not list(tmp_path.glob(".out.unfinished/.diff*")) and not parts(tmp_path / "out")


@pytest.mark.parametrize("error", [SafetensorError("Error while serializing: I/O error: No space left on device")])
def test_what_safetensors_raises_on_a_full_disk_is_an_error_of_ours(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match="cannot write .*No space left on device; choose a writable place with free space"):
        atomic.write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(9)}, {})
    with pytest.raises(InputError, match="cannot write"):
        save_statistics(tmp_path / "y.safetensors", InputStatistics(torch.zeros(4, 4), torch.zeros(4), torch.zeros(1, 4), 1))
    assert not list(tmp_path.iterdir())


def test_files_are_on_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(atomic.os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")))
    atomic.write_text(tmp_path / "a.txt", "a")
    assert Path(done[0]).name.startswith(".a-") and done[1] == str(tmp_path)
    done.clear()
    with atomic.staging(tmp_path / "folder") as staged:
        (staged / "config.json").write_text("{}")
        (staged / "x").write_text("x")
    assert {Path(name).name for name in done[:2]} == {"config.json", "x"} and done[2] == str(tmp_path / "folder")


def test_the_record_has_a_digest_of_every_tensor(whole):
    import json

    found = tensors(whole)
    record = json.loads(found[RECORD].numpy().tobytes())
    assert record["digests"].keys() == found.keys() - {RECORD}
