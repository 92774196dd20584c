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
PROPERTY = "feature"
LAST = "PEFT: "  # many rows that few look for
LIBRARIES = ("diffusers", "peft", "accelerate", "transformers", "torch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-compatibility", type=Path, required=True, help="the document that holds the table's marks")


class Table:
    """What the tests' reports say, from one process or from parallel workers, as rows in the order of the
    tests' files, but for the last."""

    def __init__(self) -> None:
        self.reports: list[tuple[tuple[str, ...], int, str, dict[str, Any]]] = []

    def add(self, report: pytest.TestReport) -> None:
        path, line, _ = report.location
        for name, mark in report.user_properties:
            if name == PROPERTY:
                self.reports.append((Path(path).parts, line or 0, report.outcome, row(*mark["args"], **mark["kwargs"])))

    def lines(self) -> Iterator[str]:
        verdicts: dict[tuple[str, str], list[str]] = {}
        notes: dict[str, dict[str, None]] = {}
        for *_, outcome, mark in sorted(self.reports, key=lambda report: report[:2]):
            verdict = {"passed": "refused" if mark["refused"] else "works", "skipped": "not run"}.get(outcome, "FAILS")
            verdicts.setdefault((mark["feature"], mark["column"]), []).append(verdict)
            notes.setdefault(mark["feature"], {}).update({mark["note"]: None} if mark["note"] else {})
        yield f"| feature | {' | '.join(COLUMNS.values())} | notes |"
        yield "|---|---|---|---|"
        for feature, words in sorted(notes.items(), key=lambda item: item[0].startswith(LAST)):
            cells = (worst(verdicts.get((feature, column), [])) for column in COLUMNS)
            yield f"| {feature} | {' | '.join(cells)} | {' '.join(words)} |"


def row(feature: str, column: str, note: str = "", refused: bool = False) -> dict[str, Any]:
    """What one mark says, by name."""
    assert column in COLUMNS, f"{feature}: no column {column!r}"
    return {"feature": feature, "column": column, "note": note, "refused": refused}


def worst(verdicts: list[str]) -> str:
    """The worst of the verdicts; a refusal beside what works is told in the notes."""
    return next((verdict for verdict in ("FAILS", "not run", "works", "refused") if verdict in verdicts), "")


TABLE = Table()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test's marks travel in its report, which a parallel worker sends to the process that writes the table."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        marks = ({"args": mark.args, "kwargs": mark.kwargs} for mark in item.iter_markers("feature"))
        report.user_properties.extend((PROPERTY, mark) for mark in marks)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    TABLE.add(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    if not TABLE.reports:
        raise pytest.UsageError("no test marked `feature` ran; the table is left as it is")
    from sedialect.sedialect_core.environment import environment, machine_line, package_versions
    from sedialect.sedialect_core.storage.marked import write_marked

    where = machine_line({**environment(), "versions": package_versions(LIBRARIES)})
    path: Path = session.config.getoption("--write-compatibility")
    table = "\n".join(TABLE.lines())
    write_marked(path, {"compatibility": f"{table}\n\n{where}"})
