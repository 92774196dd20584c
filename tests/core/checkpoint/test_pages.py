"""The documents: links that lead somewhere, and the facts of docs/format.md that the code can be asked for."""

import json
import re
from pathlib import Path

import pytest
import torch

from sedialect import Formatbook
from sedialect.sedialect_core.checkpoint.record import Record

ROOT = Path(__file__).parents[3]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "web/docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """The page without its fenced code, in which brackets and hashes mean something else."""
    return re.sub(r"^\s*```.*?^\s*```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue  # another server's
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def cells(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading of docs/format.md."""
    text = (ROOT / "docs/format.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_format_page_lists_every_key_of_the_record():
    record = Record("Model", 16, Formatbook.builtin(), {"layer": "w4a4"}, {"layer": 64}, {"layer": "weights"})
    record = record.sealed({"layer.weight": torch.zeros(2, 8, dtype=torch.uint8)})
    written = json.loads(record.to_tensor().numpy().tobytes())
    assert {key.strip("`") for key, _ in cells("Checkpoint")} == written.keys()
