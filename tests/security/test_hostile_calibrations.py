"""Calibrations that are killed, run twice, damaged or forged, or find the disk full."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from damaged import flip
from safetensors.torch import load_file, save_file
from tiny_pipelines import build

from sedialect.cli.main import main
from sedialect.sedialect_core.calibration import cache as cache_module
from sedialect.sedialect_core.calibration import moments
from sedialect.sedialect_core.calibration.cache import INDEX, CalibrationCache
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.quantize.weights import InputStatistics
from sedialect.sedialect_core.storage import atomic
from sedialect.sedialect_core.storage.locking import only_one
from sedialect.sedialect_core.video.sampling import Request

REQUESTS = [
    Request(text, seed=i, steps=2, height=32, width=48, num_frames=5) for i, text in enumerate(("a b", "cd", "efg", "h"))
]
FIRST = "transformer.blocks.0.attn1.to_q.safetensors"
KILLS = 15
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipe():
    """A 16-bit pipeline that no test changes."""
    return build("wan")[0]


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder)
    return folder


def command(saved: Path, place: Path) -> list[str]:
    """Quantize with a calibration in `place`/c."""
    made = ["--calibrate", "--calibration", str(place / "c"), "--device", "cpu"]
    return ["quantize", str(saved), "--output", str(place / "out"), *made]


def calibrate(pipe, folder: Path) -> CalibrationCache:
    """Saved behind each prompt."""
    return moments.calibrate(pipe, REQUESTS, folder=folder, every=1, save_every=0, progress=False)


@pytest.fixture(scope="module")
def sound(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration") / "sound"
    calibrate(pipe, folder)
    return folder


@pytest.fixture
def copied(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copied"))


def same(one: Path, two: Path) -> bool:
    files = sorted(path.name for path in one.iterdir())
    if files != sorted(path.name for path in two.iterdir()):
        return False
    pairs = [(load_file(one / name), load_file(two / name)) for name in files if name != INDEX]
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)


def die_at(write: int, pipe, folder: Path) -> int:
    """Calibrate in a process that is killed at so many writes, between file and name; how it ended."""
    child = os.fork()
    if child == 0:
        left, sync = [write], atomic.sync

        def sync_or_die(path: Path) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(path)

        atomic.sync = sync_or_die
        try:
            calibrate(pipe, folder)
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_one_that_is_killed_fifteen_times_ends_the_same_and_leaves_nothing(pipe, sound, tmp_path):
    folder, chance = tmp_path / "killed", random.Random(19)
    writes = len(CalibrationCache.load(sound).inputs) * 2
    ends = [die_at(chance.randint(1, writes), pipe, folder) for _ in range(KILLS)]
    assert ends.count(-signal.SIGKILL) > KILLS // 2 and set(ends) <= {-signal.SIGKILL, 7}
    calibrate(pipe, folder)
    assert same(folder, sound)


def test_one_that_is_killed_among_its_results_samples_nothing_again(pipe, sound, tmp_path, monkeypatch):
    """All but the last prompt had been saved; some of the inputs are there, the others wait in the unfinished pass."""
    put, left = CalibrationCache.put, [3]

    def and_stop(self, *statistics):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        put(self, *statistics)

    with monkeypatch.context() as patched:
        patched.setattr(CalibrationCache, "put", and_stop)
        with pytest.raises(KeyboardInterrupt):
            calibrate(pipe, tmp_path / "c")
    sampled, once = [], moments.generate
    monkeypatch.setattr(moments, "generate", lambda *args, **kw: (sampled.append(args[1].prompt), once(*args, **kw)))
    calibrate(pipe, tmp_path / "c")
    assert sampled == ["h"] and same(tmp_path / "c", sound)


def test_files_of_a_killed_process_are_removed_and_those_of_others_are_not(pipe, copied, sound):
    cut, other = copied / f".{FIRST.removesuffix('.safetensors')}-abcd1234.safetensors", copied / ".mine-1.safetensors"
    (copied / FIRST).rename(cut)
    shutil.copy(cut, other)
    calibrate(pipe, copied)
    assert not cut.exists() and other.exists()
    other.unlink()
    assert same(copied, sound)


def test_two_do_not_write_into_one_folder(pipe, saved, tmp_path, monkeypatch, capsys):
    said, once = [], moments.generate

    def and_another(*args, **kwargs):
        with pytest.raises(InputError, match=r"another process is writing .*calibration\.json; wait until it has ended"):
            calibrate(pipe, tmp_path / "c")
        said.append(1)
        return once(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(moments, "generate", and_another)
        calibrate(pipe, tmp_path / "c")
    assert len(said) == len(REQUESTS)
    monkeypatch.setattr("sedialect.sedialect_core.video.sampling.load_pipeline", lambda *_: pytest.fail("loaded"))
    with only_one(tmp_path / "c" / INDEX):
        assert main(command(saved, tmp_path)) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert not list((tmp_path / "c").glob(".*"))


def test_a_disk_without_room_is_told_before_anything_is_sampled(pipe, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(0, 0, 200_000))
    monkeypatch.setattr(moments, "generate", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(InputError, match=r"c needs 0\.\d GB and 0\.0 GB are free; free some first"):
        calibrate(pipe, tmp_path / "c")


def test_a_disk_that_fills_up_is_a_sentence(saved, tmp_path):
    """The real writer: the system takes no file larger than 20 kB; the moment of 96 channels has 37."""
    size = ["--height", "32", "--width", "48", "--num-frames", "5"]
    (tmp_path / "prompts").write_text("a red ball\n" * 4)
    found = subprocess.run(
        [sys.executable, "-P", "-m", "sedialect", *command(saved, tmp_path), *size, "--prompts", str(tmp_path / "prompts")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        check=False,
    )
    lines = [line for line in found.stderr.splitlines() if line.startswith("sedialect: ")]
    assert found.returncode == 2 and len(lines) == 1 and "Traceback" not in found.stderr
    assert "cannot write" in lines[0] and lines[0].endswith("choose a writable place with free space")
    assert (tmp_path / "c" / INDEX).exists() and not list((tmp_path / "c").glob(".*"))


@pytest.mark.parametrize("name", ["unfinished.abc", "unfinished.", "unfinished.-1", "unfinished.9", "unfinished.3"])
@pytest.mark.parametrize("kind", ["file", "folder", "forged"])
def test_what_pretends_to_be_an_unfinished_pass_is_not_taken_for_one(pipe, copied, sound, name, kind):
    (copied / FIRST).unlink()
    if kind == "file":
        (copied / name).write_text("")
    else:
        (copied / name).mkdir()
    if kind == "forged" and name != "unfinished.3":
        shutil.copy(sound / "transformer.blocks.0.attn1.to_out.0.safetensors", copied / name / FIRST)
    if kind == "file" and name == "unfinished.3":
        with pytest.raises(InputError, match=r"cannot write .*unfinished\.3"):
            calibrate(pipe, copied)
        (copied / name).unlink()
    calibrate(pipe, copied)
    assert torch.equal(load_file(copied / FIRST)["moment"], load_file(sound / FIRST)["moment"])


def test_bits_that_flip_are_found(copied, sound):
    entry = next(entry for entry in CalibrationCache.load(copied).inputs if f"{entry.name}.safetensors" == FIRST)
    path, chance = copied / FIRST, random.Random(20)
    for _ in range(100):
        shutil.copy(sound / FIRST, path)
        flip(path, chance.randrange(path.stat().st_size))
        with pytest.raises(InputError, match=r"to_q\.safetensors cannot be read .*; remove it and calibrate again"):
            cache_module.load_statistics(path, entry)


FORGED = {
    "integers": {"moment": lambda moment: moment.long()},
    "whole peaks": {"peak": lambda peak: peak.long()},
    "float8": {"moment": lambda moment: moment.to(torch.float8_e4m3fn)},
    "bytes as rows": {"rows": lambda rows: rows.to(torch.uint8)},
    "narrow rows": {"rows": lambda rows: rows[:, :8].contiguous()},
    "deep rows": {"rows": lambda rows: rows[None]},
    "flat rows": {"rows": lambda rows: rows.flatten()},
    "rows of NaN": {"rows": lambda rows: rows * torch.nan},
    "peaks of Inf": {"peak": lambda peak: peak * torch.inf},
    "a wide moment": {"moment": lambda moment: moment.repeat(2, 2)},
    "a negative count": {"count": -3},
    "a long count": {"count": "9" * 4000},
    "a word as count": {"count": "many"},
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_statistics_are_refused_although_their_digest_fits(copied, name):
    tensors, changes = load_file(copied / FIRST), dict(FORGED[name])
    count = changes.pop("count", 100)
    tensors |= {key: change(tensors[key]) for key, change in changes.items()}
    digest = cache_module._digest(tensors, count)
    save_file(tensors, copied / FIRST, {"count": str(count), "digest": digest})
    pipe, _ = build("wan")
    with pytest.raises(InputError, match=r"to_q\.safetensors cannot be read .*; remove it and calibrate again") as error:
        pipe.enable_sedialect(calibration=copied, progress=False)
    assert len(str(error.value).replace(str(copied), "")) < 300


def test_the_digest_is_of_all_three_and_the_count(tmp_path):
    statistics = InputStatistics(torch.eye(4), torch.ones(4), torch.ones(2, 4), 5)
    cache_module.save_statistics(tmp_path / "x.safetensors", statistics)
    entry = cache_module.Input("transformer", ("x",), 4, "video")
    assert cache_module.load_statistics(tmp_path / "x.safetensors", entry).count == 5
    tensors = load_file(tmp_path / "x.safetensors")
    for digest in ({}, {"digest": cache_module._digest(tensors, 6)}):
        save_file(tensors, tmp_path / "x.safetensors", {"count": "5", **digest})
        with pytest.raises(InputError, match="differs from its digest"):
            cache_module.load_statistics(tmp_path / "x.safetensors", entry)


def test_an_index_of_another_version_or_of_no_calibration_is_refused(pipe, copied):
    data = json.loads((copied / INDEX).read_text())
    (copied / INDEX).write_text(json.dumps({**data, "format_version": 2}))
    with pytest.raises(InputError, match="is of version 2; this sedialect reads 1: update sedialect"):
        calibrate(pipe, copied)
    (copied / INDEX).unlink()
    (copied / INDEX).mkdir()
    with pytest.raises(InputError, match="holds no calibration"):
        calibrate(pipe, copied)
