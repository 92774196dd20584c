"""What can go wrong, by kind. Every message names the thing, its value and the remedy.

The command line prints a `SeDialectError` as one line and exits with 2; anything else is a bug and keeps its traceback.
"""

import reprlib


class SeDialectError(Exception):
    """Base of all errors that a user can mend."""


class FormatbookError(SeDialectError, ValueError):
    """A formatbook that breaks a rule of its format, or a name that no book has."""


class EncodeError(SeDialectError, ValueError):
    """A tensor that cannot be encoded: its shape does not fit the block size, or it holds NaN or Inf."""


class ConfigError(SeDialectError, ValueError):
    """A setting with an unknown name or a value outside its range."""


class ModelError(SeDialectError, ValueError):
    """A model or pipeline that cannot be quantized as it is."""


class InputError(SeDialectError, ValueError):
    """Something asked for on the command line, or read from disk, that is not there or not usable."""


def first_line(said: object) -> str:
    """The first line of an error's message, or its kind where it has none: other libraries explain at length."""
    lines = str(said).strip().splitlines()
    return lines[0] if lines else type(said).__name__


def shown(value: object, most: int = 60) -> str:
    """A value from a file or a user as an error shows it: at most `most` characters, on one line, however large it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlong = 2, 24
    short.maxstring = short.maxother = most
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = 4
    try:
        text = short.repr(value)
    except ValueError:  # Python writes out no integer of thousands of digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shortened(said: object, most: int = 100) -> str:
    """The first line of another library's message, cut off where it is long: it may quote a whole file."""
    line = "".join(sign if sign.isprintable() else "?" for sign in first_line(said))
    return line if len(line) <= most else f"{line[: most - 1]}…"
