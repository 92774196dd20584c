"""The shape of the repository: which room may import which, and what the documents say is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top down; a room imports its own kind and what stands below it. Rooms in one line do not know each other.
LEVELS = [
    ["__main__.py", "nodes"],
    ["sedialect_core/cli.py"],
    ["sedialect_core/commands"],
    ["web"],
    ["sedialect_core/doctor.py", "sedialect_core/bench/quality"],
    ["sedialect_core/comparison.py"],
    ["sedialect_core/conversion.py"],
    [
        "sedialect_core/preview.py",
        "sedialect_core/bench",
        "sedialect_core/source.py",
        "sedialect_core/card.py",
    ],
    ["sedialect_core/integrations"],
    ["sedialect_core/calibration"],
    ["sedialect_core/demo"],
    # What is asked of a pipeline, and checked in it, before anything is quantized.
    ["sedialect_core/sampling.py", "sedialect_core/integrations/checks.py", "sedialect_core/integrations/denoisers.py"],
    [
        "sedialect_core/video.py",
        "sedialect_core/report.py",
        "sedialect_core/dialect_use.py",
        "sedialect_core/dialect_trace.py",
        "sedialect_core/dialect_chart.py",
        "sedialect_core/saliency_chart.py",
    ],
    ["sedialect_core/checkpoint.py"],
    ["sedialect_core/quantize.py"],
    ["sedialect_core/calibrated.py"],
    ["sedialect_core/plan.py", "sedialect_core/equalization.py"],
    ["sedialect_core/semantics"],
    ["sedialect_core/inspection", "sedialect_core/linear.py"],
    ["sedialect_core/shared_input.py"],
    ["sedialect_core/codec"],
    ["sedialect_core/formatbook", "sedialect_core/drawing.py"],
    # hub.py only carries files: it knows of ours no more than the errors, and books and models both stand on it.
    ["sedialect_core/config.py", "sedialect_core/atomic.py", "sedialect_core/hub.py", "sedialect_core/wan_keys.py"],
    ["sedialect_core/errors.py"],
    ["kernels"],
]
FRONT_DOORS = {"__init__.py", "sedialect_core/__init__.py"}
OUTSIDE = {
    "kernels": {"torch", "triton"},
    "sedialect_core/inspection": {"torch"},
    "sedialect_core/formatbook": {"torch", "safetensors"},
    "sedialect_core/hub.py": {"huggingface_hub"},
    "sedialect_core/codec": {"torch"},
    "sedialect_core/plan.py": {"torch"},
}


def sources() -> list[Path]:
    rooms = ("kernels", "sedialect_core", "nodes", "web")
    return sorted([*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place(name: str) -> tuple[int, str]:
    """Level and room of a file: the longest entry that is it, or holds it."""
    matches = [
        (len(room), number, room)
        for number, rooms in enumerate(LEVELS)
        for room in rooms
        if name == room or name.startswith(room + "/") or name == room.removesuffix(".py")
    ]
    assert matches, f"{name} has no level: give its room one in LEVELS"
    return max(matches)[1:]


def imported(path: Path) -> list[tuple[int, str]]:
    """(number of leading dots, module) of every import in a file, at any depth of its code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module or alias.name) for alias in node.names]
    return found


def target(path: Path, dots: int, module: str) -> str:
    folder = path.parent
    for _ in range(dots - 1):
        folder = folder.parent
    name = relative(folder / module.replace(".", "/"))
    return name if (ROOT / name).is_dir() else f"{name}.py" if (ROOT / f"{name}.py").is_file() else relative(folder)


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_imports_run_one_way(path):
    name = relative(path)
    if name in FRONT_DOORS:
        return
    for dots, module in imported(path):
        if dots:
            (here, room), (there, other_room) = place(name), place(target(path, dots, module))
            assert there > here or other_room == room, f"{name} imports {module}, which stands above or beside it"
        else:
            assert module.split(".")[0] not in {"sedialect", "kernels", "nodes"}, f"{name}: use relative imports"


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_rooms_import_only_the_libraries_they_may(path):
    name = relative(path)
    top = {module.split(".")[0] for dots, module in imported(path) if not dots}
    import sys

    foreign = top - set(sys.stdlib_module_names)
    for room, allowed in OUTSIDE.items():
        if name == room or name.startswith(room + "/"):
            assert foreign <= allowed, f"{name} imports {foreign - allowed}"
    if not name.startswith("nodes"):
        assert not foreign & {"comfy", "comfy_api", "folder_paths"}, f"{name}: only nodes/ knows ComfyUI"


def test_the_checker_sees_an_import_that_runs_the_wrong_way():
    path = ROOT / "kernels" / "reference.py"
    assert place(target(path, 2, "sedialect_core.plan"))[0] < place("kernels/reference.py")[0]
    assert target(ROOT / "sedialect_core" / "codec" / "encoded.py", 3, "kernels") == "kernels"


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_files_are_small_and_functions_documented(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "every file says why it is there"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_the_file_map_of_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- file map -->\n```\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no file map"
    listed = set()
    folder = ""
    for line in block.group(1).splitlines():
        name = line.split("  ")[0] if not line.startswith("  ") else line.strip().split("  ")[0]
        if line.startswith("  "):
            listed.add(folder + name.strip())
        else:
            folder = name.strip() if name.strip().endswith("/") else ""
            listed.add(name.strip())
    there = {relative(path) for path in sources() if path.name != "__init__.py" or path.parent == ROOT}
    there = {name for name in there if name.count("/") <= 1}
    there |= {f"{relative(path)}/" for path in (ROOT / "sedialect_core").iterdir() if (path / "__init__.py").is_file()}
    there |= {f"{name}/" for name in ("kernels", "sedialect_core", "tests", "docs")}
    assert {name for name in listed if not (ROOT / name).exists()} == set(), "the map names what is not there"
    assert there - listed == set(), "the map lacks these"


def test_functions_of_kernels_take_at_most_eight_values():
    """Triton's kernels take pointers and constants one by one; what calls them takes values that belong together."""
    long = []
    for path in sorted((ROOT / "kernels").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "triton.jit" not in map(ast.unparse, node.decorator_list):
                count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                long += [f"{path.name}: {node.name} takes {count}"] if count > 8 else []
    assert not long
