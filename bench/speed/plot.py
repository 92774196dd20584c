"""The tables as a picture: a bar for each arm, in the faster of its modes."""

from collections.abc import Iterator
from pathlib import Path

from ...sedialect_core.charts.pen import COLOURS, INK, PALE, Pen, picture
from .arms import ARMS, BASELINE
from .results import Part, Row
from .shapes import LAYERS

WIDTH, LABEL, VALUE = 520, 150, 110  # of a panel; of the names, of the numbers
LINE, TITLE, MARGIN = 20, 34, 16
PER_COLUMN = 4


def draw(parts: dict[str, Part], path: Path) -> bool:
    """Draw the layers that are measured in both modes, the blocks and the models; False where none of them was measured.

    Raises:
        InputError: Pillow is missing, or the file cannot be written.
    """
    panels = list(_panels(parts))
    if not panels:
        return False
    columns = [panels[i : i + PER_COLUMN] for i in range(0, len(panels), PER_COLUMN)]
    height = max(sum(TITLE + LINE * len(rows) for _, rows in column) for column in columns)
    with picture(path, MARGIN + len(columns) * (WIDTH + MARGIN), height + 2 * MARGIN) as pen:
        for number, column in enumerate(columns):
            top = MARGIN
            for title, rows in column:
                _panel(pen, MARGIN + number * (WIDTH + MARGIN), top, title, rows)
                top += TITLE + LINE * len(rows)
    return True


def _panels(parts: dict[str, Part]) -> Iterator[tuple[str, list[Row]]]:
    minor = {str(layer) for layer in LAYERS if not layer.compiled}
    for name in ("layers", "blocks", "models"):
        part = parts.get(name)
        for case in [] if part is None else [case for case in part.cases if case not in minor]:
            rows = [row for arm in ARMS if (row := _fastest(part, case, arm.name))]  # type: ignore[arg-type]
            if len(rows) > 1:
                yield f"{case}: {'a step' if name == 'models' else name.rstrip('s')}", rows


def _fastest(part: Part, case: str, arm: str) -> Row | None:
    rows = [row for row in part.rows if row.case == case and row.arm == arm and row.numbers]
    return min(rows, key=lambda row: row.numbers["ms"]) if rows else None


def _panel(pen: Pen, left: float, top: float, title: str, rows: list[Row]) -> None:
    pen.text(left, top + TITLE / 2, title, size=14)
    longest = max(row.numbers["ms"] for row in rows)
    base = next((row.numbers["ms"] for row in rows if row.arm == BASELINE), None)
    for number, row in enumerate(rows):
        middle = top + TITLE + LINE * (number + 0.5)
        milliseconds = row.numbers["ms"]
        length = (WIDTH - LABEL - VALUE) * milliseconds / longest
        pen.text(left, middle, row.arm, size=11)
        pen.bar(left + LABEL, middle, max(length, 2), LINE - 6, _colour(row.arm))
        gain = f"  {base / milliseconds:.2f}x" if base and row.arm != BASELINE else ""
        shown = f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.2f} ms"
        pen.text(left + LABEL + length + 6, middle, f"{shown}{gain}", size=11, fill=INK)


def _colour(arm: str) -> str:
    """16 bit grey, ours one colour and peers another."""
    ours = next((one.config is not None for one in ARMS if one.name == arm), False)
    return PALE if arm == BASELINE else COLOURS[0] if ours else COLOURS[2]
