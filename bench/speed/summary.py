"""One line about a card that no table of docs/ is of, which its owner can send us."""

from ...sedialect_core.environment import machine_line
from .arms import BASELINE
from .layers import AGAIN
from .results import Part

MEASURED = ("H100", "H200")  # what the tables in docs/ were measured on
PACKAGES = ("sedialect", "torch", "triton")
WHERE = "https://github.com/sedialect/sedialect/issues"


def summary(layers: Part) -> str | None:
    """The line, with every arm's speed relative to BF16, case by case; None for a card that we have, for CPUs, or where no
    BF16 was measured."""
    device = str(layers.where.get("device"))
    if "CPU" in device or any(name in device for name in MEASURED):
        return None
    cases = [f"{case}: {', '.join(ratios)}" for case in layers.cases if (ratios := _ratios(layers, case))]
    if not cases:
        return None
    capability = layers.where.get("gpu", {}).get("compute capability")
    path = layers.where.get("path")
    return f"{machine_line(layers.where, PACKAGES)} Compute capability {capability}; {path} | x BF16 | {' | '.join(cases)}"


def _ratios(layers: Part, case: str) -> list[str]:
    """Each arm of a case, in the faster of its modes, beside the faster of BF16's."""
    best: dict[str, float] = {}
    for row in layers.rows:
        if row.case == case and "ms" in row.numbers and row.arm != AGAIN:
            best[row.arm] = min(best.get(row.arm, row.numbers["ms"]), row.numbers["ms"])
    base = best.pop(BASELINE, None)
    return [f"{arm} {base / spent:.2f}" for arm, spent in best.items()] if base else []
