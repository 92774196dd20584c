"""The files of a formatbook, on disk or on the Hub. The same numbers stand in them twice, and both must agree:

formatbook.json          what people read and edit, and `Formatbook.from_file` loads
formatbook.safetensors   half_units uint8 [D, 8] and sub_formatbooks uint8 [S, shapes] (1 where a set holds the shape);
                         metadata: format_version, digest, and the SHA-256 of fingerprint.json where there is one
fingerprint.json         what a fitted book was fitted on
README.md                the card
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatbookError, InputError, shortened, shown
from ..storage import hub
from ..storage.atomic import replacing, write_text
from ..storage.paths import expanded, is_folder
from ..storage.reading import check_regular, parse_object, read_bytes

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
JSON_FILE = "formatbook.json"
TENSOR_FILE = "formatbook.safetensors"
FINGERPRINT_FILE = "fingerprint.json"
CARD_FILE = "README.md"
MAX_FINGERPRINT = 1 << 16  # bytes
MAX_NUMBERS = 256  # in one tensor of a book: 32 dialects of 8
TAGS = ["sedialect", "formatbook", "4-bit", "quantization"]


@dataclass(frozen=True)
class Stored:
    """The files of a book, open: `Formatbook` builds itself from the JSON file, and has the rest checked against it."""

    source: str
    file: Callable[[str], Path]
    tensors: "dict[str, torch.Tensor]"
    metadata: dict[str, str]

    @property
    def json(self) -> Path:
        """The file with the numbers that people edit."""
        return self.file(JSON_FILE)

    def check(self, data: Mapping[str, Any], digest: str) -> None:
        """Hold the tensors against a book's JSON form and digest.

        Raises:
            FormatbookError: they differ.
        """
        expected = tensors_of(data)
        same = self.tensors.keys() == expected.keys() and all(self.tensors[name].equal(expected[name]) for name in expected)
        if not same or self.metadata.get("digest") != digest:
            raise FormatbookError(
                f"formatbook {self.source!r}: {JSON_FILE} and {TENSOR_FILE} hold different numbers; one was edited or "
                "damaged: save the book again from the one that is right"
            )

    def fingerprint(self) -> dict[str, str] | None:
        """What the book was fitted on.

        Raises:
            FormatbookError: the file is damaged, or another book's.
        """
        if "fingerprint" not in self.metadata:
            return None
        return _fingerprint(self.file(FINGERPRINT_FILE), self.metadata["fingerprint"], self.source)


def json_text(data: Mapping[str, Any]) -> str:
    """The JSON form as text, one dialect a line."""
    rows = ",\n".join(f"    {json.dumps(entry)}" for entry in data["dialects"])
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in data.items() if key != "dialects")
    return f'{{\n{head}  "dialects": [\n{rows}\n  ]\n}}\n'


def write(
    data: Mapping[str, Any], digest: str, fingerprint: Mapping[str, str] | None, folder: Path, repo_id: str = "OWNER/NAME"
) -> Path:
    """Write the folder of a book, given by its JSON form and digest, with a card for that repository.

    Each file is replaced at once or not at all; a set that does not belong together is found by `Stored.check`.

    Raises:
        InputError: the folder cannot be written.
    """
    from safetensors.torch import save

    metadata = {"format_version": str(FORMAT_VERSION), "digest": digest}
    if fingerprint is not None:
        text = json.dumps(dict(fingerprint), indent=2, sort_keys=True) + "\n"
        metadata["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        write_text(folder / FINGERPRINT_FILE, text)
    write_text(folder / JSON_FILE, json_text(data))
    with replacing(folder / TENSOR_FILE) as temporary:
        temporary.write_bytes(_ordered(save(tensors_of(data), metadata)))
    write_text(folder / CARD_FILE, card(data, digest, fingerprint, repo_id))
    if fingerprint is None:
        (folder / FINGERPRINT_FILE).unlink(missing_ok=True)  # of the book that was here before
    return folder


def load(
    name_or_dir: str | Path, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> Stored:
    """The files that `Formatbook.from_pretrained` reads.

    Raises:
        FormatbookError: it is neither a folder nor a repository's name, or a file is damaged or of another version.
        InputError: the repository, revision or a file cannot be had.
    """
    folder, name = expanded(name_or_dir), str(name_or_dir)
    if is_folder(folder):
        return _stored(lambda file: _in_folder(folder, file), name)
    if not hub.is_repo_id(name):
        raise FormatbookError(
            f"no formatbook {shown(name)}: there is no such folder, and a Hub repository is called owner/name"
        )
    commit = revision

    def fetch(file: str) -> Path:
        nonlocal commit
        path, commit = hub.download(name, file, revision=commit, token=token, local_files_only=local_files_only)
        return path

    return _stored(fetch, name)


def _stored(file: Callable[[str], Path], source: str) -> Stored:
    return Stored(source, file, *_tensors(file(TENSOR_FILE), source))


def push(
    data: Mapping[str, Any],
    digest: str,
    fingerprint: Mapping[str, str] | None,
    repo_id: str,
    private: bool,
    token: str | None,
    message: str,
    revision: str | None,
) -> str:
    """What `Formatbook.push_to_hub` does.

    Raises:
        InputError: the repository cannot be written.
    """
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="sedialect-book-") as folder:
        return hub.upload_folder(
            repo_id,
            write(data, digest, fingerprint, Path(folder), repo_id),
            message=message,
            private=private,
            token=token,
            revision=revision,
            replaces=[FINGERPRINT_FILE],
        )


def tensors_of(data: Mapping[str, Any]) -> "dict[str, torch.Tensor]":
    """A book's numbers as the tensors of its safetensors file."""
    import torch

    shapes, subs = _shapes(data), data["sub_formatbooks"]
    half_units = torch.tensor([dialect["half_units"] for dialect in data["dialects"]], dtype=torch.uint8)
    sets = torch.tensor([[int(shape in sub) for shape in range(shapes)] for sub in subs], dtype=torch.uint8)
    return {"half_units": half_units, "sub_formatbooks": sets.reshape(len(subs), shapes)}


