"""Regular expressions that users write: of bounded length, and given up when they take too long.

Python's own `re` cannot be interrupted, and a pattern of ten characters can keep it busy for years.
"""

from functools import lru_cache

import regex

from ..errors import ConfigError, shortened, shown

MAX_PATTERN = 300  # characters
MAX_PATTERNS = 500
SECONDS = 1.0  # for one name


def check_pattern(pattern: object) -> str:
    """The pattern, where it is one that is tried.

    Raises:
        ConfigError: it is no text, is too long, or is no regular expression.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"pattern {shown(pattern)} is no text; write a regular expression, such as 'ffn'")
    if len(pattern) > MAX_PATTERN:
        raise ConfigError(f"pattern {shown(pattern)} has {len(pattern):,} characters; at most {MAX_PATTERN} are tried")
    _compiled(pattern)
    return pattern


def finds(pattern: str, name: str) -> bool:
    """Whether the pattern finds something in a layer's name.

    Raises:
        ConfigError: it takes too long.
    """
    try:
        return _compiled(pattern).search(name, timeout=SECONDS) is not None
    except TimeoutError:
        raise ConfigError(
            f"pattern {shown(pattern)} took more than {SECONDS:g} s on the name {shown(name)}; write it without nested "
            "repetitions, such as (a+)+"
        ) from None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise ConfigError(f"pattern {shown(pattern)} is no regular expression: {shortened(error)}") from None
