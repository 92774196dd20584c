"""Results as the tables of docs/results/speed.md. Nothing is measured here."""

from collections.abc import Iterable
from typing import Any

from ...sedialect_core.environment import machine_line
from .arms import ARMS, BASELINE
from .blocks import ATTENTION
from .floors import BF16_PEAK, COPY, DEVICE, FP8_PEAK
from .layers import AGAIN
from .pieces import OTHER, kind_of
from .results import Part, Row
from .shapes import LAYERS, QUICK_LAYERS, VIDEOS, Layers
from .trials import COMPILED, EAGER

FAST = f"{FP8_PEAK}, fast accumulation"
GIGA = 1e9
NAMED = 0.01  # of a block's time, from which on a kernel is named
NAME_LENGTH = 80


def place(name: str) -> str:
    """The name of the marks that a part's tables stand between in a document."""
    return f"bench speed: {name}"


def render(parts: dict[str, Part]) -> dict[str, str]:
    """The markdown of every part that was measured, and of the shapes."""
    tables = {"shapes": shapes()}
    for name, part in parts.items():
        match name:
            case "kernels":
                tables[name] = kernels(part)
            case "attention":
                tables[name] = attentions(part)
            case "layers":
                tables[name] = layers(part, parts.get("kernels"))
            case "blocks":
                tables[name] = blocks(part)
            case "pieces":
                tables[name] = pieces(part)
            case "models":
                tables[name] = models(part)
            case "enabling":
                tables[name] = enabling(part)
        tables[name] += f"\n\n{origin(part)}"
    return tables


def shapes() -> str:
    """How many tokens each model's rows are."""
    rows = [
        [name, str(video), f"{video.space}x{video.space}x{video.time}", video.patch, _grid(video.grid), f"{video.tokens:,}"]
        for name, video in VIDEOS.items()
    ]
    return table(["of", "video", "pixels of a latent", "patch", "T x H x W", "video tokens"], rows)


def kernels(part: Part) -> str:
    """What the device can do; then each kernel with its distance from its two floors."""
    copy = part.number(DEVICE, COPY, "GB/s")
    rows = [[r.arm, _number(r, "GB/s", ".0f"), _number(r, "TFLOP/s", ".0f"), r.note] for r in part.rows if r.case == DEVICE]
    head = table(["this GPU", "GB/s", "TFLOP/s", ""], rows)
    lines = []
    for row in (row for row in part.rows if row.case != DEVICE):
        floor = floor_ms(part, row.numbers.get("bytes", 0), row.numbers.get("operations", 0), row.arm)
        first = next(other for other in part.rows if other.case == row.case)
        error = [_number(row, name, ".1e") for name in ("error", "error of BF16")]
        times = _ratio(row.numbers.get("ms"), first.numbers.get("ms"))
        lines.append(
            [
                row.case,
                row.arm,
                _ms(row),
                _ratio(row.numbers.get("ms"), floor),
                times,
                " / ".join(filter(None, error)),
                row.note,
            ]
        )
    columns = ["kernel", "", "ms", "x its floor", "x the first", "error / BF16's", ""]
    told = f"Copying {copy:.0f} GB/s is the byte floor." if copy else ""
    return "\n\n".join(filter(None, [head, told, table(columns, lines)]))


def floor_ms(kernels: Part | None, moved: float, operations: float, arm: str) -> float | None:
    """Milliseconds below which this GPU cannot get: the longer of moving the bytes and doing the operations."""
    if kernels is None:
        return None
    copy = kernels.number(DEVICE, COPY, "GB/s")
    products = [BF16_PEAK] if arm == BF16_PEAK else [FP8_PEAK, FAST]
    rates = [rate for name in products if (rate := kernels.number(DEVICE, name, "TFLOP/s"))]
    rates = rates or [rate for rate in [kernels.number(DEVICE, BF16_PEAK, "TFLOP/s")] if rate]
    floors = [moved / copy / 1e6 if copy else 0, operations / max(rates) / 1e9 if rates else 0]
    return max(floors) or None


