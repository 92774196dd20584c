"""The numbers of the house: loose files, levels, circles, upward imports, the longest file, long signatures in kernels/.

python tests/helpers/layout_report.py [CHECKOUT]
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
SKIPPED = {"tests", "docs", "build", "dist"}
PARAMETERS = 8


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below the root -> file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not (parts[0] in SKIPPED or any(part.startswith(".") for part in parts)):
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> list[tuple[int, str]]:
    """(number of leading dots, module and what is taken of it) of every import in a file, at any depth of its code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names]
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, at any depth of its code."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            module = ".".join(part for part in base if part)
            for alias in node.names:
                part = f"{module}.{alias.name}" if module else alias.name
                found.add(part if part in known else module)
    return found - {name, ""}


def components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes that reach each other, with more than one node each."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for node in graph.get(waiting.pop(), ()):
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
        return seen

    reached = {node: reach(node) for node in graph}
    groups = {
        frozenset({node, *(other for other in seen if node in reached.get(other, ()))}) for node, seen in reached.items()
    }
    return [set(group) for group in groups if len(group) > 1]


def room(name: str) -> str:
    """A folder of the library, or a loose file of it, or a top folder."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "sedialect_core" else parts[0]


def long_signatures(root: Path) -> tuple[list[str], list[str]]:
    """Functions in kernels/ with more than 8 parameters: those that are plain, and Triton's kernels."""
    plain, triton = [], []
    for path in sorted((root / "kernels").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
            jitted = any("jit" in ast.unparse(mark) for mark in node.decorator_list)
            if count > PARAMETERS:
                (triton if jitted else plain).append(f"{path.name}:{node.name} {count}")
    return plain, triton


def report(root: Path, levels: list[list[str]] | None = None) -> dict[str, object]:
    """The numbers; upward imports only where the levels are given."""
    known = modules(root)
    files = {name: imports(name, path, known) & known.keys() for name, path in known.items() if name}
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, targets in files.items():
        if name != "sedialect_core":
            rooms[room(name)] |= {room(target) for target in targets if target != "sedialect_core"} - {room(name)}
    height: dict[str, int] = {}

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in height:
            below = [depth(other, (*above, name)) for other in rooms.get(name, ()) if other not in (*above, name)]
            height[name] = 1 + max(below, default=0)
        return height[name]

    plain, triton = long_signatures(root)
    lengths = {
        path.relative_to(root).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in known.values()
    }
    longest = max(lengths, key=lambda name: lengths[name])
    numbers: dict[str, object] = {
        "loose files in sedialect_core": len(list((root / "sedialect_core").glob("*.py"))),
        "rooms (folders and loose files)": len(rooms),
        "floors of the rooms' imports": max(map(depth, list(rooms))),
        "circles of rooms": [sorted(group) for group in components(rooms)],
        "circles of files": [sorted(group) for group in components(files)],
        "longest file": f"{longest} {lengths[longest]}",
        "long signatures in kernels/": plain,
        "of Triton's kernels": triton,
    }
    if levels is not None:
        numbers["levels"] = len(levels)
        numbers["upward imports"] = upward(files, known, levels, root)
    return numbers


def upward(files: dict[str, set[str]], known: dict[str, Path], levels: list[list[str]], root: Path) -> list[str]:
    """Imports of what stands above or beside."""

    def place(name: str) -> tuple[int, str]:
        path = known[name].relative_to(root).as_posix()
        fits = [
            (len(entry), number, entry)
            for number, entries in enumerate(levels)
            for entry in entries
            if path == entry or path.startswith(entry + "/")
        ]
        return max(fits)[1:] if fits else (-1, "")

    found = []
    for name, targets in files.items():
        here, mine = place(name)
        for target in targets:
            there, other = place(target)
            if there >= 0 and here >= 0 and there <= here and mine != other:
                found.append(f"{name} -> {target}")
    return sorted(found)


if __name__ == "__main__":
    checkout = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    for label, value in report(checkout).items():
        print(f"{label + ':':<36}{value if not isinstance(value, list) else f'{len(value)} {value or str()}'}")
