"""Every command that writes a folder: what the path means, and refusals before the work."""

import os
from pathlib import Path

import pytest

from sedialect.cli.main import main
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.formatbook import Formatbook
from sedialect.sedialect_core.storage import marked

WORK = {  # each command, and what would begin its work
    "bench quality --quick": "sedialect.cli.bench._measured",
    "bench speed --quick --layers": "sedialect.cli.bench_speed._measure",
    "bench scale --quick": "sedialect.cli.bench_scale._measure",
    "bench speed --memory 8 --quick": "sedialect.bench.speed.held.measure_held",
    "generate bundled --prompts ../prompts.txt": "sedialect.sedialect_core.generation.worker.run_worker",
    "compare --model some-model --prompt word": "sedialect.sedialect_core.video.sampling.load_pipeline",
    "demo --steps 1": "sedialect.sedialect_core.comparison.compare",
    "formatbook fit --model bundled": "sedialect.sedialect_core.video.sampling.load_pipeline",
    "formatbook fit --model synthetic": "sedialect.sedialect_core.calibration.universal.fit_universal",
    "formatbook pull someone/book": "sedialect.sedialect_core.formatbook.Formatbook.from_pretrained",
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("output", ["../file", "../file/deeper", "../circle", ""])
@pytest.mark.parametrize("command", WORK)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(command, output, here, monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(WORK[command], lambda *_, **__: begun.append(command), raising=True)
    assert main([*command.split(), "--output", output]) == 2
    *progress, said = capsys.readouterr().err.splitlines()
    assert begun == [] and said.startswith("sedialect: ") and all(line.startswith("starting") for line in progress)
    assert (here / "file").read_text() == "mine" and list((here / "here").iterdir()) == []


@pytest.mark.parametrize("typed", ["../there/", "link", "~/there"])
def test_a_book_is_pulled_to_where_the_path_means(typed, here, monkeypatch):
    (here / "here" / "link").symlink_to(here / "there")
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setattr(Formatbook, "from_pretrained", lambda *_, **__: Formatbook.builtin())
    assert main(["formatbook", "pull", "someone/book", "--output", typed]) == 0
    assert (here / "there" / "formatbook.json").is_file()


@pytest.mark.parametrize("command", ["bench quality --quick", "bench speed --quick --layers"])
def test_a_document_without_a_place_for_the_tables_is_refused_before_the_work(command, here, monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(WORK[command], lambda *_, **__: begun.append(command))
    for document in (here / "file", here / "none"):
        assert main([*command.split(), "--output", str(here / "out"), "--write", str(document)]) == 2
    assert begun == [] and (here / "file").read_text() == "mine"


def test_marks_are_looked_for_without_writing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\n")
    marked.check_marked(page, ["x"])
    with pytest.raises(InputError, match="must hold <!-- y -->"):
        marked.check_marked(page, ["x", "y"])
    assert "old" in page.read_text()


READING = (
    "verify {0}",
    "plan {0}",
    "plan wan-2.1-1.3b --formatbook {0}",
    "quantize {0} --output out",
    "quantize {0} --output {0}",
    "formatbook show {0}",
    "formatbook push {0} me/book",
    "formatbook pull someone/book --output {0}",
    "formatbook fit --model {0} --prompts {0} --output out",
    "compare --model {0} --prompt word --output out",
    "generate bundled --prompts {0} --output out",
    "generate bundled --prompts ../prompts.txt --output {0}",
    "bench quality --model bundled --prompts {0} --output out",
    "app --calibration {0}",
)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 2500 + "a", "nul\0byte", "a" * 5000])
@pytest.mark.parametrize("command", READING)
def test_a_name_that_no_file_system_takes_is_told_in_a_sentence(command, name, here, monkeypatch, capsys):
    """As a prompt in the place of a file of prompts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([part.format(name) for part in command.split()]) == 2
    *progress, said = capsys.readouterr().err.splitlines()
    assert said.startswith("sedialect: ") and len(said) < 600, said
    assert all(line.startswith(("starting", "prompt: word", "loading")) for line in progress), progress


@pytest.mark.parametrize("write", [lambda book, path: book.save(path), lambda book, path: book.save_pretrained(path)])
def test_a_book_is_saved_where_a_path_means_and_read_from_there(write, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    book = Formatbook.builtin()
    (here / "home").mkdir()
    for path in ("~/a", "b c", "../ü"):
        write(book, path)
        assert Formatbook.resolve(path).digest == book.digest
    assert (here / "home" / "a").exists() and not (here / "here" / "~").exists()
    for path in ("", " ", "nul\0byte", "../file/x", "../circle/x", "a" * 300):
        with pytest.raises(InputError):
            write(book, path)
    assert (here / "file").read_text() == "mine"


@pytest.mark.parametrize("thing", ["pipe", "link to a device", "folder"])
def test_what_is_no_file_is_not_replaced_by_one(thing, tmp_path, capsys):
    """Whoever may write in its folder could: as root, a picture would take the place of /dev/null."""
    path = tmp_path / "picture.png"
    make = {"pipe": lambda: os.mkfifo(path), "link to a device": lambda: path.symlink_to("/dev/null"), "folder": path.mkdir}
    make[thing]()
    before = path.lstat()
    assert main(["formatbook", "show", "sedialect-32", "--png", str(path)]) == 2
    assert "where a file is to be written" in capsys.readouterr().err
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(tmp_path) == ["picture.png"]
