"""Two arms held against each other, from the results of a run: no model is needed, and nothing is measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...sedialect_core.errors import InputError
from .measuring import Values
from .rendering import COLUMNS, interval_text, table_line
from .runner import column
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
    heads = ["arm", "against", "velocity error, ratio", *(COLUMNS[metric].heading for metric in METRICS)]
    lines = [heads, ["---"] * len(heads)]
    for names in arms:
        first, second = (_pairs(known, name) for name in names)
        cells = list(names)
        for metric in METRICS:
            values, others = column(first, metric), column(second, metric)
            apart = paired_difference(values, others) if values and others else None
            if metric == "velocity":
                cells.append("" if apart is None else f"{sum(values) / sum(others):.3f}")
            cells.append("" if apart is None else interval_text(apart, COLUMNS[metric].digits, sign="+"))
        lines.append(cells)
    return "\n".join(map(table_line, lines))


def _read(path: Path) -> Mapping[str, Sequence[Values]]:
    """The values of each arm, pair by pair."""
    try:
        return {arm["name"]: arm["pairs"] for arm in json.loads(path.read_text(encoding="utf-8"))["arms"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no result of `sedialect bench quality`: {error}") from None


def _pairs(known: Mapping[str, Sequence[Values]], name: str) -> Sequence[Values]:
    if name not in known:
        raise InputError(f"no arm {name!r} was measured; there are {', '.join(known)}")
    return known[name]
