"""What the Hub says while something is pushed or pulled: one sentence with the remedy that fits, no mixture of models."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import pytest
import torch
from tiny_pipelines import build

from sedialect import Formatbook
from sedialect.cli.main import main
from sedialect.sedialect_core.errors import InputError

BOOK = Formatbook.builtin()
STATUSES = {
    400: "mend what it says, or update huggingface_hub",
    401: "log in with `hf auth login`, or pass another token",
    403: "pass one with write access",
    404: "check the name, and that you may see it",
    409: "something else has written there meanwhile: do it again",
    413: "write smaller files, as with --max-shard-size",
    422: "mend what it says, or update huggingface_hub",
    429: "wait some minutes and try again",
    500: "try again later",
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("part", ["/preupload/", "/lfs/upload/", "/commit/"])
@pytest.mark.parametrize("status", STATUSES)
def test_a_refused_push_says_what_helps_and_shows_nothing(hub, status, part):
    hub.refuse(part, status, times=-1)
    with pytest.raises(InputError, match="for 'me/book' at 'main': refused by the test; |with 'me/book' at 'main'") as error:
        BOOK.push_to_hub("me/book", token=hub.token)
    assert str(error.value).endswith(STATUSES[status]) and "\n" not in str(error.value)
    assert set(hub.files("me/book")) == {".gitattributes"}


def test_an_answer_that_lacks_what_the_client_reads_is_a_sentence(hub):
    hub.refuse("/repos/create", 409, times=-1)
    with pytest.raises(InputError, match="the Hub's answer for 'me/book' at 'main' lacks 'url'; update huggingface_hub"):
        BOOK.push_to_hub("me/book", token=hub.token)


def test_a_card_that_the_hub_does_not_take_is_not_blamed_on_the_connection(hub):
    hub.refuse("/validate-yaml", 400, times=-1)
    with pytest.raises(InputError, match=r"the Hub answers 400 for 'me/book'.* or update huggingface_hub"):
        BOOK.push_to_hub("me/book", token=hub.token)


def test_a_full_disk_under_the_cache_is_a_sentence_and_leaves_nothing_that_is_taken_for_the_file(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from sedialect import Formatbook; Formatbook.from_pretrained('me/book')"],
        capture_output=True,
        text=True,
        env=hub.env(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
        check=False,
    )
    assert done.returncode == 1 and "set HF_HOME to a writable place with free space" in done.stderr.splitlines()[-1]
    assert not list((hub.home / "hub").rglob("snapshots/*/*"))
    assert Formatbook.from_pretrained("me/book") == BOOK


@pytest.fixture
def bases(tmp_path) -> list[Path]:
    """One model, and the same with other weights."""
    pipe, _ = build("wan")
    pipe.transformer.save_pretrained(tmp_path / "one")
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(1.5)
    pipe.transformer.save_pretrained(tmp_path / "two")
    return [tmp_path / "one", tmp_path / "two"]


@pytest.mark.parametrize("sizes", [("20KB", "2GB"), ("2GB", "20KB"), ("20KB", "30KB")])
def test_what_is_pushed_over_another_model_is_what_is_loaded(hub, bases, tmp_path, monkeypatch, sizes):
    """An index, or shards, of the first model would be loaded in place of the second."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.add("me/wan", {"notes.txt": b"mine", "other/diffusion_pytorch_model.safetensors": b"not touched"})
    for number, (base, size) in enumerate(zip(bases, sizes, strict=True)):
        output = tmp_path / f"out{number}"
        arguments = ["--output", str(output), "--max-shard-size", size, "--device", "cpu", "--push-to", "me/wan"]
        assert main(["quantize", str(base), *arguments]) == 0
    kept = {".gitattributes", "notes.txt", "other/diffusion_pytorch_model.safetensors"}
    assert set(hub.files("me/wan")) - kept == {path.name for path in output.iterdir()}
    assert {"notes.txt", "other/diffusion_pytorch_model.safetensors"} <= set(hub.files("me/wan"))
    pulled, written = (diffusers.WanTransformer3DModel.from_pretrained(place) for place in ("me/wan", output))
    assert all(torch.equal(a, b) for a, b in zip(pulled.parameters(), written.parameters(), strict=True))


@pytest.mark.parametrize("command", ["quantize {base}", "formatbook fit --model synthetic", "formatbook fit --model {base}"])
def test_without_a_token_nothing_is_worked_on(hub, bases, tmp_path, monkeypatch, capsys, command):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    arguments = [part.format(base=bases[0]) for part in command.split()]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--push-to", "me/wan"]) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "out")
    assert main([*arguments, "--output", str(tmp_path / "out"), "--push-to", "nobody"]) == 2
    assert "--push-to is 'nobody'; write owner/name" in capsys.readouterr().err
