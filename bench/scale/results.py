"""What was measured, as rows in a file that is written again after each; and as a table."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...sedialect_core.environment import machine_line
from ...sedialect_core.errors import InputError
from ...sedialect_core.storage.atomic import write_text
from .cases import BASELINE, Case
from .forecast import forecast

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
    """The rows of one run."""

    case: Case
    processes: int
    where: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row, folder: Path) -> None:
        """Append a row, show it, and write the file, so that what ends the process loses nothing."""
        self.rows.append(row)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.numbers.items())
        print(f"{row.arm}, {row.mode}, {row.way}: {shown}{' ' * bool(shown)}{row.note}", flush=True)
        write_text(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")

    def number(self, arm: str, mode: str, way: str, name: str = "s") -> float | None:
        """One number, if it was measured."""
        found = (row.numbers.get(name) for row in self.rows if (row.arm, row.mode, row.way) == (arm, mode, way))
        return next(found, None)

    @property
    def name(self) -> str:
        """What tells it from other runs, for marks in a document."""
        return f"{self.processes} x {self.case.tokens}"


def read(folders: Iterable[Path]) -> list[Measured]:
    """The runs that lie in these folders.

    Raises:
        InputError: a folder holds none, or its file is not one of ours.
    """
    runs = []
    for folder in folders:
        path = folder / FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(**row) for row in data["rows"]]
            runs.append(Measured(Case(**data["case"]), int(data["processes"]), data["where"], rows))
        except OSError:
            raise InputError(f"{folder} holds no {FILE}; `sedialect bench scale --output {folder}` writes it") from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is no result of `sedialect bench scale`: {error}") from None
    return runs


def render(run: Measured) -> str:
    """The table of a run, with its machine."""
    head = ["arm", "mode", "split", "s a step", "times one", "foretold", "times BF16", "distance", "BF16's", "GB"]
    lines = [head, ["---"] * len(head)]
    for row in run.rows:
        one = run.number(row.arm, row.mode, ONE)
        baseline = run.number(BASELINE, row.mode, row.way)
        mine = row.numbers.get("s")
        split = row.way != ONE
        told = one / forecast(run.case, run.processes, one) if one and split else None
        lines.append(
            [
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
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{run.case.shape}, {run.processes} processes.\n\n{table}\n\n{machine_line(run.where)}"


def _cell(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)
