"""Kinds of values that a setting may have: each checks a value, and says in words what is possible."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, shown
from .patterns import MAX_PATTERNS, check_pattern

MAX_TEXT = 2048  # characters


@dataclass(frozen=True)
class Values:
    """Any value."""

    def check(self, name: str, value: Any) -> Any:
        """The value as the configuration keeps it.

        Raises:
            ConfigError: the setting `name` cannot have it.
        """
        return value

    @property
    def words(self) -> str:
        """What is possible, for a table or a help text."""
        return ""


@dataclass(frozen=True)
class Choice(Values):
    """One of a few values."""

    options: tuple[Any, ...]

    def check(self, name: str, value: Any) -> Any:
        """See `Values`."""
        if not any(type(value) is type(option) and value == option for option in self.options):
            raise ConfigError(f"{name} is {shown(value)}; choose one of {', '.join(map(str, self.options))}")
        return value

    @property
    def words(self) -> str:
        """See `Values`."""
        return ", ".join(map(str, self.options))


@dataclass(frozen=True)
class Switch(Values):
    """On or off."""

    def check(self, name: str, value: Any) -> bool:
        """See `Values`."""
        if type(value) is not bool:
            raise ConfigError(f"{name} is {shown(value)}; it is True or False")
        return value

    @property
    def words(self) -> str:
        """See `Values`."""
        return "on, off"


@dataclass(frozen=True)
class Number(Values):
    """A number from `low` to `high`, both possible; without `high`, there is no largest."""

    low: float
    high: float | None = None
    whole: bool = True

    def check(self, name: str, value: Any) -> Any:
        """See `Values`."""
        if not self.holds(value):
            raise ConfigError(f"{name} is {shown(value)}; give {'an' if self.whole else 'a'} {self.words}")
        return value

    def holds(self, value: Any) -> bool:
        """Whether a value is a number of the right kind within the range; NaN is not."""
        right = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        return right and self.low <= value and (self.high is None or value <= self.high)

    @property
    def _range(self) -> str:
        return f"of at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"

    @property
    def words(self) -> str:
        """See `Values`."""
        return f"{'integer' if self.whole else 'number'} {self._range}"


@dataclass(frozen=True)
class Numbers(Number):
    """Several numbers: one for each name of `parts`, or, without names, any number of them."""

    parts: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> tuple[Any, ...]:
        """See `Values`."""
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ConfigError(f"{name} is {shown(value)}; give {self.words}")
        values = tuple(value)[: MAX_PATTERNS + 1]
        if len(values) > MAX_PATTERNS or not all(map(self.holds, values)) or len(values) != (len(self.parts) or len(values)):
            raise ConfigError(f"{name} is {shown(values)}; give {self.words}")
        return values

    @property
    def words(self) -> str:
        """See `Values`."""
        return f"{f'{len(self.parts)} ' if self.parts else ''}{'integers' if self.whole else 'numbers'} {self._range}"


@dataclass(frozen=True)
class Text(Values):
    """A text."""

    def check(self, name: str, value: Any) -> str:
        """See `Values`."""
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise ConfigError(f"{name} is {shown(value)}; give a text of at most {MAX_TEXT} characters")
        return text

    @property
    def words(self) -> str:
        """See `Values`."""
        return "text"


@dataclass(frozen=True)
class Book(Text):
    """A formatbook, by any of its names."""

    @property
    def words(self) -> str:
        """See `Values`."""
        return "formatbook"


@dataclass(frozen=True)
class Patterns(Values):
    """Regular expressions that find names of layers."""

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        """See `Values`."""
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ConfigError(f"{name} is {shown(value)}; give a list of {self.words}")
        patterns = tuple(value)
        _check_count(name, patterns)
        return tuple(check_pattern(pattern) for pattern in patterns)

    @property
    def words(self) -> str:
        """See `Values`."""
        return "regular expressions"


@dataclass(frozen=True)
class LayerPrecisions(Values):
    """Pairs of a regular expression and one of `precisions`."""

    precisions: tuple[str, ...]

    def check(self, name: str, value: Any) -> tuple[tuple[str, str], ...]:
        """See `Values`."""
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} is {shown(value)}; give a list of {self.words}")
        _check_count(name, value)
        if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in value):
            raise ConfigError(f"{name} is {shown(value)}; give pairs (pattern, precision)")
        pairs = tuple((check_pattern(pattern), precision) for pattern, precision in value)
        for pattern, precision in pairs:
            Choice(self.precisions).check(f"{name}[{shown(pattern)}]", precision)
        return pairs

    @property
    def words(self) -> str:
        """See `Values`."""
        return "pairs (regular expression, precision)"


def _check_count(name: str, values: Sequence[Any]) -> None:
    if len(values) > MAX_PATTERNS:
        raise ConfigError(f"{name} is {shown(values)}; give a list of at most {MAX_PATTERNS} values")
