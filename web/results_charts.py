"""Results of the benches as pictures: intervals of quality, and bars of milliseconds."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

from ..sedialect_core.bench.speed.results import Part, Row
from . import charts
from .measured import ArmQuality, Quality

WIDTH, NAMES, BITS, LINE, GROUP, TOP = 860, 250, 100, 24, 30, 34
SPEED_NAMES, SPEED_VALUES = 170, 130
BASELINE = "BF16"
BESIDE = ("BF16, again", "attention alone")  # rows that are no arm: the clock's drift, and what no arm makes faster
TICKS = 5  # about


class Metric(NamedTuple):
    """How a metric is shown: its name, which way is better, and whether its axis begins at zero."""

    label: str
    better: str
    from_zero: bool = True


METRICS = {
    "velocity": Metric("Velocity error", "lower is nearer to 16 bit"),
    "psnr": Metric("PSNR, dB", "higher is nearer", from_zero=False),
    "ssim": Metric("SSIM", "1 is equal", from_zero=False),
    "cvvdp": Metric("ColorVideoVDP, JOD", "10 is no visible difference", from_zero=False),
    "flicker": Metric("Flicker error", "levels of 255; lower is steadier"),
    "warping": Metric("Warping error", "levels of 255; lower is steadier"),
    "accuracy": Metric("Prompt accuracy", "the part of the prompt's attributes that is seen in the video", from_zero=False),
}


def label(metric: str) -> str:
    """A metric's name in the page."""
    return METRICS[metric].label if metric in METRICS else metric.replace("_", " ").capitalize()


def intervals(quality: Quality, metric: str, groups: Sequence[str]) -> str:
    """The arms of these groups that have the metric: means as dots, 95 % intervals as bars, the base's mean as a line."""
    shown = [arm for arm in quality.arms if arm.group in groups and metric in arm.means]
    if not shown:
        return ""
    how = METRICS.get(metric, Metric(label(metric), ""))
    ticks = round_ticks(*_ends(shown, metric, how.from_zero))
    place = _scale(ticks, NAMES + BITS + 10, WIDTH - 30)
    lines, height = _lines(shown)
    parts = [charts.line(place(tick), TOP - 8, place(tick), height) for tick in ticks]
    parts += [charts.text(place(tick), TOP - 14, f"{tick:g}", "middle", "sd-small") for tick in ticks]
    parts.append(charts.text(NAMES + BITS - 12, TOP - 14, "bits, weight / activation", "end", "sd-small"))
    base = next((arm for arm in quality.arms if arm.name == quality.base and metric in arm.means), None)
    if base is not None and ticks[0] <= base.means[metric].mean <= ticks[-1]:
        x = place(base.means[metric].mean)
        parts.append(charts.line(x, TOP - 8, x, height, "sd-base"))
    group = ""
    for arm, y in lines:
        if arm.group != group:
            group = arm.group
            parts.append(charts.text(0, y - LINE, group, kind="sd-small"))
        parts.append(_interval(arm, metric, y, place, quality.groups.index(group) % 4))
    title = f"{how.label} of {len(shown)} arms, {how.better}"
    return charts.svg(WIDTH, height + 6, "".join(parts), title, least=660)


def _interval(arm: ArmQuality, metric: str, y: float, place: Callable[[float], float], colour: int) -> str:
    found = arm.means[metric]
    says = f"{arm.name}: {found.mean:.4g}, from {found.low:.4g} to {found.high:.4g}"
    bits = f"{arm.weight_bits:.2f} / {arm.activation_bits:.2f}"
    return (
        f"<g><title>{escape(says)}</title>"
        + charts.text(0, y + 4, arm.name)
        + charts.text(NAMES + BITS - 12, y + 4, bits, "end", "sd-small")
        + charts.rect(place(found.low), y - 2, place(found.high) - place(found.low), 4, f"sd-shape-{colour} sd-faint")
        + f'<circle cx="{place(found.mean):.2f}" cy="{y:g}" r="5" class="sd-shape-{colour}"/></g>'
    )


def _lines(arms: Sequence[ArmQuality]) -> tuple[list[tuple[ArmQuality, float]], float]:
    """The height of each arm's line, below its group's name, and of all of them."""
    lines, y, group = [], float(TOP), ""
    for arm in arms:
        if arm.group != group:
            group, y = arm.group, y + GROUP
        lines.append((arm, y))
        y += LINE
    return lines, y


def _ends(arms: Iterable[ArmQuality], metric: str, from_zero: bool) -> tuple[float, float]:
    values = [value for arm in arms for value in arm.means[metric]]
    return min(0.0, *values) if from_zero else min(values), max(values)


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers around an interval, few enough to be read."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    size = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(size * part for part in (1, 2, 5, 10) if (high - low) / (size * part) <= TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _scale(ticks: Sequence[float], left: float, right: float) -> Callable[[float], float]:
    return lambda value: left + (right - left) * (value - ticks[0]) / (ticks[-1] - ticks[0])


def bars(part: Part, case: str) -> str:
    """Milliseconds of every arm of a case, each in the faster of its modes; empty where fewer than two were measured."""
    rows = list(fastest(part, case))
    if len(rows) < 2:
        return ""
    longest = max(row.numbers["ms"] for row in rows)
    base = next((row.numbers["ms"] for row in rows if row.arm == BASELINE), None)
    width, top = 560, 4
    parts = []
    for number, row in enumerate(rows):
        y, milliseconds = top + LINE * (number + 0.5), row.numbers["ms"]
        length = max(2.0, (width - SPEED_NAMES - SPEED_VALUES) * milliseconds / longest)
        gain = f", {base / milliseconds:.2f}x" if base and row.arm != BASELINE else ""
        shown = f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.3g} ms"
        parts.append(charts.text(0, y + 4, row.arm))
        parts.append(charts.rect(SPEED_NAMES, y - 8, length, 16, _kind(row.arm)))
        parts.append(charts.text(SPEED_NAMES + length + 6, y + 4, shown + gain, kind="sd-small"))
    return charts.svg(width, 2 * top + LINE * len(rows), "".join(parts), f"{case}: milliseconds of {len(rows)} arms")


def fastest(part: Part, case: str) -> Iterable[Row]:
    """The row of each arm of a case that has milliseconds, in the faster of its modes, in the order of measuring."""
    found: dict[str, Row] = {}
    for row in part.rows:
        if row.case == case and "ms" in row.numbers and row.arm not in BESIDE:
            kept = found.setdefault(row.arm, row)
            if row.numbers["ms"] < kept.numbers["ms"]:
                found[row.arm] = row
    return found.values()


def _kind(arm: str) -> str:
    """16 bit grey, ours one colour and peers another."""
    return "sd-plain" if arm == BASELINE else "sd-shape-0" if arm.startswith("w4") else "sd-shape-2"
