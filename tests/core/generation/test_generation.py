"""`sedialect generate`: workers that share a list of prompts, are killed, fail, and are started again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from interruptible import PATIENCE
from placed_work import write_or_fail
from tiny_pipelines import build

from sedialect.cli.main import main
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.generation import worker as generation
from sedialect.sedialect_core.generation.finished import progress
from sedialect.sedialect_core.generation.worker import GenerateVideos, VideoBatch, run_worker
from sedialect.sedialect_core.video.sampling import Request
from sedialect.sedialect_core.video.work_list import file_name, seed_of, share, work_list
from sedialect.sedialect_core.video.workers import Place, launched, run_processes

VIDEOS = int(os.environ.get("SEDIALECT_VIDEOS", "30"))
TINY = ["--steps", "1", "--height", "16", "--width", "32", "--num-frames", "1", "--device", "cpu", "--dtype", "float32"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build("wan")[0].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"ball {number}" for number in range(VIDEOS // 2)), encoding="utf-8")
    return path


def arguments(model: Path, prompts: Path, output: Path) -> list[str]:
    return ["generate", str(model), "--prompts", str(prompts), "--output", str(output), "--samples", "2", *TINY]


def digests(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {video["file"]: video["sha256"] for video in manifest["videos"]}


def batch(model: Path, output: Path, prompts: tuple[str, ...] = ("one", "two"), **settings: object) -> VideoBatch:
    request = Request(prompt="-", steps=1, height=16, width=32, num_frames=1)
    return VideoBatch(str(model), prompts, output, request=request, dtype="float32", **settings)


def test_a_worker_that_is_killed_and_started_again_changes_nothing(model, prompts, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    workers = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "sedialect", *arguments(model, prompts, broken)],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + PATIENCE
    while len(list(broken.glob("[!.]*-1.mp4"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers[1].kill()
    assert [worker.wait() for worker in workers] == [0, -9]
    recorded = [json.loads(path.read_text(encoding="utf-8")) for path in (broken / ".records").glob("[!.]*.json")]
    before = {record["file"]: (broken / record["file"]).stat().st_mtime_ns for record in recorded}
    assert VIDEOS / 2 < len(before) < VIDEOS, "killed too early or too late to show anything"
    assert main(arguments(model, prompts, broken)) == 0
    assert main(arguments(model, prompts, whole)) == 0
    assert digests(broken) == digests(whole) and len(digests(whole)) == VIDEOS
    assert all((broken / name).stat().st_mtime_ns == written for name, written in before.items())
    assert sorted(path.name for path in broken.glob("*.mp4")) == sorted(digests(whole))
    assert all((broken / name).read_bytes() == (whole / name).read_bytes() for name in digests(whole))
    capsys.readouterr()
    assert main([*arguments(model, prompts, broken), "--status"]) == 0
    assert json.loads(capsys.readouterr().out) == {"done": VIDEOS, "failed": 0, "left": 0}


def test_one_that_fails_does_not_stop_the_rest_and_is_tried_again(model, tmp_path, monkeypatch):
    made = generation.generate

    def stumble(pipe, request, *rest, **options):
        if request.prompt == "one":
            raise RuntimeError("out of luck\nand more")
        return made(pipe, request, *rest, **options)

    monkeypatch.setattr(generation, "generate", stumble)
    job = batch(model, tmp_path, samples=2)
    with pytest.raises(
        InputError, match=r"2 of 4 videos failed, the first, one-0\.mp4: RuntimeError: out of luck; run the command again"
    ):
        run_worker(Place(), job)
    assert progress(tmp_path, job.items()) == {"done": 2, "failed": 2, "left": 0}
    monkeypatch.setattr(generation, "generate", made)
    run_worker(Place(), job)
    assert progress(tmp_path, job.items()) == {"done": 4, "failed": 0, "left": 0}
    assert all(len(digest) == 64 for digest in digests(tmp_path).values())


def test_rows_are_made_as_ray_data_asks_for_them(model, tmp_path):
    job = batch(model, tmp_path)
    worker = GenerateVideos(job, "cpu")
    rows = job.rows()
    columns = {name: [row[name] for row in rows] for name in ("prompt", "index")}
    found = worker(columns)
    assert found["status"] == ["done", "done"] and found["file"] == ["one-0.mp4", "two-0.mp4"]
    assert (tmp_path / "two-0.mp4").is_file()
    with pytest.raises(InputError, match="sample 1 of 'one' is none of this batch's"):
        worker({"prompt": ["one"], "index": [1]})


def test_videos_of_two_settings_are_not_mixed(model, tmp_path):
    GenerateVideos(batch(model, tmp_path), "cpu")
    with pytest.raises(InputError, match='"fps": 16, there, "fps": 8, here'):
        GenerateVideos(batch(model, tmp_path, fps=8), "cpu")


def test_a_damaged_record_and_a_lost_video_are_made_again(model, tmp_path):
    job = batch(model, tmp_path)
    run_worker(Place(), job)
    before = digests(tmp_path)
    (tmp_path / ".records" / "one-0.json").write_text("{", encoding="utf-8")
    (tmp_path / "two-0.mp4").unlink()
    (tmp_path / ".two-0-abcd1234.mp4").write_bytes(b"what a killed worker leaves")
    run_worker(Place(), job)
    assert digests(tmp_path) == before and (tmp_path / "two-0.mp4").is_file()
    assert not (tmp_path / ".two-0-abcd1234.mp4").exists()


def test_noise_and_names_follow_from_prompt_and_index_alone():
    items = work_list(["a cat", "a dog", "a cat", "A cat", "what / is? this"], 2, Request(prompt="-"))
    assert [item.name for item in items[:6]] == ["a cat-0", "a cat-1", "a dog-0", "a dog-1", "a cat-2", "a cat-3"]
    assert len({item.name.lower() for item in items}) == len({item.request.seed for item in items}) == len(items)
    assert (
        items[8].name == file_name("what / is? this", 0) == "what-is-this-" + file_name("what / is? this", 0)[13:23] + "-0"
    )
    assert seed_of("a cat", 2) == items[4].request.seed < 2**63
    torch.Generator().manual_seed(2**63 - 1)  # the largest that there can be
    assert [item.name for rank in range(3) for item in share(items, rank, 3)] != [item.name for item in items]
    assert {item.name for rank in range(3) for item in share(items, rank, 3)} == {item.name for item in items}
    with pytest.raises(InputError, match="--samples is 0"):
        work_list(["a cat"], 0, Request(prompt="-"))


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(3, 8, 1, "cuda")),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, None),  # a shell by srun --pty
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script runs once, however many tasks it may start
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, Place(5, 8, 1, "cuda")),
        (
            {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"},
            Place(2, 4, 0, "cuda"),
        ),
    ],
)
def test_launchers_are_known_by_their_variables(variables, place):
    assert launched("cuda", variables) == place


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "one", "WORLD_SIZE": "8"}, "RANK='one' and WORLD_SIZE='8' of torchrun are no numbers"),
        ({"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_COUNT": "4"}, "none of 4 processes; number them without gaps"),
    ],
)
def test_variables_that_fit_nothing_are_refused(variables, says):
    with pytest.raises(InputError, match=says):
        launched("cuda", variables)


def test_workers_that_do_not_need_each_other_finish(tmp_path):
    with pytest.raises(InputError, match="process 1 of 2 failed, and the others have finished"):
        run_processes(write_or_fail, 2, "cpu", str(tmp_path), together=False)
    assert (tmp_path / "0").is_file()
