"""A formatbook to look at: as a table for terminals, and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..formatbook import Formatbook
from .pen import COLOURS, INK, PALE, PAPER, Pen, picture

COLUMNS = 16  # half-units 0 to 15
BAR = 20
MARKS = ("●", "·", "█")
ASCII_MARKS = ("#", ".", "=")


class Use(NamedTuple):
    """Blocks that chose each dialect, in id order, and whose blocks they are."""

    counts: Sequence[int]
    of: str

    def shares(self) -> list[float]:
        """Parts of one."""
        total = max(1, sum(self.counts))
        return [count / total for count in self.counts]


def table(book: Formatbook, use: Use, marks: tuple[str, str, str] = MARKS) -> str:
    """One dialect a line: id, maximum, shape, its half-units as dots in 16 columns, published or not, its use."""
    on, off, bar = marks
    shares = use.shares()
    top = max(shares)
    lines = [*_heading(book), "", f" id  max  shape  0  half-units 15  paper  use by {use.of}"]
    for number, (dialect, share) in enumerate(zip(book.dialects, shares, strict=True)):
        if number and number % book.shapes == 0:
            lines.append("")
        strip = "".join(on if unit in dialect.half_units else off for unit in range(COLUMNS))
        mark = "*" if dialect.published else " "
        filled = bar * round(BAR * share / top) if top else ""
        row = f"{number:>3} {dialect.maximum:>4} {number % book.shapes:>6}  {strip}    {mark}    {share:>6.1%} {filled}"
        lines.append(row.rstrip())
    return "\n".join(
        [*lines, "", "* stands in the BlockDialect paper (arXiv 2501.01144); all maxima and magnitudes in half-units"]
    )


def printable(text: str) -> str:
    """Text from a file without what would steer a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _heading(book: Formatbook) -> list[str]:
    sets = ", ".join("{" + ", ".join(map(str, sub)) + "}" for sub in book.sub_formatbooks) or "none"
    shapes = f"{len(book.dialects)} dialects, {book.shapes} shapes for each maximum; sub-formatbooks of shapes: {sets}"
    fitted = [f"{key}: {value}" for key, value in sorted((book.fingerprint or {}).items())]
    lines = [book.name, *([book.description] if book.description else []), shapes, f"digest {book.digest}"]
    return [printable(line) for line in [*lines, *(["fitted on " + ", ".join(fitted)] if fitted else [])]]


WIDTH, MARGIN, HEAD, FOOT = 1120, 40, 132, 64
ROW, GROUP_GAP, DOT = 24, 12, 6
STRIP_LEFT, STEP = 190, 30
BAR_LEFT, BAR_WIDTH = 720, 290


def draw(book: Formatbook, use: Use, path: Path) -> Path:
    """Write the picture as PNG, whole or not at all, and return its path.

    Raises:
        InputError: Pillow is missing, or the file cannot be written.
    """
    height = HEAD + len(book.dialects) * ROW + 7 * GROUP_GAP + FOOT
    with picture(path, WIDTH, height) as pen:
        _draw_heading(pen, book, use)
        _draw_axis(pen, height)
        shares = use.shares()
        for number, share in enumerate(shares):
            _draw_row(pen, book, number, share, max(shares))
        _draw_legend(pen, book, height)
    return path


def _column(unit: int) -> int:
    return STRIP_LEFT + unit * STEP


def _row(book: Formatbook, number: int) -> float:
    return HEAD + number * ROW + (number // book.shapes) * GROUP_GAP + ROW / 2


def _draw_heading(pen: Pen, book: Formatbook, use: Use) -> None:
    name, *rest = _heading(book)
    pen.text(MARGIN, 36, _short(name, 60), size=24)
    pen.text(MARGIN, 66, _short(rest[-1 if book.fingerprint else -2], 130), fill=PALE)
    pen.text(WIDTH - MARGIN, 36, f"digest {book.digest[:12]}", fill=PALE, anchor="rm")
    pen.text(MARGIN, HEAD - 24, "maximum", fill=PALE)
    pen.text(STRIP_LEFT - 34, HEAD - 24, "id", fill=PALE, anchor="rm")
    pen.text(_column(0), HEAD - 42, "magnitudes in half-units", fill=PALE)
    pen.text(BAR_LEFT, HEAD - 24, f"use by {_short(use.of, 44)}", fill=PALE)


def _draw_axis(pen: Pen, height: int) -> None:
    for unit in range(COLUMNS):
        pen.text(_column(unit), HEAD - 22, str(unit), size=11, fill=PALE, anchor="mm")
        pen.line(_column(unit), HEAD - 8, _column(unit), height - FOOT)


def _draw_row(pen: Pen, book: Formatbook, number: int, share: float, top: float) -> None:
    dialect, y = book.dialects[number], _row(book, number)
    colour = COLOURS[number % book.shapes]
    if number % book.shapes == 0:
        pen.text(MARGIN, _row(book, number) + (book.shapes - 1) * ROW / 2, str(dialect.maximum), size=22)
    pen.text(STRIP_LEFT - 34, y, str(number), fill=PALE, anchor="rm")
    pen.line(_column(0), y, _column(dialect.maximum), y, fill=colour)
    for unit in dialect.half_units:
        pen.dot(_column(unit), y, DOT, fill=colour if dialect.published else PAPER, ring=colour)
    width = BAR_WIDTH * share / top if top else 0
    if width >= 1:
        pen.bar(BAR_LEFT, y, max(width, 6), ROW - 10, fill=colour)
    pen.text(BAR_LEFT + width + 8, y, f"{share:.1%}", size=12)


def _draw_legend(pen: Pen, book: Formatbook, height: int) -> None:
    y, x = height - FOOT / 2, MARGIN
    for shape in range(book.shapes):
        pen.dot(x + DOT, y, DOT, fill=COLOURS[shape], ring=COLOURS[shape])
        pen.text(x + 20, y, f"shape {shape}")
        x += 92
    pen.dot(x + 40, y, DOT, fill=INK, ring=INK)
    pen.text(x + 54, y, "in the BlockDialect paper")
    pen.dot(x + 240, y, DOT, fill=PAPER, ring=INK)
    pen.text(x + 254, y, "this project's or fitted")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
