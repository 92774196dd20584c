"""Files of prompts from anywhere, and what stands in a job's folder: read right, or refused in a sentence."""

import json
import os
from pathlib import Path

import pytest
from tiny_pipelines import build

from sedialect.cli.main import main
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.generation.finished import is_done, keep_to_job, read_record
from sedialect.sedialect_core.generation.worker import VideoBatch
from sedialect.sedialect_core.video.sampling import Request
from sedialect.sedialect_core.video.work_list import MAX_ITEMS, read_lines, read_prompts, work_list

DEEP = "[" * 100_000 + "]" * 100_000


def written(folder: Path, content: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    ["a fox\n\n  a ball  \n", "a fox\r\na ball", "a fox\ra ball\r", "\ufeffa fox\na ball\n"],
    ids=["lines", "Windows", "old Mac", "with a byte order mark"],
)
def test_lines_of_every_editor_are_read(content, tmp_path):
    path = written(tmp_path, content)
    assert read_lines(path) == ["a fox", "a ball"] and read_prompts(path) == [("a fox", 0), ("a ball", 1)]


def test_a_prompt_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path):
    assert read_lines(written(tmp_path, "a\u2028b\x0cc\x85d")) == ["a\u2028b\x0cc\x85d"]


def test_json_keeps_its_seeds(tmp_path):
    text = json.dumps([{"prompt": "a\nb", "seed": 7}, {"prompt": "ü", "seed": 2**63}])
    path = written(tmp_path, "\ufeff" + text, "prompts.json")
    assert read_prompts(path) == [("a\nb", 7), ("ü", 2**63)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9".encode("latin-1"), r"is no text in UTF-8 \(byte 3\); save it as UTF-8"),
        ("a fox".encode("utf-16"), "is no text in UTF-8"),
        ("", "holds no prompt; write one a line"),
        ("\ufeff \n", "holds no prompt"),
    ],
)
def test_text_that_is_none_is_told(content, message, tmp_path):
    for read in (read_lines, read_prompts):
        with pytest.raises(InputError, match=message):
            read(written(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        "{}", "5", DEEP, "[5]", "[[]]", '[{"prompt": "a"}]', '[{"prompt": null, "seed": 1}]',
        '[{"prompt": ["a"], "seed": 1}]',
        '[{"prompt": "a", "seed": 1.5}]', '[{"prompt": "a", "seed": NaN}]', '[{"prompt": "a", "seed": Infinity}]',
        '[{"prompt": "a", "seed": 1e999}]', '[{"prompt": "a", "seed": true}]', f'[{{"prompt": "a", "seed": {"9" * 5000}}}]',
        '[{"prompt": " ", "seed": 1}]', "[]", '[{"prompt": "a", "prompt": "b", "seed": 1}]', "[",
    ],
)  # fmt: skip
def test_json_that_is_no_list_of_prompts_is_told(content, tmp_path):
    with pytest.raises(InputError) as raised:
        read_prompts(written(tmp_path, content, "prompts.json"))
    assert "prompts.json" in str(raised.value) and len(str(raised.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nothing"])
def test_what_is_no_file_is_told_at_once(kind, tmp_path):
    path = tmp_path / "prompts.txt"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero")}.get(
        kind, lambda: None
    )()
    with pytest.raises(InputError, match="prompts.txt"):
        read_prompts(path)


def test_what_no_program_can_encode_or_seed_is_told():
    for changes in ({"prompt": "\ud83d"}, {"negative_prompt": "\udcff"}, {"seed": 2**64}, {"guidance_scale": float("nan")}):
        with pytest.raises(InputError):
            Request(**{"prompt": "a", **changes})
    with pytest.raises(InputError, match="half a character"):
        work_list(["\ud83d"], 1, Request("-"))


@pytest.mark.parametrize("samples", [0, -1, MAX_ITEMS, 10**30])
def test_more_videos_than_a_job_can_have_are_refused_at_once(samples):
    with pytest.raises(InputError, match="--samples is"):
        work_list(["a", "b"], samples, Request("-"))


@pytest.mark.parametrize("fps", [0, -1, 10**6])
def test_frames_a_second_are_looked_at_before_the_work(fps):
    with pytest.raises(InputError, match="--fps is"):
        VideoBatch("model", ("a",), Path("out"), fps=fps)


@pytest.mark.parametrize(
    "record",
    [DEEP, "[]", "\ud800", '{"status": ["done"]}', '{"status": "done", "file": "/etc/hostname"}', '{"status": "done"}',
     '{"status": "done", "file": "../a-0.mp4"}', '{"status": "done", "file": 5}', '{"status": "done", "file": "\\u0000"}'],
)  # fmt: skip
def test_a_record_that_is_no_record_of_this_video_makes_it_again(record, tmp_path):
    (item,) = work_list(["a"], 1, Request("-"))
    (tmp_path / ".records").mkdir()
    (tmp_path / ".records" / "a-0.json").write_bytes(record.encode(errors="surrogatepass"))
    written(tmp_path, b"video", "a-0.mp4")
    assert not is_done(tmp_path, item)


def test_a_video_that_is_empty_is_made_again(tmp_path):
    (item,) = work_list(["a"], 1, Request("-"))
    (tmp_path / ".records").mkdir()
    written(tmp_path / ".records", '{"status": "done", "file": "a-0.mp4"}', "a-0.json")
    assert read_record(tmp_path, item) and not is_done(tmp_path, item)
    written(tmp_path, b"", "a-0.mp4")
    assert not is_done(tmp_path, item)
    written(tmp_path, b"video", "a-0.mp4")
    assert is_done(tmp_path, item)


@pytest.mark.parametrize("there", [b"\xff\xfe", b"", b"[" * 100_000])
def test_a_job_that_cannot_be_read_is_another_job(there, tmp_path):
    written(tmp_path, there, "job.json")
    with pytest.raises(InputError, match="holds videos of another job"):
        keep_to_job(tmp_path, {"model": "x"})


def test_a_finished_folder_is_not_taken_for_one_of_other_settings(tmp_path, capsys, one_thread):
    """All videos were there, so nothing was made, and nothing said."""
    pipe, _ = build("wan")
    pipe.save_pretrained(tmp_path / "model")
    command = ["generate", str(tmp_path / "model"), "--prompts", str(written(tmp_path, "a\n")), "--output"]
    command += [str(tmp_path / "out"), "--height", "32", "--width", "32", "--num-frames", "1", "--device", "cpu", "--steps"]
    assert main([*command, "1"]) == 0 and main([*command, "1"]) == 0
    capsys.readouterr()
    assert main([*command, "2"]) == 2
    assert "holds videos of another job" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    prompts = str(written(tmp_path, "a"))
    assert main(["generate", "x/y", "--prompts", prompts, "--output", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert "no CUDA GPU; use --device cpu" in capsys.readouterr().err
