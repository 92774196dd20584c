"""`sedialect formatbook show | push | pull`, against the Hub stand-in."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import build

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.cli import main as cli
from sedialect.sedialect_core.charts import dialects as dialect_chart
from sedialect.sedialect_core.charts.use import use_by_model

BOOK = Formatbook.builtin()
ROW = re.compile(r"^ *(\d+) +(\d+) +(\d+) +([●·#.]{16}) +(\*?) +([\d.]+)%", re.MULTILINE)


def formatbook(*arguments: object) -> int:
    return cli.main(["formatbook", *map(str, arguments)])


def command(hub, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-P", "-m", "sedialect", "formatbook", *arguments]
    return subprocess.run(line, capture_output=True, text=True, encoding="utf-8", env=hub.env(**env))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Wan pipeline on disk."""
    folder = tmp_path_factory.mktemp("tiny-wan")
    build("wan")[0].save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["sedialect-32", "dialectfp4-16"])
def test_show_prints_every_dialect(capsys, name):
    assert formatbook("show", name) == 0
    out, book = capsys.readouterr().out, Formatbook.builtin(name)
    rows = ROW.findall(out)
    assert len(rows) == len(book.dialects) and book.digest in out and "use by Gaussian blocks of 16" in out
    for number, (dialect, row) in enumerate(zip(book.dialects, rows, strict=True)):
        assert [int(value) for value in row[:3]] == [number, dialect.maximum, number % book.shapes]
        assert tuple(unit for unit, sign in enumerate(row[3]) if sign == "●") == dialect.half_units
        assert (row[4] == "*") == dialect.published
    assert sum(float(row[5]) for row in rows) == pytest.approx(100, abs=2)


