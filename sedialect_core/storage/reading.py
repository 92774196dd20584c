"""Files of other people: how much of them is read, and the JSON in them.

Python's own reader takes integers of thousands of digits, NaN, the last of two equal keys, and any size. Nothing here does.
"""

import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, shortened, shown

MAX_JSON = 1 << 24  # bytes; the index of a model of 100,000 tensors takes about ten million
MAX_PATH = 300  # characters of a path that is shown whole
DIGITS = 20  # of an integer: 2^64 has as many
AGAIN = "download it again, or have it written again"


def check_regular(path: Path | str) -> Path:
    """The path, where a plain file lies there: a pipe or a device would be waited for without end.

    Raises:
        InputError: anything else lies there, or nothing.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else shortened(error)
        name = path if len(str(path)) <= MAX_PATH else shown(str(path))  # such as a text that stands where a path belongs
        raise InputError(f"{name} cannot be read ({why}); check the path") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is a folder, a pipe or a device, not a file; put a plain file there")
    return Path(path)


def read_bytes(path: Path | str, most: int = MAX_JSON, remedy: str = AGAIN) -> bytes:
    """What a plain file holds.

    Raises:
        InputError: it cannot be read, or holds more than `most` bytes.
    """
    with_limit = check_regular(path)
    try:
        with with_limit.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    if len(content) > most:
        raise InputError(f"{path} holds more than {most:,} bytes, which no such file needs; {remedy}")
    return content


def read_object(path: Path | str, most: int = MAX_JSON, remedy: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, or holds anything else.
    """
    return parse_object(read_bytes(path, most, remedy), str(path), remedy)


def parse_object(text: str | bytes, where: str, remedy: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a text; errors say that it stands at `where`.

    Raises:
        InputError: it is no JSON that can be trusted, as of `parse`; or no object.
    """
    data = parse(text, where, remedy)
    if not isinstance(data, dict):
        raise InputError(f"{where} is damaged: it holds a {type(data).__name__}, not an object; {remedy}")
    return data


def parse(text: str | bytes, where: str, remedy: str = AGAIN) -> Any:
    """What the JSON in a text says; errors say that it stands at `where`.

    Raises:
        InputError: it is no JSON, or none that can be trusted: a key twice, a number that no float or 64-bit integer holds,
            hundreds of levels.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_no_constant
        )
    except RecursionError:
        raise InputError(f"{where} is damaged: it is nested too deeply; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{where} is damaged: {shortened(error)}; {remedy}") from None


def read_text(path: Path | str, most: int = MAX_JSON, remedy: str = "save it as UTF-8") -> str:
    """The text of a plain file in UTF-8; the mark that Windows' editors put before it is no part of it.

    Raises:
        InputError: the file cannot be read, holds more than `most` bytes, or is in another encoding.
    """
    try:
        return read_bytes(path, most, remedy).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 (byte {error.start}); {remedy}") from None


class Fields:
    """The values of an object from a file, each of the kind that it must have.

    Args:
        where: file, and key of the object in it.
        error: what is raised.
    """

    def __init__(self, data: Any, where: str, remedy: str = AGAIN, error: Callable[[str], Exception] = InputError) -> None:
        self.where, self.remedy, self.error = where, remedy, error
        if not isinstance(data, dict):
            raise self.wrong(f"it is {shown(data)}, not an object")
        self.data: dict[str, Any] = data

    def wrong(self, what: str) -> Exception:
        """The error that says so."""
        return self.error(f"{self.where} is damaged: {what}; {self.remedy}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, exactly of this kind; without a default it must be there."""
        if key not in self.data:
            if default is None:
                raise self.wrong(f"the key {key!r} is missing")
            return default
        value = self.data[key]
        if type(value) is not kind:
            raise self.wrong(f"{key!r} is {shown(value)}, not of the kind {kind.__name__}")
        return value

    def text(self, key: str, default: str | None = None, most: int = 200) -> str:
        """A string of at most so many characters."""
        value: str = self.get(key, str, default)
        if len(value) > most:
            raise self.wrong(f"{key!r} has {len(value):,} characters; at most {most} are possible")
        return value

    def items(self, key: str, kind: type, default: list[Any] | None = None, most: int = 100_000) -> list[Any]:
        """A list of at most so many values of one kind."""
        found: list[Any] = self.get(key, list, default)
        if len(found) > most:
            raise self.wrong(f"{key!r} lists {len(found):,}; at most {most:,} are possible")
        for value in found:
            if type(value) is not kind:
                raise self.wrong(f"{key!r} holds {shown(value)}, not of the kind {kind.__name__}")
        return found

    def only(self, *known: str) -> None:
        """Refuse keys that are not known."""
        if strange := self.data.keys() - set(known):
            raise self.wrong(f"it has the key {shown(min(strange))}, which this sedialect does not know")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return data


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON's")
