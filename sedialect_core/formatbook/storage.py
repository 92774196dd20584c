"""A formatbook as a folder, on disk or on the Hub. The same numbers stand in it twice, and both must agree:

formatbook.json          what people read and edit, and `Formatbook.from_file` loads
formatbook.safetensors   half_units uint8 [D, 8] and sub_formatbooks uint8 [S, shapes] (1 where a set holds the shape);
                         metadata: format_version, digest, and the SHA-256 of fingerprint.json where there is one
fingerprint.json         what a fitted book was fitted on
README.md                the card
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import hub
from ..atomic import replacing, write_text
from ..errors import FormatbookError
from .book import FORMAT_VERSION, Formatbook

JSON_FILE = "formatbook.json"
TENSOR_FILE = "formatbook.safetensors"
FINGERPRINT_FILE = "fingerprint.json"
CARD_FILE = "README.md"
TAGS = ["sedialect", "formatbook", "4-bit", "quantization"]


def write(book: Formatbook, folder: Path, repo_id: str = "OWNER/NAME") -> Path:
    """Write the folder, with a card for that repository.

    Each file is replaced at once or not at all; a set that does not belong together is found by `read`.

    Raises:
        InputError: the folder cannot be written.
    """
    from safetensors.torch import save

    metadata = {"format_version": str(FORMAT_VERSION), "digest": book.digest}
    if book.fingerprint is not None:
        text = json.dumps(dict(book.fingerprint), indent=2, sort_keys=True) + "\n"
        metadata["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        write_text(folder / FINGERPRINT_FILE, text)
    book.save(folder / JSON_FILE)
    with replacing(folder / TENSOR_FILE) as temporary:
        temporary.write_bytes(_ordered(save(tensors_of(book), metadata)))
    write_text(folder / CARD_FILE, card(book, repo_id))
    if book.fingerprint is None:
        (folder / FINGERPRINT_FILE).unlink(missing_ok=True)  # of the book that was here before
    return folder


def read(file: Callable[[str], Path], source: str) -> Formatbook:
    """The book whose files `file` gives by name; errors call it `source`.

    Raises:
        FormatbookError: a file is damaged, of a newer version, or disagrees with another.
    """
    tensors, metadata = _tensors(file(TENSOR_FILE), source)
    try:
        book = Formatbook.from_file(file(JSON_FILE))
    except FormatbookError as error:
        raise FormatbookError(f"formatbook {source!r}: {error}") from None
    expected = tensors_of(book)
    same = tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)
    if not same or metadata.get("digest") != book.digest:
        raise FormatbookError(
            f"formatbook {source!r}: {JSON_FILE} and {TENSOR_FILE} hold different numbers; one was edited or damaged: "
            "save the book again from the one that is right"
        )
    if "fingerprint" not in metadata:
        return book
    from dataclasses import replace

    return replace(book, fingerprint=_fingerprint(file(FINGERPRINT_FILE), metadata["fingerprint"], source))


def load(
    name_or_dir: str | Path, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> Formatbook:
    """What `Formatbook.from_pretrained` does.

    Raises:
        FormatbookError: it is neither a folder nor a repository's name, or what is there is no sound book.
        InputError: the repository, revision or a file cannot be had.
    """
    folder, name = Path(name_or_dir), str(name_or_dir)
    if folder.is_dir():
        return read(lambda file: _in_folder(folder, file), name)
    if not hub.is_repo_id(name):
        raise FormatbookError(f"no formatbook {name!r}: there is no such folder, and a Hub repository is called owner/name")
    commit = revision

    def fetch(file: str) -> Path:
        nonlocal commit
        path, commit = hub.download(name, file, revision=commit, token=token, local_files_only=local_files_only)
        return path

    return read(fetch, name)


def push(book: Formatbook, repo_id: str, private: bool, token: str | None, message: str, revision: str | None) -> str:
    """What `Formatbook.push_to_hub` does.

    Raises:
        InputError: the repository cannot be written.
    """
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="sedialect-book-") as folder:
        return hub.upload_folder(
            repo_id,
            write(book, Path(folder), repo_id),
            message=message,
            private=private,
            token=token,
            revision=revision,
            replaces=[FINGERPRINT_FILE],
        )


def tensors_of(book: Formatbook) -> dict[str, torch.Tensor]:
    """The book's numbers as the tensors of its safetensors file."""
    sets = [[int(shape in sub) for shape in range(book.shapes)] for sub in book.sub_formatbooks]
    members = torch.tensor(sets, dtype=torch.uint8).reshape(len(sets), book.shapes)
    return {"half_units": book.half_units.to(torch.uint8), "sub_formatbooks": members}


