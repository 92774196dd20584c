"""The shape of the repository: which room may import which, and what the documents say is there."""

import ast
import re
from pathlib import Path

import pytest
from layout_report import imported, report

ROOT = Path(__file__).parents[2]
# From the top down; a room imports its own kind and what stands below it. Rooms in one line do not know each other.
# At most twelve, each with its rule in a sentence.
LEVELS = [
    ("What users start; nothing imports it.", ["__main__.py", "nodes"]),
    ("Commands; they may start the app and the benches.", ["cli"]),
    ("The app; it shows what the benches measured.", ["web"]),
    (
        "What measures, the comparison of two videos, and workers that make many; no room of the library imports them.",
        ["bench", "sedialect_core/comparison.py", "sedialect_core/generation"],
    ),
    (
        "The surroundings of a model: pipelines, servers, what they take, pictures of choices, the training of a model.",
        [
            "training",
            "sedialect_core/integrations",
            "sedialect_core/engines",
            "sedialect_core/charts",
            "sedialect_core/footprint",
        ],
    ),
    (
        "What works on a whole quantized model: statistics, files, tokens.",
        ["sedialect_core/calibration", "sedialect_core/checkpoint", "sedialect_core/semantics"],
    ),
    ("Carries out a plan; and the bundled model.", ["sedialect_core/quantize", "sedialect_core/demo"]),
    (
        "What is decided, the layer that it makes, and videos.",
        ["sedialect_core/plan", "sedialect_core/linear.py", "sedialect_core/video"],
    ),
    (
        "What a model is, what a tensor becomes.",
        ["sedialect_core/inspection", "sedialect_core/codec", "sedialect_core/shared_input.py"],
    ),
    ("Values: settings and formats.", ["sedialect_core/config.py", "sedialect_core/formatbook"]),
    (
        "Files, the Hub, signs of life, and what can be set, which know of ours the errors alone.",
        ["sedialect_core/settings", "sedialect_core/storage", "sedialect_core/environment.py", "sedialect_core/progress.py"],
    ),
    ("Arrays and tables without layers, and what can go wrong.", ["kernels", "sedialect_core/errors.py"]),
]
FRONT_DOORS = {"__init__.py", "sedialect_core/__init__.py"}
OUTSIDE = {
    "kernels": {"torch", "triton"},
    "sedialect_core/inspection": {"torch"},
    "sedialect_core/formatbook": {"torch", "safetensors"},
    "sedialect_core/storage/hub.py": {"huggingface_hub"},
    "sedialect_core/codec": {"torch"},
    "sedialect_core/plan": {"torch"},
}


def sources() -> list[Path]:
    rooms = ("kernels", "sedialect_core", "nodes", "web", "bench", "cli", "training")
    return sorted([*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place(name: str) -> tuple[int, str]:
    """Level and room of a file: the longest entry that is it, or holds it."""
    matches = [
        (len(room), number, room)
        for number, (_, rooms) in enumerate(LEVELS)
        for room in rooms
        if name == room or name.startswith(room + "/") or name == room.removesuffix(".py")
    ]
    assert matches, f"{name} has no level: give its room one in LEVELS"
    return max(matches)[1:]


def target(path: Path, dots: int, module: str) -> str:
    folder = path.parent
    for _ in range(dots - 1):
        folder = folder.parent
    for part in (module, module.rpartition(".")[0]):  # what is taken may be a module itself
        name = relative(folder / part.replace(".", "/"))
        if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file():
            return name if (ROOT / name).is_dir() else f"{name}.py"
    return relative(folder)


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
    if not name.startswith("sedialect_core/engines"):
        assert not foreign & {"vllm", "vllm_omni"}, f"{name}: only engines/ knows vLLM"


def test_the_checker_sees_an_import_that_runs_the_wrong_way():
    path = ROOT / "kernels" / "reference.py"
    assert place(target(path, 2, "sedialect_core.plan.rules"))[0] < place("kernels/reference.py")[0]
    assert target(ROOT / "sedialect_core" / "codec" / "encoded.py", 3, "kernels") == "kernels"


def test_no_file_is_longer_than_400_lines():
    """Tests and their helpers included: what grows longer is cut by what it holds."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert ROOT / "tests" / "helpers" / "tiny_models.py" in tests
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in (*sources(), *tests)}
    assert {name: count for name, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_files_and_functions_are_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "every file says why it is there"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_the_file_map_is_the_tree():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- file map -->\n```\n(.*?)```", text, re.DOTALL)
    assert block, "docs/architecture.md has no file map"
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
    there |= {f"{relative(path.parent)}/" for path in sources() if path.name == "__init__.py" and path.parent != ROOT}
    there |= {f"{name}/" for name in ("kernels", "sedialect_core", "tests", "docs")}
    assert {name for name in listed if not (ROOT / name).exists()} == set(), "the map names what is not there"
    assert there - listed == set(), "the map lacks these"


def test_nothing_refers_to_a_document_that_is_not_here():
    """Numbered sections of a design page outside of the repository were once cited; docs/ says all that can be cited."""
    files = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    outside = re.compile(r"\bDESIGN\b( \d|\.md)")
    assert [relative(path) for path in files if outside.search(path.read_text(encoding="utf-8"))] == []
    cited = re.compile(r"\bdocs/[\w/.-]+\.(?:md|png)\b")
    for path in sources():
        for name in cited.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file() or (ROOT / "web" / name).is_file(), (
                f"{relative(path)} cites {name}, which is not there"
            )


def test_functions_of_kernels_take_at_most_eight_values():
    """Triton's kernels take pointers and constants one by one; what calls them takes values that belong together."""
    long = []
    for path in sorted((ROOT / "kernels").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "triton.jit" not in map(ast.unparse, node.decorator_list):
                count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                long += [f"{path.name}: {node.name} takes {count}"] if count > 8 else []
    assert not long


def test_the_house_has_few_levels_no_circles_and_no_upward_imports():
    """Printed with -s: the numbers of the house."""
    numbers = report(ROOT, [rooms for _, rooms in LEVELS])
    print("", *(f"{label}: {value}" for label, value in numbers.items()), sep="\n")
    assert len(LEVELS) <= 12 and all(rule.endswith(".") for rule, _ in LEVELS)
    assert numbers["loose files in sedialect_core"] <= 8
    assert numbers["circles of rooms"] == [] and numbers["circles of files"] == []
    assert numbers["upward imports"] == []


@pytest.mark.parametrize("path", [*(ROOT / "sedialect_core").rglob("*.py"), *(ROOT / "kernels").glob("*.py")], ids=relative)
def test_the_library_imports_no_front_end_no_bench_and_no_training(path):
    targets = {target(path, dots, module).split("/")[0] for dots, module in imported(path) if dots}
    assert not targets & {"cli", "nodes", "web", "bench", "training"}


@pytest.mark.parametrize("path", [path for path in sources() if relative(path).startswith("nodes/")], ids=relative)
def test_nodes_do_not_import_the_room_of_diffusers(path):
    targets = {target(path, dots, module) for dots, module in imported(path) if dots}
    assert not any(name.startswith("sedialect_core/integrations") for name in targets)
