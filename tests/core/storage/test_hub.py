"""Books on the Hub: the real client over HTTP against the stand-in of hub_server.py."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from tiny_pipelines import build

from sedialect import Formatbook, SeDialectLinear
from sedialect.sedialect_core.errors import FormatbookError, InputError
from sedialect.sedialect_core.storage import hub as transport

BOOK = replace(Formatbook.builtin(), name="mine", description="For tests.")
FITTED = replace(BOOK, fingerprint={"model": "org/base-model", "prompts": "64", "digest": "ab" * 32})
FILES = {"README.md", "formatbook.json", "formatbook.safetensors"}


def saved(folder, book=BOOK) -> dict[str, bytes]:
    """The files of a saved book by name."""
    return {path.name: path.read_bytes() for path in book.save_pretrained(folder).iterdir()}


def python(hub, code: str, **env: str) -> subprocess.CompletedProcess:
    """A fresh client: its environment is read when it is imported."""
    command = [sys.executable, "-P", "-c", f"from sedialect import Formatbook\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, env=hub.env(**env))


def test_a_pushed_book_is_pulled_by_its_name(hub):
    address = BOOK.push_to_hub("me/book", token=hub.token, commit_message="First")
    assert address.startswith(f"{hub.url}/me/book/commit/") and hub.log("me/book") == ["First", "initial commit"]
    assert set(hub.files("me/book")) == FILES | {".gitattributes"}
    for got in (Formatbook.from_pretrained("me/book"), Formatbook.resolve("me/book")):
        assert (got, got.digest, got.name, got.description) == (BOOK, BOOK.digest, "mine", "For tests.")
        assert got.fingerprint is None
    assert [d.published for d in Formatbook.resolve("me/book").dialects] == [d.published for d in BOOK.dialects]


def test_what_a_book_was_fitted_on_travels_with_it_and_names_the_base_model(hub, tmp_path):
    FITTED.push_to_hub("me/book", token=hub.token)
    got = Formatbook.from_pretrained("me/book")
    assert got.fingerprint == FITTED.fingerprint and (got, got.digest) == (BOOK, BOOK.digest)
    from huggingface_hub import ModelCard

    path = tmp_path / "README.md"
    path.write_bytes(hub.files("me/book")["README.md"])
    card = ModelCard.load(path)
    assert (card.data.library_name, card.data.base_model) == ("sedialect", "org/base-model")
    assert {"sedialect", "formatbook"} <= set(card.data.tags) and BOOK.digest in card.text
    assert 'pipe.enable_sedialect(formatbook="me/book")' in card.text
    assert f"| 31 | 8 | 3 | {' '.join(map(str, BOOK.dialects[31].half_units))} |" in card.text
    BOOK.push_to_hub("me/book", token=hub.token)
    assert "fingerprint.json" not in hub.files("me/book"), "of the book that was here before"
    assert Formatbook.from_pretrained("me/book").fingerprint is None


def test_a_pipeline_is_quantized_with_a_book_from_the_hub(hub):
    book = replace(Formatbook.builtin("dialectfp4-16"), name="small")
    book.push_to_hub("me/book", token=hub.token)
    pipe, _ = build("wan")
    pipe.enable_sedialect(formatbook="me/book")
    books = {module.formatbook for module in pipe.transformer.modules() if isinstance(module, SeDialectLinear)}
    assert books == {book}


def test_pushing_the_same_book_again_makes_no_commit(hub):
    for _ in range(2):
        FITTED.push_to_hub("me/book", token=hub.token)
    assert len(hub.log("me/book")) == 2


def test_revisions_are_branches_and_commits(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    other = replace(Formatbook.builtin("dialectfp4-16"), name="other")
    other.push_to_hub("me/book", token=hub.token, revision="v2")
    other.push_to_hub("me/book", token=hub.token, revision="v2")  # the branch is there already
    assert Formatbook.from_pretrained("me/book").name == "mine"
    assert Formatbook.from_pretrained("me/book", revision="v2") == other
    old = hub.repos["me/book"].branches["main"]
    other.push_to_hub("me/book", token=hub.token)
    assert Formatbook.from_pretrained("me/book") == other
    assert Formatbook.from_pretrained("me/book", revision=old).name == "mine"


def test_all_files_come_from_one_commit_though_the_branch_moves_on_between(hub, tmp_path, monkeypatch):
    BOOK.push_to_hub("me/book", token=hub.token)
    other = saved(tmp_path, Formatbook.builtin("dialectfp4-16"))
    download = transport.download

    def and_then_someone_pushes(*arguments, **settings):
        fetched = download(*arguments, **settings)
        hub.add("me/book", other)
        return fetched

    monkeypatch.setattr(transport, "download", and_then_someone_pushes)
    assert Formatbook.from_pretrained("me/book") == BOOK


def test_a_book_in_a_folder(tmp_path):
    assert set(saved(tmp_path / "a" / "book")) == FILES
    assert Formatbook.from_pretrained(tmp_path / "a" / "book") == BOOK == Formatbook.resolve(str(tmp_path / "a" / "book"))
    tensors = load_file(tmp_path / "a" / "book" / "formatbook.safetensors")
    assert tensors["half_units"].tolist() == BOOK.half_units.tolist()
    assert tensors["sub_formatbooks"].tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert set(saved(tmp_path / "b", FITTED)) == FILES | {"fingerprint.json"}
    assert set(saved(tmp_path / "b")) == FILES, "saving another book there leaves nothing of the first"


@pytest.mark.parametrize("name", ["sedialect-32", "dialectfp4-16"])
def test_saving_twice_gives_the_same_bytes(tmp_path, name):
    assert saved(tmp_path / "a", Formatbook.builtin(name)) == saved(tmp_path / "b", Formatbook.builtin(name))


# Folders and repositories that were tampered with.


def edit_json(folder):
    data = json.loads((folder / "formatbook.json").read_text())
    data["sub_formatbooks"].pop()
    (folder / "formatbook.json").write_text(json.dumps(data))


def edit_tensors(folder, **changes):
    from safetensors import safe_open

    path = folder / "formatbook.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {**load_file(path), **changes.pop("tensors", {})}
    save_file(tensors, path, {**metadata, **changes})


def rewrite(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def one_bit(folder):
    half_units = BOOK.half_units.clone()
    half_units[3, 2] ^= 1
    edit_tensors(folder, tensors={"half_units": half_units.to(dtype=load_dtype())})


def load_dtype():
    import torch

    return torch.uint8


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (edit_json, "formatbook.json and formatbook.safetensors hold different numbers"),
        (one_bit, "formatbook.json and formatbook.safetensors hold different numbers"),
        (lambda folder: edit_tensors(folder, digest="0" * 64), "hold different numbers"),
        (lambda folder: edit_tensors(folder, tensors={"more": BOOK.half_units}), "hold different numbers"),
        (lambda folder: edit_tensors(folder, format_version="2"), "has format_version '2'.*update sedialect"),
        (rewrite("formatbook.safetensors", b"\x08\0\0\0\0\0\0\0{}"), "formatbook.safetensors is damaged"),
        (rewrite("formatbook.json", b"{"), "cannot read the formatbook"),
        (rewrite("fingerprint.json", b"{"), "fingerprint.json cannot be read"),
        (rewrite("fingerprint.json", b"{}"), "fingerprint.json belongs to another book"),
        (lambda folder: (folder / "fingerprint.json").unlink(), "it has no fingerprint.json"),
        (lambda folder: (folder / "formatbook.json").unlink(), "it has no formatbook.json"),
        (lambda folder: (folder / "formatbook.safetensors").unlink(), "it has no formatbook.safetensors"),
    ],
)
def test_files_that_were_tampered_with_are_refused(tmp_path, tamper, message):
    FITTED.save_pretrained(tmp_path)
    tamper(tmp_path)
    with pytest.raises(FormatbookError, match=message) as error:
        Formatbook.from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_file_whose_digest_is_wrong_is_refused_and_not_kept(hub):
    """The client itself looks at sizes alone, so the digest of what it kept is ours to check: LFS and plain files."""
    BOOK.push_to_hub("me/book", token=hub.token)
    for name in ("formatbook.safetensors", "formatbook.json"):
        hub.corrupt(name)
        with pytest.raises(InputError, match=f"{name} of 'me/book' at .* does not match its digest"):
            Formatbook.from_pretrained("me/book")
        hub.faults.clear()
        assert Formatbook.from_pretrained("me/book") == BOOK, "the damaged one is not served from the cache"
        hub.forget()


def test_a_cache_that_rots_is_noticed(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    path = transport.download("me/book", "formatbook.json").path
    target = path.resolve()
    target.write_bytes(target.read_bytes().replace(b"For tests", b"For toads"))
    with pytest.raises(InputError, match="does not match its digest"):
        transport.download("me/book", "formatbook.json", local_files_only=True)


# Connections that break.


def test_a_cut_connection_is_resumed_where_it_broke(hub):
    """The client counts whole chunks of 10 MiB as received."""
    content = os.urandom(11 << 20)
    hub.add("me/large", {"model.safetensors": content})
    hub.cut("cdn/me/large", after=(10 << 20) + 1000)
    assert transport.download("me/large", "model.safetensors").path.read_bytes() == content
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and "/cdn/" in path]
    assert ranges == [None, f"bytes={10 << 20}-"]


def test_a_cut_connection_while_pulling_a_book(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    hub.cut("formatbook.json", after=100)
    hub.cut("formatbook.safetensors", after=100)
    assert Formatbook.from_pretrained("me/book") == BOOK
    assert not hub.faults[0].times and not hub.faults[1].times


def test_a_connection_that_breaks_for_good_gets_one_line_and_leaves_nothing(hub, monkeypatch):
    import time

    BOOK.push_to_hub("me/book", token=hub.token)
    hub.cut("formatbook.safetensors", after=0, times=-1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(InputError, match="connection to the Hub failed for formatbook.safetensors of 'me/book' at 'main'"):
        Formatbook.from_pretrained("me/book")
    assert not [path for path in hub.home.rglob("*") if path.is_file() and path.stat().st_size > 1000]


@pytest.mark.parametrize(("where", "after"), [("/commit/", 10), ("/lfs/upload/", 10), ("/preupload/", 0)])
def test_an_interrupted_push_shows_nothing_and_can_be_repeated(hub, monkeypatch, where, after):
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.cut(where, after=after, times=-1)
    with pytest.raises(InputError, match="connection to the Hub failed for 'me/book' at 'main'.*try again") as error:
        BOOK.push_to_hub("me/book", token=hub.token)
    assert "\n" not in str(error.value)
    assert set(hub.files("me/book")) == {".gitattributes"}
    hub.faults.clear()
    BOOK.push_to_hub("me/book", token=hub.token)
    assert set(hub.files("me/book")) == FILES | {".gitattributes"} and Formatbook.from_pretrained("me/book") == BOOK


# Refusals.


def test_pushing_without_the_right_to_is_refused(hub):
    for token, message in (
        ("hf_wrong", "refuses the token for 'me/book' at 'main': Invalid credentials.*log in with `hf auth login`"),
        (hub.reader, "this token may not do that with 'me/book'.*write access"),
        (hub.stranger, "this token may not do that with 'me/book'.*write access"),
        (None, "refuses the token for 'me/book'.*log in with `hf auth login`"),
    ):
        with pytest.raises(InputError, match=message) as error:
            BOOK.push_to_hub("me/book", token=token)
        assert "\n" not in str(error.value)
    assert not hub.repos


def test_private_books_are_for_those_who_may_see_them(hub):
    BOOK.push_to_hub("me/book", token=hub.token, private=True)
    assert hub.repos["me/book"].private
    for token, message in (
        (None, "no repository 'me/book' that you may see"),
        (hub.stranger, "no repository 'me/book' that you may see"),
        ("hf_wrong", "refuses the token for formatbook.safetensors of 'me/book'"),
    ):
        with pytest.raises(InputError, match=message):
            Formatbook.from_pretrained("me/book", token=token)
    assert Formatbook.from_pretrained("me/book", token=hub.reader) == BOOK


def test_what_is_missing_is_named(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    hub.add("me/model", {"config.json": b"{}"})
    for name, revision, message in (
        ("me/nothing", None, "no repository 'me/nothing' that you may see: check the name"),
        ("me/book", "v9", "repository 'me/book' has no revision 'v9'; pass a branch, tag or commit"),
        ("me/model", None, "there is no formatbook.safetensors of 'me/model' at 'main'"),
    ):
        with pytest.raises(InputError, match=message) as error:
            Formatbook.from_pretrained(name, revision=revision)
        assert "\n" not in str(error.value)
    with pytest.raises(
        FormatbookError, match="no formatbook 'me/nothing': there is no such file or folder, and the Hub has no"
    ):
        Formatbook.resolve("me/nothing")
    with pytest.raises(FormatbookError, match="no such folder, and a Hub repository is called owner/name"):
        Formatbook.from_pretrained("nothing")
    with pytest.raises(FormatbookError, match="neither a file nor one of"):
        Formatbook.resolve("books/mistyped.json")
    with pytest.raises(InputError, match="'me//book' is no repository on the Hub: write owner/name"):
        BOOK.push_to_hub("me//book", token=hub.token)


def test_a_hub_that_is_out_of_order_says_so(hub, monkeypatch):
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    BOOK.push_to_hub("me/book", token=hub.token)
    hub.refuse("/resolve/", 503, times=-1)
    with pytest.raises(InputError, match="the Hub answers 503 for formatbook.safetensors of 'me/book' at 'main'"):
        Formatbook.from_pretrained("me/book")


def test_what_was_downloaded_before_serves_while_the_hub_is_away(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    Formatbook.from_pretrained("me/book")
    hub.refuse("/resolve/", 503, times=-1)
    assert Formatbook.from_pretrained("me/book") == BOOK
    assert hub.requests[-1][:2] == ("HEAD", "/me/book/resolve/main/formatbook.safetensors")


def test_a_file_in_a_subfolder_comes_with_its_commit(hub):
    commit = hub.add("me/model", {"transformer/parts/config.json": b"{}"})
    path, found = transport.download("me/model", "transformer/parts/config.json")
    assert (path.read_bytes(), found) == (b"{}", commit)
    assert transport.list_files("me/model") == ["transformer/parts/config.json"]


def test_a_cache_without_symbolic_links_works(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    done = python(hub, "print(Formatbook.from_pretrained('me/book').digest)", HF_HUB_DISABLE_SYMLINKS="1")
    assert done.stdout.strip() == BOOK.digest, done.stderr
    assert not [path for path in hub.home.rglob("formatbook.*") if path.is_symlink()]


# Names that would escape.


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "..", "", "..\\evil", "C:evil", "a\\..\\evil", "evil\0.json", "./../evil"],
)
def test_names_that_reach_outside_are_refused_before_anything_is_asked(hub, name):
    hub.add("me/book", {name: b"evil"})
    with pytest.raises(InputError, match="may reach outside its folder"):
        transport.download("me/book", name)
    assert not hub.requests


def test_evil_names_in_a_repository_are_never_followed(hub, tmp_path):
    hub.add("me/book", {**saved(tmp_path), "../../evil": b"evil", "/evil": b"evil", "formatbook.py": b"raise SystemExit"})
    assert Formatbook.from_pretrained("me/book") == BOOK
    assert {path.name for path in hub.home.rglob("snapshots/*/*")} == {"formatbook.json", "formatbook.safetensors"}
    assert not list(hub.home.rglob("evil"))


# Offline.


def test_the_cache_serves_offline_and_says_so_where_it_cannot(hub):
    BOOK.push_to_hub("me/book", token=hub.token)
    with pytest.raises(InputError, match="formatbook.safetensors of 'me/book' at 'main' is not in the cache, and offline"):
        Formatbook.from_pretrained("me/book", local_files_only=True)
    assert Formatbook.from_pretrained("me/book") == BOOK
    hub.requests.clear()
    assert Formatbook.from_pretrained("me/book", local_files_only=True) == BOOK
    show = "book = Formatbook.resolve('me/book'); print(book.name, book.digest)"
    done = python(hub, show, HF_HUB_OFFLINE="1")
    assert done.stdout.split() == ["mine", BOOK.digest], done.stderr
    assert not hub.requests
    hub.forget()
    done = python(hub, show, HF_HUB_OFFLINE="1")
    assert "is not in the cache, and offline mode forbids to download it" in done.stderr.splitlines()[-1]
    done = python(hub, "Formatbook.builtin().push_to_hub('me/book')", HF_HUB_OFFLINE="1", HF_TOKEN=hub.token)
    assert "offline mode forbids to reach 'me/book' at 'main'; unset HF_HUB_OFFLINE" in done.stderr.splitlines()[-1]
    assert not hub.requests


def test_no_network_is_told_apart_from_no_repository(hub):
    """A port where nobody listens: the waiting between the client's attempts is left out."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    code = "import time; time.sleep = lambda seconds: None\nFormatbook.from_pretrained('me/book')"
    done = python(hub, code, HF_ENDPOINT=nowhere)
    assert "is not in the cache and the Hub cannot be reached" in done.stderr.splitlines()[-1]
    assert "check the connection" in done.stderr.splitlines()[-1]
