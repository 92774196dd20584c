"""Dialects and formatbooks (docs/format.md). Pure values: no tensor is made until a table is asked for.

A *dialect* is a 4-bit number format: a sign and one of 8 ascending magnitudes, counted in *half-units* (integers 0..15;
one half-unit is 0.5 in the papers). A *formatbook* has 8 maxima (15 down to 8), each with the same number of *shapes*
(how densely the large magnitudes stand), and *sub-formatbooks*: sets of shapes that tokens which belong together share.
A dialect's id is `shapes * (15 - maximum) + shape`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatbookError, InputError, shown
from ..storage.atomic import write_text
from ..storage.hub import is_repo_id
from ..storage.paths import expanded, folder_to_write, is_file, is_folder, place
from ..storage.reading import Fields, read_object
from . import storage
from .storage import FORMAT_VERSION

if TYPE_CHECKING:
    import torch

    from ...kernels.tables import DialectTables

MAGNITUDES = 8
MAXIMA = tuple(range(15, 7, -1))
_LIBRARY = Path(__file__).parent / "library"
MAX_SHAPES = 4  # 32 dialects: the id has 5 bits, and four block errors fit one 64-bit table entry
MAX_SUBS = 2**MAX_SHAPES - 1  # there are no more sets of shapes
MAX_NAME, MAX_DESCRIPTION = 200, 10_000  # characters
MAX_FILE = 1 << 20  # bytes of a formatbook.json
WRITE_AGAIN = "write the book again with save()"
KEYS = ("format_version", "name", "description", "dialects", "sub_formatbooks")


@dataclass(frozen=True)
class Dialect:
    """One 4-bit format: 8 ascending magnitudes in half-units, the first 0, none above 15.

    `published` marks the formats that stand in the BlockDialect paper (arXiv 2501.01144, Figure 4); the others are this
    project's completion.

    Raises:
        FormatbookError: the magnitudes break one of these rules.
    """

    half_units: tuple[int, ...]
    published: bool = False

    def __post_init__(self) -> None:
        hu = self.half_units
        if len(hu) != MAGNITUDES or not all(type(value) is int for value in hu):
            raise FormatbookError(f"dialect {shown(list(hu))} must be {MAGNITUDES} integers in half-units")
        told = f"[{', '.join(shown(value, 12) for value in hu)}]"
        if hu[0] != 0:
            raise FormatbookError(f"dialect {told} starts at {shown(hu[0], 12)}; the first magnitude must be 0")
        if any(low >= high for low, high in pairwise(hu)):
            raise FormatbookError(f"dialect {told} is not ascending; sort it and remove repeated magnitudes")
        if hu[-1] > MAXIMA[0]:
            raise FormatbookError(f"dialect {told} reaches {shown(hu[-1], 12)}; no magnitude may be above 15 half-units")
        if hu[-1] < MAXIMA[-1]:
            raise FormatbookError(f"dialect {told} ends at {shown(hu[-1], 12)}; its maximum must be 8 to 15 half-units")

    @property
    def maximum(self) -> int:
        """The largest magnitude, in half-units."""
        return self.half_units[-1]


@dataclass(frozen=True)
class Formatbook:
    """A set of dialects that blocks choose from. Immutable; two books with equal numbers have equal digests.

    Args:
        name: what users and files call it.
        dialects: in id order: maximum 15 first, and within a maximum the shapes from dense to sparse top.
        sub_formatbooks: sets of shapes, each of which then holds all 8 maxima. May be empty.
        fingerprint: what a fitted book was fitted on, as text by name. Books that differ in it alone are equal.

    Raises:
        FormatbookError: a maximum lacks shapes, stands in the wrong place, or a sub-formatbook lacks a maximum.

    Example:
        >>> book = Formatbook.builtin("sedialect-32")
        >>> book.half_units.shape
        torch.Size([32, 8])
    """

    name: str
    dialects: tuple[Dialect, ...]
    sub_formatbooks: tuple[tuple[int, ...], ...] = ()
    description: str = ""
    fingerprint: Mapping[str, str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.dialects) > MAX_SHAPES * len(MAXIMA) or len(self.sub_formatbooks) > MAX_SUBS:
            raise FormatbookError(
                f"formatbook {shown(self.name)} has {len(self.dialects):,} dialects and {len(self.sub_formatbooks):,} "
                f"sub-formatbooks; at most {MAX_SHAPES * len(MAXIMA)} and {MAX_SUBS} are possible"
            )
        counts = {maximum: sum(d.maximum == maximum for d in self.dialects) for maximum in MAXIMA}
        shapes = max(counts.values(), default=0)
        if not 1 <= shapes <= MAX_SHAPES:
            raise FormatbookError(f"formatbook {self.name!r} has {shapes} shapes a maximum; 1 to {MAX_SHAPES} are possible")
        for maximum, count in counts.items():
            if count != shapes:
                raise FormatbookError(
                    f"formatbook {self.name!r}: maximum {maximum} has {count} of {shapes} shapes; give every maximum from "
                    "15 to 8 the same number of dialects"
                )
        if [d.maximum for d in self.dialects] != sorted((d.maximum for d in self.dialects), reverse=True):
            raise FormatbookError(f"formatbook {self.name!r}: order the dialects by maximum, from 15 down to 8")
        for sub in self.sub_formatbooks:
            self._check_sub_formatbook(sub, shapes)

    def _check_sub_formatbook(self, sub: tuple[int, ...], shapes: int) -> None:
        if not sub or any(type(shape) is not int or not 0 <= shape < shapes for shape in sub):
            raise FormatbookError(
                f"formatbook {shown(self.name)}: sub-formatbook {shown(list(sub))} lacks a maximum, for it names no "
                f"shape or one that the book does not have; list shapes 0 to {shapes - 1}"
            )
        if list(sub) != sorted(set(sub)):
            raise FormatbookError(
                f"formatbook {shown(self.name)}: sub-formatbook {shown(list(sub))} must ascend without repeats"
            )

    @property
    def shapes(self) -> int:
        """How many dialects share one maximum."""
        return len(self.dialects) // len(MAXIMA)

    @cached_property
    def half_units(self) -> "torch.Tensor":
        """All magnitudes, int64 [D, 8], in half-units."""
        import torch

        from ...kernels.lasting import lasting

        with lasting():
            return torch.tensor([dialect.half_units for dialect in self.dialects], dtype=torch.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the numbers (not the name): what a checkpoint is checked against."""
        numbers = [[list(d.half_units) for d in self.dialects], [list(sub) for sub in self.sub_formatbooks]]
        return hashlib.sha256(json.dumps(numbers, separators=(",", ":")).encode()).hexdigest()

    def tables(self, device: "torch.device | str" = "cpu") -> "DialectTables":
        """The lookup tables of docs/format.md on `device`; made once for each book and device."""
        return _tables(self.digest, str(device), self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: what `save` writes and `from_dict` reads."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "description": self.description,
            "dialects": [{"half_units": list(d.half_units), "published": d.published} for d in self.dialects],
            "sub_formatbooks": [list(sub) for sub in self.sub_formatbooks],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Formatbook":
        """A book from its JSON form.

        Raises:
            FormatbookError: a key is missing or of the wrong kind, or the version is newer than this library knows.
        """
        said = Fields(data, "the formatbook", WRITE_AGAIN, FormatbookError)
        version = said.get("format_version", int)
        if version != FORMAT_VERSION:
            raise FormatbookError(
                f"formatbook format_version {shown(version)} is not {FORMAT_VERSION}, the one this sedialect reads; "
                "update sedialect"
            )
        said.only(*KEYS)
        dialects = said.items("dialects", dict, most=MAX_SHAPES * len(MAXIMA))
        return cls(
            name=said.text("name", most=MAX_NAME),
            dialects=tuple(_dialect(entry) for entry in dialects),
            sub_formatbooks=tuple(tuple(sub) for sub in said.items("sub_formatbooks", list, most=MAX_SUBS)),
            description=said.text("description", "", most=MAX_DESCRIPTION),
        )

    @classmethod
    def builtin(cls, name: str = "universal-32") -> "Formatbook":
        """A book that ships with the package: `universal-32` (default), `sedialect-32` or `dialectfp4-16`.

        Raises:
            FormatbookError: no built-in book has this name.
        """
        if name not in builtin_names():
            raise FormatbookError(f"no built-in formatbook {name!r}; there are {', '.join(builtin_names())}")
        return _builtin(name)

    @classmethod
    def from_file(cls, path: str | Path) -> "Formatbook":
        """A book from a JSON file that `save` wrote.

        Raises:
            FormatbookError: the file is absent, is no JSON, or breaks a rule.
        """
        try:
            data = read_object(expanded(path), MAX_FILE, WRITE_AGAIN)
        except InputError as error:
            raise FormatbookError(f"cannot read the formatbook: {error}") from None
        try:
            return cls.from_dict(data)
        except FormatbookError as error:
            raise FormatbookError(f"{path}: {error}") from None

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path, revision: str | None = None, token: str | None = None, local_files_only: bool = False
    ) -> "Formatbook":
        """A book from a folder that `save_pretrained` wrote, or from the Hub: cached under HF_HOME, all of one commit.

        Args:
            revision: branch, tag or commit on the Hub.
            local_files_only: take it from the cache alone, as HF_HUB_OFFLINE does.

        Raises:
            FormatbookError: what is there is no sound book, or its two files disagree.
            InputError: repository, revision or file are missing, the token is refused, or the Hub cannot be reached.

        Example:
            >>> book = Formatbook.from_pretrained("me/my-book", revision="v2")
        """
        stored = storage.load(name_or_dir, revision, token, local_files_only)
        try:
            book = cls.from_file(stored.json)
        except FormatbookError as error:
            raise FormatbookError(f"formatbook {stored.source!r}: {error}") from None
        stored.check(book.to_dict(), book.digest)
        return replace(book, fingerprint=stored.fingerprint())

    @classmethod
    def resolve(cls, name_or_path: str) -> "Formatbook":
        """A built-in book by name, else a file, a folder or a Hub repository: what settings and the command line accept.

        Raises:
            FormatbookError: it is none of these, or not a sound book.
        """
        if name_or_path in builtin_names():
            return _builtin(name_or_path)
        if is_file(name_or_path):
            return cls.from_file(name_or_path)
        if is_folder(name_or_path) or (is_repo_id(name_or_path) and not name_or_path.endswith(".json")):
            try:
                return cls.from_pretrained(name_or_path)
            except InputError as error:
                raise FormatbookError(
                    f"no formatbook {name_or_path!r}: there is no such file or folder, and {error}"
                ) from None
        raise FormatbookError(
            f"no formatbook {shown(name_or_path)}: it is neither a file nor one of {', '.join(builtin_names())}, nor is it "
            "written like a Hub repository, owner/name"
        )

    def save(self, path: str | Path) -> Path:
        """Write the JSON form, one dialect a line, and return the path. An old file is replaced at once or not at all.

        Raises:
            InputError: the path is none, or cannot be written.
        """
        return write_text(place(path), storage.json_text(self.to_dict()))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder that `from_pretrained` reads and the Hub shows: JSON, safetensors, card; and return it.

        Raises:
            InputError: the path is none, or the folder cannot be written.
        """
        return storage.write(self.to_dict(), self.digest, self.fingerprint, folder_to_write(folder))

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload formatbook",
        revision: str | None = None,
    ) -> str:
        """Upload the book to a repository, made where there is none, and return the commit's address.

        Args:
            private: of a repository that is made now.
            revision: a branch, made where there is none.

        Raises:
            InputError: the token is missing or may not write there, or the Hub cannot be reached. Repeat it then.
        """
        book = self.to_dict(), self.digest, self.fingerprint
        return storage.push(*book, repo_id, private, token, commit_message, revision)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Formatbook":
        """Immutable, so that copying a model with a thousand layers does not make a thousand books."""
        return self


def _dialect(entry: dict[str, Any]) -> Dialect:
    said = Fields(entry, "a dialect of the formatbook", WRITE_AGAIN, FormatbookError)
    said.only("half_units", "published")
    return Dialect(tuple(said.get("half_units", list)), published=said.get("published", bool, False))


@cache
def builtin_names() -> tuple[str, ...]:
    """The names of the books in the package."""
    return tuple(sorted((path.stem for path in _LIBRARY.glob("*.json")), reverse=True))


@cache
def _builtin(name: str) -> Formatbook:
    return Formatbook.from_file(_LIBRARY / f"{name}.json")


_TABLES: dict[tuple[str, str], "DialectTables"] = {}


def _tables(digest: str, device: str, book: Formatbook) -> "DialectTables":
    from ...kernels.tables import lasting_tables

    key = (digest, device)
    if key not in _TABLES:
        _TABLES[key] = lasting_tables([dialect.half_units for dialect in book.dialects], device)
    return _TABLES[key]
