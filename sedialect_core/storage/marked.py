"""Text between marks in a document: what a command prints stands there, and is written there again."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import InputError
from .atomic import write_text


def marks(name: str) -> tuple[str, str]:
    """The lines before and after a part of a document."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def marked(text: str, parts: Mapping[str, str], where: str | Path) -> str:
    """A document's text with each part between its marks replaced.

    Args:
        parts: what is to stand between the marks of each name.
        where: what the document is called in an error.

    Raises:
        InputError: a mark is missing or there twice, or they stand in the wrong order.
    """
    for name, part in parts.items():
        begin, end = marks(name)
        start, stop = text.find(begin), text.find(end)
        if text.count(begin) != 1 or text.count(end) != 1 or stop < start:
            raise InputError(f"{where} must hold {begin} and, after it, {end}, each once; add both where the text belongs")
        text = f"{text[:start]}{begin}\n{part}\n{text[stop:]}"
    return text


def check_marked(path: Path, names: Iterable[str]) -> None:
    """Refuse, before what is to stand there is measured, a document in which these parts have no place.

    Raises:
        InputError: the document cannot be read, or see `marked`.
    """
    marked(_text(path), dict.fromkeys(names, ""), path)


def write_marked(path: Path, parts: Mapping[str, str]) -> None:
    """Replace what stands between marks in a document; nothing is written if one of them is amiss.

    Raises:
        InputError: the document cannot be read or written, or see `marked`.
    """
    write_text(path, marked(_text(path), parts, path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
