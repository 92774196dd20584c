"""Where `sedialect quantize` writes: `.`, `..`, slashes, links, `~`, other alphabets, files in the way, other disks."""

import errno
import os
from pathlib import Path

import diffusers
import pytest
import torch
from tiny_models import TINY

from sedialect.cli import main as cli
from sedialect.sedialect_core.checkpoint import conversion
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.storage import paths

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    TINY["WanTransformer3DModel"]()[0].to(torch.bfloat16).save_pretrained(folder)
    return folder


def quantize(model: Path, output: str) -> int:
    return cli.main(["quantize", str(model), "--output", output, "--device", "cpu"])


def is_whole(folder: Path) -> bool:
    names = sorted(path.name for path in folder.iterdir())
    model = diffusers.WanTransformer3DModel.from_pretrained(str(folder))
    return names == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"] and model.is_quantized


CASES = {  # from the folder `here` inside tmp_path: what is typed -> where the model is to lie
    ".": "here",
    "./": "here",
    "out/": "here/out",
    "out//": "here/out",
    "./a/../out": "here/out",
    "../there": "there",
    "deep/er/out": "here/deep/er/out",
    "a folder/with spaces": "here/a folder/with spaces",
    "ürün/模型": "here/ürün/模型",
    "~/out": "home/out",
    "link": "target",
    "link/": "target",
    "broken": "not-yet",
    "link/out": "target/out",
}


@pytest.mark.parametrize("typed", CASES)
def test_the_model_lies_where_the_path_means(typed, single, tmp_path, monkeypatch, capsys):
    for name in ("here", "home", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "target")
    (tmp_path / "here" / "broken").symlink_to(tmp_path / "not-yet")
    if CASES[typed] == "here":
        for name in ("link", "broken"):
            (tmp_path / "here" / name).unlink()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert quantize(single, typed) == 0
    wanted = tmp_path / CASES[typed]
    assert f"written: {wanted}" in capsys.readouterr().out
    assert is_whole(wanted), "also for whoever stands in the folder"
    assert not list(tmp_path.rglob("*unfinished*"))
    assert (tmp_path / "here" / "link").is_symlink() == (CASES[typed] != "here")
    assert quantize(single, typed) == 0 and is_whole(wanted)  # a finished output is not done again


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("file", "is a file, where a folder is to be written"),
        ("file/out", "is a file, where a folder is to be written"),
        ("round", "is no place to write to"),
        ("", "a path to write to is empty"),
        ("~nobody-of-this-name/out", "is no place to write to"),
        ("nul\0out", "is no place to write to"),
        ("/proc/out", "cannot write"),
    ],
)
def test_what_is_no_place_is_refused_before_the_work(typed, message, single, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conversion._Task, "run", lambda task: pytest.fail("work was begun"))
    assert quantize(single, typed) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before and (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission_is_refused_before_the_work(single, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr(conversion._Task, "run", lambda task: pytest.fail("work was begun"))
    assert quantize(single, str(tmp_path / "deep" / "out")) == 2
    assert "Permission denied; choose a writable place" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_on_another_disk_is_worked_in_itself(single, tmp_path, monkeypatch):
    output = tmp_path / "mounted"
    output.mkdir()
    monkeypatch.setattr(conversion, "on_another_disk", lambda folder: folder == output)
    rename, moves = Path.rename, []

    def watched(self, target):
        moves.append((self, Path(target)))
        assert (output in self.parents) == (output in Path(target).parents), "a move across disks"
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    assert quantize(single, str(output)) == 0 and is_whole(output) and moves


def test_a_work_that_stopped_goes_on_in_the_folder_one_stands_in(single, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish = conversion.publish
    monkeypatch.setattr(conversion, "publish", lambda job, card: (_ for _ in ()).throw(InputError("stopped")))
    assert quantize(single, ".") == 2
    monkeypatch.setattr(conversion, "publish", publish)
    assert quantize(single, ".") == 0 and is_whole(tmp_path)
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.unfinished"))


def test_a_place_is_where_a_path_leads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.place(".") == paths.place("./x/..") == tmp_path.resolve()
    assert paths.place(Path("a b")) == tmp_path.resolve() / "a b"