def card(data: Mapping[str, Any], digest: str, fingerprint: Mapping[str, str] | None, repo_id: str) -> str:
    """README.md: what it is, how it is loaded, its numbers, and what it was fitted on."""
    fitted = fingerprint or {}
    base = fitted.get("model", "")
    lines = [f"# {_plain(data['name'])}", "", *([_plain(data["description"]), ""] if data["description"] else [])]
    lines += [
        f"A formatbook for sedialect: {len(data['dialects'])} 4-bit number formats (dialects), {_shapes(data)} for each "
        "maximum.",
        "",
        "```python",
        "import sedialect",
        "",
        f'pipe.enable_sedialect(formatbook="{repo_id}")  # on any diffusers video pipeline',
        f'book = sedialect.Formatbook.from_pretrained("{repo_id}")',
        "```",
        "",
        *_table(data),
        "",
        f"Sub-formatbooks (sets of shapes): {', '.join(map(str, data['sub_formatbooks'])) or 'none'}. Digest: `{digest}`.",
    ]
    if fitted:
        lines += ["", "## Fitted on", "", *(f"- {_plain(key)}: `{_plain(value)}`" for key, value in sorted(fitted.items()))]
    return hub.card(
        "\n".join(lines) + "\n",
        library_name="sedialect",
        tags=TAGS,
        base_model=base if hub.is_repo_id(base) else None,
    )


def _shapes(data: Mapping[str, Any]) -> int:
    """How many dialects share one maximum."""
    return sum(dialect["half_units"][-1] == data["dialects"][0]["half_units"][-1] for dialect in data["dialects"])


def _table(data: Mapping[str, Any]) -> list[str]:
    """The dialects in half-units, one a row."""
    magnitudes = [dialect["half_units"] for dialect in data["dialects"]]
    rows = [
        f"| {number} | {values[-1]} | {number % _shapes(data)} | {' '.join(map(str, values))} |"
        for number, values in enumerate(magnitudes)
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


def _tensors(path: Path, source: str) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(check_regular(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            version = metadata.get("format_version")
            if version != str(FORMAT_VERSION):
                raise FormatbookError(
                    f"formatbook {source!r}: {TENSOR_FILE} has format_version {shown(version)}, not {FORMAT_VERSION}, the "
                    "one this sedialect reads; update sedialect"
                )
            names = file.keys()
            if len(names) > 3 or any(math.prod(file.get_slice(name).get_shape()) > MAX_NUMBERS for name in names):
                raise FormatbookError(f"formatbook {source!r}: {TENSOR_FILE} holds more than a book's numbers; get it again")
            return {name: file.get_tensor(name) for name in names}, metadata
    except (SafetensorError, OSError, RuntimeError, InputError) as error:  # RuntimeError: too large to be mapped
        raise FormatbookError(f"formatbook {source!r}: {TENSOR_FILE} is damaged: {shortened(error)}; get it again") from None


def _fingerprint(path: Path, digest: str, source: str) -> dict[str, str]:
    try:
        content = read_bytes(path, MAX_FINGERPRINT)
        data = parse_object(content, FINGERPRINT_FILE)
    except InputError as error:
        raise FormatbookError(f"formatbook {source!r}: {FINGERPRINT_FILE} cannot be read: {error}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise FormatbookError(f"formatbook {source!r}: {FINGERPRINT_FILE} belongs to another book; save the book again")
    if not all(isinstance(value, str) for value in data.values()):
        raise FormatbookError(f"formatbook {source!r}: {FINGERPRINT_FILE} must hold one JSON object of strings")
    return data
