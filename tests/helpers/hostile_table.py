"""The table of docs/security.md: `python tests/helpers/hostile_table.py [--write docs/security.md]`.

Every hostile file is read as a user would read it, and what becomes of it is counted: read right; refused in one sentence of
at most 300 characters; a raw error; read wrong without a word; slower than five seconds.
"""

import argparse
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from hostile_files import Case, Sound, cases

from sedialect.sedialect_core.environment import environment
from sedialect.sedialect_core.errors import SeDialectError

COLUMNS = ("tried", "right", "refused", "raw", "silent", "slow")
HEADS = ("tried", "right", "refused in a sentence", "raw", "silent", "slower than 5 s")
SLOW = 5.0  # seconds
LONGEST = 300  # characters of a sentence, the folder's name not counted
MARKS = ("<!-- hostile files: begin -->", "<!-- hostile files: end -->")


def outcome(case: Case, folder: Path) -> tuple[str, float, str]:
    """What becomes of a case, seconds, and what was said."""
    case.make(folder)
    started = time.monotonic()
    try:
        found = case.read(folder)
        kind, said = ("right" if case.same(found) else "silent"), ""
    except SeDialectError as error:
        said = str(error)
        kind = "refused" if len(said.replace(str(folder), "")) <= LONGEST and "\n" not in said else "raw"
    except Exception as error:  # what is counted  # noqa: BLE001
        kind, said = ("refused" if _is_diffusers_sentence(error) else "raw"), f"{type(error).__name__}: {error}"
    return kind, time.monotonic() - started, said


def _is_diffusers_sentence(error: Exception) -> bool:
    """diffusers opens files before we do, and refuses what is no safetensors file by itself, in a sentence of its own."""
    return isinstance(error, OSError) and "Unable to load weights from checkpoint file" in str(error)


def count(every: Iterable[Case], scratch: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """Outcomes by class, and those that must not be, in words."""
    table: dict[str, Counter[str]] = {}
    bad = []
    for case in every:
        folder = scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        kind, seconds, said = outcome(case, folder)
        counts = table.setdefault(case.group, Counter())
        counts.update(["tried", kind, *(["slow"] if seconds > SLOW else [])])
        if kind in ("raw", "silent") or seconds > SLOW:
            bad.append(f"{kind}, {seconds:.1f} s: {case.group}: {case.name}: {said[:300]}")
    return table, bad


def markdown(table: dict[str, Counter[str]]) -> str:
    """The table, and where it was made."""
    rows = [f"| class of input | {' | '.join(HEADS)} |", f"|---|{'---:|' * len(HEADS)}"]
    total: Counter[str] = sum(table.values(), Counter())
    for name, counts in [*table.items(), ("**all**", total)]:
        rows.append(f"| {name} | {' | '.join(f'{counts[column]:,}' for column in COLUMNS)} |")
    where = environment()
    versions = ", ".join(f"{name} {number}" for name, number in where.get("versions", {}).items() if number)
    date = datetime.now(UTC).date().isoformat()
    return "\n".join([*rows, "", f"`python tests/helpers/hostile_table.py`; {versions}; {date}."])


def main() -> int:
    """Print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description="count what becomes of hostile files")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the marks of this page")
    parser.add_argument("--flips", type=int, default=240, help="bits turned over in tensors, and as many in the header")
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        sound = Sound(Path(scratch) / "sound")
        table, bad = count(cases(sound, parsed.flips), Path(scratch))
    text = markdown(table)
    print(text)
    print(*bad, sep="\n")
    if parsed.write is not None:
        page = parsed.write.read_text(encoding="utf-8")
        before, rest = page.split(MARKS[0])
        parsed.write.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