def test_show_counts_the_choices_of_a_models_weights(capsys, model, hub):
    pipe, _ = build("wan")
    quantize_model(pipe.transformer.bfloat16(), SeDialectConfig(block_size=32, formatbook=BOOK.name))
    layers = [layer for layer in pipe.transformer.modules() if isinstance(layer, SeDialectLinear)]
    expected = sum(np.bincount((layer.weight_meta & 31).flatten().numpy(), minlength=32) for layer in layers)
    assert use_by_model(BOOK, str(model), block_size=32) == expected.tolist()
    files = {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    hub.add("me/wan", files)
    assert formatbook("show", "--model", "me/wan", "--block-size", 32) == 0
    out = capsys.readouterr().out
    assert "use by weights of me/wan" in out
    shares = [float(row[5]) for row in ROW.findall(out)]
    assert shares == pytest.approx(100 * expected / expected.sum(), abs=0.051)
    fetched = {path for method, path, _ in hub.requests if method == "GET" and path.endswith(".safetensors")}
    assert all("/transformer/" in path for path in fetched), "of a pipeline only its transformers are loaded"
    hub.add(
        "me/transformer", {name.removeprefix("transformer/"): data for name, data in files.items() if "transformer/" in name}
    )
    assert use_by_model(BOOK, "me/transformer", block_size=32) == expected.tolist()


def test_show_draws_the_dialects_and_their_use(tmp_path, capsys):
    assert formatbook("show", "--png", tmp_path / "folder" / "book.png") == 0
    assert f"written: {tmp_path / 'folder' / 'book.png'}" in capsys.readouterr().out
    with Image.open(tmp_path / "folder" / "book.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for number, dialect in enumerate(BOOK.dialects):
        y = round(dialect_chart._row(BOOK, number))
        colour = np.array([int(dialect_chart.COLOURS[number % 4][i : i + 2], 16) for i in (1, 3, 5)])
        for unit in range(16):
            centre = pixels[y, dialect_chart._column(unit)]
            if unit in dialect.half_units and dialect.published:
                assert np.abs(centre - colour).max() < 12, "a filled dot"
            elif unit in dialect.half_units:
                assert centre.min() > 240, "a ring"
            ring = pixels[y - dialect_chart.DOT + 1, dialect_chart._column(unit)]
            assert (np.abs(ring - colour).max() < 90) == (unit in dialect.half_units)


def test_a_terminal_without_these_signs_gets_plain_ones(hub):
    done = command(hub, "show", "sedialect-32", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and len(ROW.findall(done.stdout)) == 32 and "#####.#......#.#" in done.stdout


def test_names_from_elsewhere_cannot_steer_the_terminal(tmp_path, capsys):
    replace(BOOK, name="\x1b[31mred\nline").save(tmp_path / "book.json")
    assert formatbook("show", tmp_path / "book.json") == 0
    assert capsys.readouterr().out.startswith("?[31mred?line\n")


def test_push_pull_and_show_in_processes_of_their_own(hub, tmp_path):
    file = replace(BOOK, name="mine").save(tmp_path / "mine.json")
    done = command(hub, "push", str(file), "me/book", "--private", "--message", "From the shell", HF_TOKEN=hub.token)
    assert done.returncode == 0 and done.stdout.startswith(f"pushed: {hub.url}/me/book/commit/"), done.stderr
    assert hub.repos["me/book"].private and hub.log("me/book")[0] == "From the shell"
    done = command(hub, "pull", "me/book", "--output", str(tmp_path / "pulled.json"), HF_TOKEN=hub.token)
    assert done.returncode == 0 and BOOK.digest in done.stdout, done.stderr
    assert (tmp_path / "pulled.json").read_bytes() == file.read_bytes()
    done = command(hub, "show", "me/book", HF_TOKEN=hub.reader)
    assert done.returncode == 0 and done.stdout.startswith("mine\n"), done.stderr
    hub.forget()
    done = command(hub, "pull", "me/book", "--output", str(tmp_path / "never.json"))
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "never.json").exists()
    assert "sedialect: the Hub has no repository 'me/book' that you may see" in done.stderr.splitlines()[-1]


def test_pull_writes_a_folder_or_a_file_named_after_the_repository(hub, tmp_path, monkeypatch, capsys):
    other = replace(Formatbook.builtin("dialectfp4-16"), fingerprint={"model": "org/base"})
    other.push_to_hub("me/book", token=hub.token)
    other.push_to_hub("me/book", token=hub.token, revision="v2")
    BOOK.push_to_hub("me/book", token=hub.token)
    assert formatbook("pull", "me/book", "--revision", "v2", "--output", tmp_path / "book") == 0
    got = Formatbook.from_pretrained(tmp_path / "book")
    assert got == other and got.fingerprint == other.fingerprint
    monkeypatch.chdir(tmp_path)
    assert formatbook("pull", "me/book") == 0
    assert Formatbook.from_file("book.json") == BOOK
    assert formatbook("pull", "me/book", "--revision", "v2") == 2
    assert "book.json exists already; pass --output book.json to replace it" in capsys.readouterr().err
    assert formatbook("pull", "me/book", "--revision", "v2", "--output", "book.json") == 0
    assert Formatbook.from_file("book.json") == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "no formatbook 'nowhere': it is neither a file nor one of"),
        (["show", "me/nothing"], "the Hub has no repository 'me/nothing' that you may see"),
        (["show", "--block-size", "7"], "block size 7 is not supported; choose one of 16, 32"),
        (["show", "--model", "nowhere"], "no model 'nowhere': there is no such folder"),
        (["show", "--model", "me/nothing"], "the Hub has no repository 'me/nothing' that you may see"),
        (["show", "--png", "/dev/null/book.png"], "cannot write /dev/null/book.png"),
        (["push", "sedialect-32", "me/book"], "log in with `hf auth login`"),
        (["push", "nowhere.json", "me/book"], "no formatbook 'nowhere.json'"),
        (["push", "sedialect-32", "one/two/three"], "'one/two/three' is no repository on the Hub: write owner/name"),
        (["pull", "me/nothing"], "the Hub has no repository 'me/nothing' that you may see"),
        (["pull", "../../etc"], "a Hub repository is called owner/name"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(hub, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert formatbook(*arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sedialect: ")]
    assert message in line
    assert not list(tmp_path.iterdir()) and not hub.repos


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model_index.json": b'{"unet": ["diffusers", "X"]}'}, "has no transformer; pass a video diffusion transformer"),
        ({"model_index.json": b"["}, "model_index.json of 'me/model' cannot be read"),
        ({"model_index.json": b'{"transformer": ["diffusers", "X"]}'}, "cannot load transformer of 'me/model'"),
        ({"README.md": b"hello"}, "cannot load the model of 'me/model'"),
    ],
)
def test_models_that_will_not_do_are_named(hub, capsys, files, message):
    hub.add("me/model", files)
    assert formatbook("show", "--model", "me/model") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sedialect: ") and message in error