def attentions(part: Part) -> str:
    """Each kernel beside the first of its case."""
    rows = []
    for row in part.rows:
        first = next(other for other in part.rows if other.case == row.case)
        errors = [_number(row, name, ".1e") for name in ("error", "error, equal values")]
        memory = _scaled(row, "peak bytes beyond", GIGA, ".2f")
        gain = _ratio(first.numbers.get("ms"), row.numbers.get("ms"))
        rows.append([row.case, row.arm, row.mode, _ms(row), gain, _number(row, "TFLOP/s", ".0f"), *errors, memory, row.note])
    columns = ["attention", "kernel", "", "ms", "x the first", "TFLOP/s", "error", "error, equal values", "more, GB", ""]
    return table(columns, rows)


def layers(part: Part, kernels: Part | None) -> str:
    """A table for each case: arms down, eager and compiled across."""
    known = {str(case): case for case in (*LAYERS, *QUICK_LAYERS)}
    return "\n\n".join(_layer(part, case, known.get(case), kernels) for case in part.cases)


def _layer(part: Part, case: str, shape: Layers | None, kernels: Part | None) -> str:
    floor = None
    if shape is not None:
        weight = shape.width_in * shape.width_out * shape.readers
        moved = 2 * shape.rows * (shape.width_in + shape.width_out * shape.readers) + 0.5625 * weight
        floor = floor_ms(kernels, moved, shape.operations, "")
    title = f"**{case}**, {shape.shape if shape else ''}" + (f"; floor {floor:.2f} ms" if floor else "")
    rows = []
    for arm in _arms(part, case):
        eager, compiled = (part.find(case, arm, mode) for mode in (EAGER, COMPILED))
        best = _fastest(eager, compiled)
        rows.append(
            [
                arm,
                *_times(part, case, eager, compiled),
                _number(eager, "launching, ms", ".3f"),
                _number(best, "TFLOP/s", ".0f"),
                _ratio(best.numbers["ms"] if best else None, floor),
                _number(eager or compiled, "error", ".4f"),
                _scaled(best, "weight bytes", 1e6, ".1f"),
                _scaled(best, "peak bytes beyond", 1e6, ".0f"),
                _notes(eager, compiled),
            ]
        )
    times = ["ms", "x BF16", "compiled, ms", "x BF16", "launching, ms"]
    columns = ["arm", *times, "TFLOP/s", "x floor", "error", "weights, MB", "more, MB", ""]
    return f"{title}\n\n{table(columns, rows)}"


def blocks(part: Part) -> str:
    """A table for each kind of block."""
    return "\n\n".join(_block(part, case) for case in part.cases)


def _block(part: Part, case: str) -> str:
    rows = []
    for arm in _arms(part, case):
        eager, compiled = (part.find(case, arm, mode) for mode in (EAGER, COMPILED))
        best = _fastest(eager, compiled)
        share = (
            best
            and best.numbers.get("covered bytes")
            and best.numbers["covered bytes"] / best.numbers["covered bytes in 16 bit"]
        )
        rows.append(
            [
                arm,
                *_times(part, case, eager, compiled),
                _number(best, "error", ".4f"),
                f"{share:.3f}" if share else "",
                _scaled(best, "peak bytes beyond", GIGA, ".2f"),
                _notes(eager, compiled),
            ]
        )
    columns = ["arm", "ms", "x BF16", "compiled, ms", "x BF16", "error", "covered weights, of 16 bit", "more, GB", ""]
    return f"**{case}**\n\n{table(columns, rows)}"


def pieces(part: Part) -> str:
    """A table for each block and arm: what takes NAMED of the time or more, the kinds of kernels before single ones."""
    return "\n\n".join(_pieces(row) for row in part.rows)


def _pieces(row: Row) -> str:
    title = f"**{row.case}, {row.arm}**"
    total = sum(row.numbers.values())
    if not total:
        return f"{title}: {row.note}"
    kinds: dict[str, float] = {}
    for name, spent in row.numbers.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0) + spent
    by_time = sorted(kinds.items(), key=lambda item: -item[1])
    rows = [[kind, "all", f"{spent:.3f}", f"{spent / total:.1%}"] for kind, spent in by_time]
    for name, spent in sorted(row.numbers.items(), key=lambda item: -item[1]):
        if kind_of(name) == OTHER and spent >= NAMED * total:
            rows.append([OTHER, f"`{name[:NAME_LENGTH]}`", f"{spent:.3f}", f"{spent / total:.1%}"])
    return f"{title}: {total:.2f} ms\n\n{table(['kind', 'kernel', 'ms', 'of all'], rows)}"


