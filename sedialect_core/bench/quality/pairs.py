"""Two arms held against each other, from the results of a run: no model is needed, and nothing is measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from .rendering import COLUMNS, interval_text
from .statistics import paired_difference

METRICS = ("velocity", "psnr", "cvvdp", "flicker", "warping")


def held_against(path: Path, arms: Sequence[tuple[str, str]]) -> str:
    """A Markdown table: for each pair of arms the ratio of their mean velocity errors and, metric by metric, the paired
    differences, first less second, with 95 % bootstrap intervals.

    Args:
        path: `quality.json` of `sedialect bench quality`.

    Raises:
        InputError: it is no such file, or knows no such arm.
    """
    known = _read(path)
    columns = [COLUMNS[name] for name in METRICS]
    heads = ["arm", "against", "velocity error, ratio", *(column.heading for column in columns)]
    lines = [heads, ["---"] * len(heads)]
    for names in arms:
        first, second = (_values(known, name) for name in names)
        ratio = sum(first["velocity"]) / sum(second["velocity"]) if first["velocity"] and second["velocity"] else None
        cells = [*names, "" if ratio is None else f"{ratio:.3f}"]
        for column in columns:
            values, others = first[column.metric], second[column.metric]
            apart = paired_difference(values, others) if values and others else None
            cells.append("" if apart is None else interval_text(apart, column.digits, sign="+"))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The values of each arm, pair by pair."""
    try:
        return {arm["name"]: arm["pairs"] for arm in json.loads(path.read_text(encoding="utf-8"))["arms"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no result of `sedialect bench quality`: {error}") from None


def _values(known: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> dict[str, list[float]]:
    """Metrics that all pairs of an arm have; empty lists for the others."""
    if name not in known:
        raise InputError(f"no arm {name!r} was measured; there are {', '.join(known)}")
    pairs = known[name]
    return {metric: [pair[metric] for pair in pairs] if all(metric in pair for pair in pairs) else [] for metric in METRICS}
