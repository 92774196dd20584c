"""Results of the benches as pictures: intervals of quality, and bars of milliseconds."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from ...bench.speed.results import Part, Row
from ..kept_results import ArmQuality, Quality
from . import charts

LINE, NAMES, VALUES = 24, 170, 130  # of the bars
COLOURS = 4
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
    marks = [(tick, "sd-tick") for tick in ticks]
    base = next((arm for arm in quality.arms if arm.name == quality.base and metric in arm.means), None)
    if base is not None and ticks[0] <= base.means[metric].mean <= ticks[-1]:
        marks.append((base.means[metric].mean, "sd-base"))
    lines = "".join(f'<i class="{kind}" style="left:{_place(value, ticks):.2f}%"></i>' for value, kind in marks)
    numbers = "".join(f'<em style="left:{_place(tick, ticks):.2f}%">{tick:g}</em>' for tick in ticks)
    parts = [_row("", "bits", numbers, "weight and activation")]
    for number, group in enumerate(quality.groups):
        rows = [_interval(arm, metric, ticks, lines, number % COLOURS) for arm in shown if arm.group == group]
        parts += [f'<p class="sd-group">{escape(group)}</p>', *rows] if rows else []
    title = f"{how.label} of {len(shown)} arms, {how.better}"
    return f'<div class="sd-arms" role="img" aria-label="{escape(title)}">{"".join(parts)}</div>'


def _interval(arm: ArmQuality, metric: str, ticks: Sequence[float], lines: str, colour: int) -> str:
    found = arm.means[metric]
    mean, low, high = (_place(value, ticks) for value in found)
    kind = f"sd-fill-{colour}"
    marks = (
        f'<b class="{kind}" style="left:{low:.2f}%;width:{high - low:.2f}%"></b>'
        f'<span class="sd-dot {kind}" style="left:{mean:.2f}%"></span>'
    )
    bits = f"{arm.weight_bits:.2f} / {arm.activation_bits:.2f}"
    return _row(arm.name, bits, lines + marks, f"{found.mean:.4g}, from {found.low:.4g} to {found.high:.4g}")


def _row(name: str, bits: str, track: str, says: str) -> str:
    """HTML, no SVG: on a phone the track goes below the name, and no letter is scaled."""
    return (
        f'<div class="sd-arm" title="{escape(says)}"><span>{escape(name)}</span><span class="sd-bits">{escape(bits)}</span>'
        f'<div class="sd-track">{track}</div></div>'
    )


def _place(value: float, ticks: Sequence[float]) -> float:
    """Per cent of the track."""
    return 100 * (value - ticks[0]) / (ticks[-1] - ticks[0])


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


KINDS = ("sd-plain", "sd-shape-0", "sd-shape-2")  # 16 bit, ours, peers


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
        length = max(2.0, (width - NAMES - VALUES) * milliseconds / longest)
        gain = f", {base / milliseconds:.2f}x" if base and row.arm != BASELINE else ""
        shown = f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.3g} ms"
        parts.append(charts.text(0, y + 4, row.arm))
        parts.append(charts.rect(NAMES, y - 8, length, 16, _kind(row.arm)))
        parts.append(charts.text(NAMES + length + 6, y + 4, shown + gain, kind="sd-small"))
    return charts.svg(width, 2 * top + LINE * len(rows), "".join(parts), f"{case}: milliseconds of {len(rows)} arms")


def fastest(part: Part, case: str) -> Iterable[Row]:
    """The row of each arm of a case that has milliseconds, in the faster of its modes: 16 bit, ours, peers."""
    found: dict[str, Row] = {}
    for row in part.rows:
        if row.case == case and "ms" in row.numbers and row.arm not in BESIDE:
            kept = found.setdefault(row.arm, row)
            if row.numbers["ms"] < kept.numbers["ms"]:
                found[row.arm] = row
    return sorted(found.values(), key=lambda row: KINDS.index(_kind(row.arm)))


def _kind(arm: str) -> str:
    """16 bit grey, ours one colour and peers another."""
    return KINDS[0 if arm == BASELINE else 1 if arm.startswith("w4") else 2]