def models(part: Part) -> str:
    """Step time and memory."""
    rows = []
    for row in part.rows:
        plain = part.find(row.case, BASELINE, row.mode) or part.find(row.case, BASELINE, COMPILED)
        base = plain.numbers if plain else {}
        rows.append(
            [
                row.case,
                row.arm,
                row.mode,
                _scaled(row, "ms", 1e3, ".3f"),
                _ratio(base.get("ms"), row.numbers.get("ms")),
                _scaled(row, "weight bytes", GIGA, ".2f"),
                _scaled(row, "peak bytes", GIGA, ".2f"),
                _ratio(row.numbers.get("peak bytes"), base.get("peak bytes")),
                _number(row, "quantizing, s", ".1f"),
                row.note,
            ]
        )
    columns = ["model", "arm", "", "s a step", "x BF16", "weights, GB", "peak, GB", "of BF16", "quantizing, s", ""]
    return table(columns, rows)


def enabling(part: Part) -> str:
    """Seconds and bytes."""
    rows = []
    for row in part.rows:
        said = [f"{name} {value / GIGA:.3f} GB" for name, value in row.numbers.items() if "bytes" in name]
        if "weights" in row.numbers:
            numbers = row.numbers
            measured = f"{numbers['blocks measured']:.0f} of {numbers['blocks']:.0f} blocks measured"
            said.append(f"{numbers['weights'] / 1e9:.2f}e9 weights; {measured}")
        rows.append([row.case, row.arm, _number(row, "s", ".2f"), ", ".join(said).replace(" bytes", ""), row.note])
    return table(["", "arm", "s", "", ""], rows)


def origin(part: Part) -> str:
    """Machine, versions and date of a part's numbers."""
    return f"{machine_line(part.where)} Our layers ran on {part.where.get('path')}."


def table(columns: list[str], rows: Iterable[list[Any]]) -> str:
    """A markdown table; columns that are empty in every row are left out."""
    lines = [[("" if cell is None else str(cell)) for cell in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    chosen = [[columns[i] for i in kept], ["---"] * len(kept), *([line[i] for i in kept] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in chosen)


def _arms(part: Part, case: str) -> list[str]:
    """In the order in which one run measures them, whatever runs the rows came from."""
    order = {name: number for number, name in enumerate([ATTENTION, *(arm.name for arm in ARMS), AGAIN])}
    arms = dict.fromkeys(row.arm for row in part.rows if row.case == case)
    return sorted(arms, key=lambda name: order.get(name, len(order)))


def _times(part: Part, case: str, *rows: Row | None) -> list[str]:
    """Milliseconds and the gain over the baseline in the same mode, for each row."""
    cells = []
    for row in rows:
        base = part.number(case, BASELINE, "ms", row.mode) if row else None
        cells += [_ms(row), _ratio(base, row.numbers.get("ms")) if row and row.arm not in (AGAIN, ATTENTION) else ""]
    return cells


def _fastest(*rows: Row | None) -> Row | None:
    measured = [row for row in rows if row is not None and row.numbers]
    return min(measured, key=lambda row: row.numbers["ms"]) if measured else None


def _notes(*rows: Row | None) -> str:
    notes = [f"{row.mode}: {row.note}" for row in rows if row is not None and row.note]
    bare = {row.note for row in rows if row is not None}
    return bare.pop() if len(bare) == 1 else "; ".join(notes)


def _ms(row: Row | None) -> str:
    return _number(row, "ms", ".3f")


def _number(row: Row | None, name: str, form: str) -> str:
    return f"{row.numbers[name]:{form}}" if row is not None and name in row.numbers else ""


def _scaled(row: Row | None, name: str, unit: float, form: str) -> str:
    return f"{row.numbers[name] / unit:{form}}" if row is not None and name in row.numbers else ""


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}" if a and b else ""


def _grid(grid: tuple[int, int, int]) -> str:
    return " x ".join(map(str, grid))
