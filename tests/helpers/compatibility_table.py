"""A pytest plugin that turns the outcomes of the tests marked `feature` into the table of docs/compatibility.md.

`make compatibility` loads it. A mark says which row and column of the table a test answers for:

    @pytest.mark.feature("Group offload", "after", "disk included")

`"first"`: sedialect was enabled first; `"after"`: after the feature; `refused=True`: the test shows a refusal.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COLUMNS = {"first": "sedialect first", "after": "feature first"}
LIBRARIES = ("diffusers", "peft", "accelerate", "transformers", "torch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-compatibility", type=Path, required=True, help="the document that holds the table's marks")


class Table:
    """Rows in the order of the tests: for each feature, verdicts by column, and notes."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[str, str], list[str]] = {}
        self.notes: dict[str, dict[str, None]] = {}

    def add(self, outcome: str, feature: str, column: str, note: str = "", refused: bool = False) -> None:
        assert column in COLUMNS, f"{feature}: no column {column!r}"
        verdict = {"passed": "refused" if refused else "works", "skipped": "not run"}.get(outcome, "FAILS")
        self.verdicts.setdefault((feature, column), []).append(verdict)
        self.notes.setdefault(feature, {}).update({note: None} if note else {})

    def lines(self) -> Iterator[str]:
        yield f"| feature | {' | '.join(COLUMNS.values())} | notes |"
        yield "|---|---|---|---|"
        for feature, notes in self.notes.items():
            cells = (self.cell(feature, column) for column in COLUMNS)
            yield f"| {feature} | {' | '.join(cells)} | {' '.join(notes)} |"

    def cell(self, feature: str, column: str) -> str:
        """The worst of the verdicts; a refusal beside what works is told in the notes."""
        found = self.verdicts.get((feature, column), [])
        return next((verdict for verdict in ("FAILS", "not run", "works", "refused") if verdict in found), "")


TABLE = Table()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for mark in item.iter_markers("feature"):
            TABLE.add(report.outcome, *mark.args, **mark.kwargs)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not TABLE.notes:
        raise pytest.UsageError("no test marked `feature` ran; the table is left as it is")
    from sedialect.sedialect_core.environment import environment, machine_line, package_versions
    from sedialect.sedialect_core.storage.marked import write_marked

    where = machine_line({**environment(), "versions": package_versions(LIBRARIES)})
    path: Path = session.config.getoption("--write-compatibility")
    table = "\n".join(TABLE.lines())
    write_marked(path, {"compatibility": f"{table}\n\n{where}"})
