"""What was measured, as rows in a file that is written again after each; and as a table."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...sedialect_core.environment import machine_line
from ...sedialect_core.errors import InputError
from ...sedialect_core.storage.atomic import write_text
from .cases import BASELINE, HUNYUAN, Case, ways_of
from .forecast import forecast, saved_in_8_bit
from .wire import CODING, EIGHT, SIXTEEN

FILE, PAGE = "scale.json", "scale.md"
ONE = "1"  # how a sequence is split that is not


@dataclass(frozen=True)
class Row:
    """One arm, split one way or not at all.

    numbers  "s" a step (median; of the slowest process), "lower, s" and "upper, s", "first call, s", "distance": of the
             output from that of one process, relative; "peak bytes"
    """

    arm: str
    mode: str
    way: str
    numbers: dict[str, float]
    note: str = ""


@dataclass
class Measured:
    """The rows of one run; and seconds of one attention's all-to-alls, by the names of `wire`."""

    case: Case
    processes: int
    where: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    wire: dict[str, float] = field(default_factory=dict)

    def add(self, row: Row, folder: Path) -> None:
        """Append a row, show it, and write the file, so that what ends the process loses nothing."""
        self.rows.append(row)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.numbers.items())
        print(f"{row.arm}, {row.mode}, {row.way}: {shown}{' ' * bool(shown)}{row.note}", flush=True)
        self.write(folder)

    def write(self, folder: Path) -> None:
        """Write the file."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")

    def take(self, other: "Measured", folder: Path) -> None:
        """Add what another run of the same case has and this one has not."""
        mine, its = ((run.case, run.where.get("device"), run.where.get("versions")) for run in (self, other))
        if mine != its:
            raise InputError(
                f"{folder} holds {self.name} like another folder, but of another number of layers, machine or versions; "
                "show them one by one"
            )
        have = {(row.arm, row.mode, row.way) for row in self.rows if row.numbers}
        lacking = [row for row in other.rows if (row.arm, row.mode, row.way) not in have]
        again = {(row.arm, row.mode, row.way) for row in lacking}
        self.rows = [row for row in self.rows if (row.arm, row.mode, row.way) not in again] + lacking
        self.wire = self.wire or other.wire

    def number(self, arm: str, mode: str, way: str, name: str = "s") -> float | None:
        """One number, if it was measured."""
        found = (row.numbers.get(name) for row in self.rows if (row.arm, row.mode, row.way) == (arm, mode, way))
        return next(found, None)

    @property
    def name(self) -> str:
        """What tells it from other runs, for marks in a document."""
        return name_of(self.case, self.processes)

    @property
    def on_cpu(self) -> bool:
        """Whether it tells of equality alone: seconds of processes that share a CPU tell nothing of GPUs."""
        return not self.where.get("gpu")

    def fastest(self, way: str) -> float | None:
        """Seconds of the fastest step, split this way."""
        return min((row.numbers["s"] for row in self.rows if row.way == way and "s" in row.numbers), default=None)


def name_of(case: Case, processes: int) -> str:
    """What tells a run from others, for marks in a document."""
    return f"{processes} x {case.tokens}" + (", HunyuanVideo" if case.model == HUNYUAN else "")


def read(folders: Iterable[Path]) -> list[Measured]:
    """The runs that lie in these folders; of two of the same name one, whose rows are those of both.

    Raises:
        InputError: a folder holds none, its file is not one of ours, or two of one name are of different cases or machines.
    """
    runs: dict[str, Measured] = {}
    for folder in folders:
        path = folder / FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(**row) for row in data["rows"]]
            case, processes = Case(**data["case"]), int(data["processes"])
            run = Measured(case, processes, data["where"], rows, data.get("wire", {}))
        except OSError:
            raise InputError(f"{folder} holds no {FILE}; `sedialect bench scale --output {folder}` writes it") from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is no result of `sedialect bench scale`: {error}") from None
        runs.setdefault(run.name, run).take(run, folder)
    return list(runs.values())


def render(run: Measured) -> str:
    """The table of a run, with its machine."""
    head = ["arm", "mode", "split", "s a step", "times one", "foretold", "times BF16", "distance", "BF16's", "GB"]
    rows = [_cells(run, row) for row in run.rows if row.way != ONE or not run.on_cpu]
    if run.on_cpu:
        head = ["arm", "mode", "split", "distance from one process"]
        rows = [["not quantized" if arm == BASELINE else arm, *ways, off or s] for arm, *ways, s, _, _, _, off, _, _ in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
    return f"{run.case.shape}, {run.processes} processes.\n\n{table}\n\n{machine_line(run.where)}"


def _cells(run: Measured, row: Row) -> list[str]:
    one = run.number(row.arm, row.mode, ONE)
    baseline = run.number(BASELINE, row.mode, row.way)
    mine = row.numbers.get("s")
    split = row.way != ONE
    ulysses = {way.name: way.ulysses for way in ways_of(run.processes, run.case.model)}.get(row.way)
    told = one / forecast(run.case, run.processes, one, ulysses) if one and ulysses else None
    return [
        row.arm,
        row.mode,
        row.way,
        _cell(mine, ".3f") or row.note,
        _cell(one / mine if one and mine and split else None, ".2f"),
        _cell(told, ".2f"),
        _cell(baseline / mine if baseline and mine else None, ".2f"),
        _cell(row.numbers.get("distance"), ".1e"),
        _cell(run.number(BASELINE, row.mode, row.way, "distance"), ".1e"),
        _cell(row.numbers["peak bytes"] / 1e9 if "peak bytes" in row.numbers else None, ".1f"),
    ]


def render_wire(runs: Iterable[Measured]) -> str:
    """What 8 bits on the wire would save, of the runs that have measured it; empty where none has, or on CPUs alone."""
    head = ["GPUs", "model", "four all-to-alls, ms", "in FP8, ms", "of that coding, ms", "part of a step", "a step gains"]
    lines = [[*head, "on paper at most"], ["---"] * (len(head) + 1)]
    machines = []
    for run in runs:
        step, wire, layers = run.fastest(f"Ulysses {run.processes}"), run.wire, run.case.layers
        one = run.fastest(ONE)
        if run.on_cpu or not wire or step is None or one is None:
            continue
        cells = [f"{1e3 * wire[name]:.3f}" for name in (SIXTEEN, EIGHT, CODING)]
        parts = [layers * wire[SIXTEEN] / step, layers * (wire[SIXTEEN] - wire[EIGHT]) / step]
        bound = saved_in_8_bit(run.case, run.processes, one)
        lines.append([str(run.processes), run.case.shape, *cells, *(f"{part:.1%}" for part in (*parts, bound))])
        machines.append(machine_line(run.where))
    if not machines:
        return ""
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return table + "\n\n" + "\n".join(dict.fromkeys(machines))


def _cell(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)
