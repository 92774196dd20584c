"""The results as a picture: one line an arm, its mean as a dot and its interval as a bar, on a panel for each metric."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...sedialect_core.charts.pen import COLOURS, INK, PALE, PAPER, Pen, picture
from .runner import Result
from .statistics import bootstrap

MARGIN, HEAD, FOOT = 40, 112, 56
ROW, GROUP = 26, 34
NAMES, BITS, PANEL, GAP = 400, 110, 430, 60
DOT = 5


class Panel(NamedTuple):
    """A metric, what stands over it, and whether its axis is logarithmic."""

    metric: str
    heading: str
    logarithmic: bool


PANELS = (
    Panel("velocity", "velocity error on the 16-bit trajectory (lower is nearer)", True),
    Panel("psnr", "PSNR of the videos to 16 bit, dB (higher is nearer)", False),
)


def draw(results: Sequence[Result], base: str, path: Path) -> Path:
    """Write the picture as PNG, whole or not at all, and return its path.

    Raises:
        InputError: Pillow is missing, or the file cannot be written.
    """
    panels = [panel for panel in PANELS if any(result.column(panel.metric) for result in results)]
    groups = list(dict.fromkeys(result.arm.group for result in results))
    height = HEAD + ROW * len(results) + GROUP * len(groups) + FOOT
    width = 2 * MARGIN + NAMES + BITS + len(panels) * PANEL + (len(panels) - 1) * GAP
    with picture(path, width, height) as pen:
        pen.text(MARGIN, 36, f"How near to 16 bit: {len(results[0].pairs)} pairs of prompt and seed", size=22)
        pen.text(
            MARGIN,
            66,
            f"dots: means; bars: 95 % bootstrap intervals; rings: the worst tenth of the pairs; dashed: {base}",
            fill=PALE,
        )
        pen.text(MARGIN + NAMES + BITS - 24, HEAD - 12, "bits, weight / activation", size=11, fill=PALE, anchor="rm")
        places = _places(results)
        _draw_names(pen, results, places, groups, base)
        for number, panel in enumerate(panels):
            left = MARGIN + NAMES + BITS + number * (PANEL + GAP)
            _draw_panel(pen, panel, results, places, left, height, base)
    return path


def _places(results: Sequence[Result]) -> list[float]:
    """The height of each arm's line."""
    places, y, group = [], float(HEAD), None
    for result in results:
        if result.arm.group != group:
            group, y = result.arm.group, y + GROUP
        places.append(y + ROW / 2)
        y += ROW
    return places


def _draw_names(pen: Pen, results: Sequence[Result], places: Sequence[float], groups: Sequence[str], base: str) -> None:
    group = None
    for result, y in zip(results, places, strict=True):
        if result.arm.group != group:
            group = result.arm.group
            pen.text(MARGIN, y - ROW / 2 - GROUP / 2 + 4, group, size=12, fill=PALE)
        pen.text(MARGIN, y, result.arm.name, fill=_colour(result, groups))
        bits = f"{result.bits.weight:.2f} / {result.bits.activation:.2f}"
        pen.text(MARGIN + NAMES + BITS - 24, y, bits, size=11, fill=PALE, anchor="rm")


def _draw_panel(
    pen: Pen, panel: Panel, results: Sequence[Result], places: Sequence[float], left: float, height: float, base: str
) -> None:
    columns = [(result, y, result.column(panel.metric)) for result, y in zip(results, places, strict=True)]
    found = [(result, y, bootstrap(values)) for result, y, values in columns if values]
    groups = list(dict.fromkeys(result.arm.group for result in results))
    rounded = [one for one in found if min(one[0].bits) < 16] or found  # 16 bit itself is far from all others
    seen = [(*interval, result.worst_tenth(panel.metric) or interval.mean) for result, _, interval in rounded]
    shown = [value for values in seen for value in values if value > 0 or not panel.logarithmic]
    ticks = _ticks(min(shown), max(shown), panel.logarithmic)
    ends = min(*ticks, *shown), max(*ticks, *shown)

    def place(value: float) -> float:
        if panel.logarithmic:
            return left + PANEL * math.log(max(value, ends[0]) / ends[0]) / max(math.log(ends[1] / ends[0]), 1e-9)
        return left + PANEL * (value - ends[0]) / max(ends[1] - ends[0], 1e-9)

    pen.text(left, HEAD - 12, panel.heading, size=12, fill=INK)
    for tick in ticks:
        pen.line(place(tick), HEAD + 8, place(tick), height - FOOT)
        pen.text(place(tick), height - FOOT + 14, f"{tick:g}", size=11, fill=PALE, anchor="mm")
    for result, y, interval in found:
        colour = _colour(result, groups)
        if result.arm.name == base:
            _dash(pen, place(interval.mean), HEAD + 8, height - FOOT, colour)
        if not ends[0] <= interval.mean <= ends[1]:
            low = interval.mean < ends[0]
            pen.text(left if low else left + PANEL, y, f"{interval.mean:.3g}", fill=colour, anchor="lm" if low else "rm")
            continue
        pen.line(place(interval.low), y, place(interval.high), y, fill=colour, width=2)
        pen.dot(place(interval.mean), y, DOT, fill=colour, ring=colour)
        worst = result.worst_tenth(panel.metric)
        if worst is not None and ends[0] <= worst <= ends[1]:
            pen.dot(place(worst), y, DOT - 2, fill=PAPER, ring=colour)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers that span the values, few enough to be read."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    else:
        size = 10.0 ** math.floor(math.log10(max(high - low, 1e-9)))
        step = next(size * part for part in (0.1, 0.2, 0.5, 1) if (high - low) / (size * part) <= 9 or part == 1)
        every = [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
    inside = [tick for tick in every if low <= tick <= high]
    return inside or [low, high]


def _dash(pen: Pen, x: float, top: float, bottom: float, colour: str) -> None:
    y = top
    while y < bottom:
        pen.line(x, y, x, min(y + 4, bottom), fill=colour)
        y += 9


def _colour(result: Result, groups: Sequence[str]) -> str:
    return COLOURS[groups.index(result.arm.group) % len(COLOURS)]
