"""What the documents promise a reader: names that can be imported, pages that exist, a README that is short."""

import ast
import importlib.util
import re
import textwrap
from pathlib import Path

import pytest

import sedialect
from sedialect.cli.main import parser
from sedialect.sedialect_core.config import PRESETS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "web/docs").rglob("*.md")]
)
# What runs as `python -m` is no interface of the library.
PROGRAMS = re.compile(r"python -m sedialect\.[\w.]+")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def snippets(path: Path) -> list[str]:
    """The Python code blocks of a page, indentation removed."""
    blocks = re.findall(r"^[ \t]*```python\n(.*?)^[ \t]*```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def test_some_page_has_python_to_check():
    assert sum(len(snippets(path)) for path in PAGES) >= 5


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_documents_import_public_names_alone(path):
    """A snippet that reaches into sedialect.sedialect_core breaks when a file moves."""
    for snippet in snippets(path):
        tree = ast.parse(snippet.replace("…", "..."))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sedialect":
                assert node.module == "sedialect", f"import from sedialect, not from {node.module}"
                for alias in node.names:
                    assert alias.name in sedialect.__all__, f"sedialect.{alias.name} is not public"
            elif isinstance(node, ast.Import):
                assert all(not alias.name.startswith("sedialect.") for alias in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sedialect":
                assert node.attr in sedialect.__all__, f"sedialect.{node.attr} is not public"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_names_in_prose_are_public_or_modules_that_run(path):
    """`sedialect.name` in running text is importable, and `python -m sedialect.module` exists."""
    text = path.read_text(encoding="utf-8")
    for program in PROGRAMS.findall(text):
        assert importlib.util.find_spec(program.removeprefix("python -m ")), program
    for name in re.findall(r"`sedialect\.(\w+)", PROGRAMS.sub("", text)):
        if name != "sedialect_core":  # files are named in explanations; only imports are held to be public
            assert name in sedialect.__all__, f"sedialect.{name} is not public"


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    for target in targets:
        name, _, _ = target.partition("#")
        if name and not re.match(r"[a-z]+:", name):
            assert (path.parent / name).exists(), f"{target} is not there"


def test_the_readme_is_short_and_has_a_place_for_the_memory_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert text.index("<!-- memory table -->") < text.index("<!-- /memory table -->")


def test_the_index_lists_every_page():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", text))


def test_the_readme_names_every_preset_and_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for preset in PRESETS:
        assert f"| `{preset}` |" in text
    for name in commands():
        assert f"sedialect {name}" in text, f"the list of commands lacks {name}"


def commands() -> list[str]:
    """What the command line offers."""
    (choices,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    return list(choices)
