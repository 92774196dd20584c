"""What was measured, as rows; a part of the bench is a file of them, written again after every row."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...sedialect_core.errors import InputError
from ...sedialect_core.storage.atomic import write_text

PARTS = ("kernels", "attention", "layers", "blocks", "pieces", "models", "enabling")
RUN = {"date"}  # of what is told of a run: may differ in what is put into one table
NOT_MEASURED = "not measured: "


@dataclass(frozen=True)
class Row:
    """One arm in one case. `numbers` by name, with their unit in it; `note` says why there are none, or what is odd."""

    case: str
    arm: str
    mode: str = "eager"
    numbers: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What was measured, whatever came out."""
        return self.case, self.arm, self.mode


@dataclass
class Part:
    """Rows of one part of the bench, and the machine they were measured on."""

    name: str
    where: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    folder: Path | None = None

    def add(self, row: Row) -> Row:
        """Append a row, show it, and write the file, so that what ends the process loses nothing."""
        self.rows.append(row)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.numbers.items())
        print(f"{self.name}: {row.case}, {row.arm}, {row.mode}: {shown}{' ' * bool(shown)}{row.note}", flush=True)
        if self.folder is not None:
            self.save(self.folder)
        return row

    def save(self, folder: Path) -> Path:
        """Write `folder/NAME.json`."""
        data = {"part": self.name, "where": self.where, "rows": [asdict(row) for row in self.rows]}
        return write_text(folder / f"{self.name}.json", json.dumps(data, indent=1) + "\n")

    def find(self, case: str, arm: str, mode: str = "eager") -> Row | None:
        """The row of this key, if it was measured."""
        return next((row for row in self.rows if row.key == (case, arm, mode)), None)

    def number(self, case: str, arm: str, name: str, mode: str = "eager") -> float | None:
        """One of its numbers."""
        row = self.find(case, arm, mode)
        return None if row is None else row.numbers.get(name)

    @property
    def cases(self) -> list[str]:
        """Cases in the order of measuring."""
        return list(dict.fromkeys(row.case for row in self.rows))


def read_parts(folders: Iterable[Path]) -> dict[str, Part]:
    """The parts that lie in these folders. Where a row is there twice, a measured one wins, then the later one.

    Raises:
        InputError: a folder holds none, a file is not one of ours, or rows of one part are of different GPUs.
    """
    parts: dict[str, Part] = {}
    for folder in folders:
        files = [folder / f"{name}.json" for name in PARTS if (folder / f"{name}.json").is_file()]
        if not files:
            raise InputError(f"{folder} holds no results; `sedialect bench speed --output {folder}` writes them")
        for path in files:
            new = read_part(path)
            parts[new.name] = _merged(parts[new.name], new) if new.name in parts else new
    return parts


def read_part(path: Path) -> Part:
    """One file of results.

    Raises:
        InputError: it is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Part(data["part"], data["where"], [Row(**row) for row in data["rows"]])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no result of `sedialect bench speed`: {error}") from None


def read_alike(folders: Iterable[Path], name: str) -> Part:
    """One part from several runs of the same machine and versions, which cover different rows.

    Raises:
        InputError: a file is none of results, or machine, versions or settings of the runs differ.
    """
    first, *others = (read_part(folder / f"{name}.json") for folder in folders)
    for other in others:
        for key in sorted((first.where.keys() | other.where.keys()) - RUN):
            if first.where.get(key) != other.where.get(key):
                raise InputError(f"{name}: the runs differ in {key}: {first.where.get(key)} and {other.where.get(key)}")
        first = _merged(first, other)
    return first


def _merged(old: Part, new: Part) -> Part:
    machines = [part.where.get("device") for part in (old, new)]
    if machines[0] != machines[1]:
        raise InputError(f"{new.name}: measured on {machines[0]} and on {machines[1]}; keep machines apart")
    rows = {row.key: row for row in old.rows}
    for row in new.rows:
        if row.numbers or not rows.get(row.key, row).numbers:
            rows[row.key] = row
    return Part(new.name, new.where, list(rows.values()))