def card(book: Formatbook, repo_id: str) -> str:
    """README.md: what it is, how it is loaded, its numbers, and what it was fitted on."""
    fitted = book.fingerprint or {}
    base = fitted.get("model", "")
    lines = (
        [f"# {_plain(book.name)}", "", _plain(book.description), ""] if book.description else [f"# {_plain(book.name)}", ""]
    )
    lines += [
        f"A formatbook for sedialect: {len(book.dialects)} 4-bit number formats (dialects), {book.shapes} for each maximum.",
        "",
        "```python",
        "import sedialect",
        "",
        f'pipe.enable_sedialect(formatbook="{repo_id}")  # on any diffusers video pipeline',
        f'book = sedialect.Formatbook.from_pretrained("{repo_id}")',
        "```",
        "",
        *_table(book),
        "",
        f"Sub-formatbooks (sets of shapes): {', '.join(str(list(sub)) for sub in book.sub_formatbooks) or 'none'}. "
        f"Digest: `{book.digest}`.",
    ]
    if fitted:
        lines += ["", "## Fitted on", "", *(f"- {_plain(key)}: `{_plain(value)}`" for key, value in sorted(fitted.items()))]
    return hub.card(
        "\n".join(lines) + "\n",
        library_name="sedialect",
        tags=TAGS,
        base_model=base if hub.is_repo_id(base) else None,
    )


def _table(book: Formatbook) -> list[str]:
    """The dialects in half-units, one a row."""
    rows = [
        f"| {number} | {dialect.maximum} | {number % book.shapes} | {' '.join(map(str, dialect.half_units))} |"
        for number, dialect in enumerate(book.dialects)
    ]
    return ["| dialect | maximum | shape | magnitudes, half-units |", "|---|---|---|---|", *rows]


def _plain(text: object) -> str:
    """On one line, and nothing that ends a code span or starts a tag."""
    return " ".join(str(text).split()).replace("`", "'").replace("<", "&lt;")


def _ordered(content: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library's order is random, and equal books get equal bytes."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _in_folder(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FormatbookError(f"{str(folder)!r} is no formatbook: it has no {name}; write one with save_pretrained")
    return path


def _tensors(path: Path, source: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            version = metadata.get("format_version")
            if version != str(FORMAT_VERSION):
                raise FormatbookError(
                    f"formatbook {source!r}: {TENSOR_FILE} has format_version {version!r}, not {FORMAT_VERSION}, the one "
                    "this sedialect reads; update sedialect"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise FormatbookError(f"formatbook {source!r}: {TENSOR_FILE} is damaged: {error}; get it again") from None


def _fingerprint(path: Path, digest: str, source: str) -> dict[str, str]:
    try:
        content = path.read_bytes()
        data: Any = json.loads(content)
    except (OSError, ValueError) as error:
        raise FormatbookError(f"formatbook {source!r}: {FINGERPRINT_FILE} cannot be read: {error}; get it again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise FormatbookError(f"formatbook {source!r}: {FINGERPRINT_FILE} belongs to another book; save the book again")
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise FormatbookError(f"formatbook {source!r}: {FINGERPRINT_FILE} must hold one JSON object of strings")
    return data
