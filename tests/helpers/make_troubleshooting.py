"""Writes the messages of docs/troubleshooting.md from the code: every refusal with its remedy, grouped by task.

    python tests/helpers/make_troubleshooting.py --write    # without --write: print them

Read are `raise` statements and warnings with a text, and the functions and tables that keep texts as data (`TEXTS`).
"""

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sedialect.sedialect_core.storage.marked import marked

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
ROOMS = ("kernels", "sedialect_core", "nodes", "web", "bench", "cli", "training")
# Functions and tables whose strings become messages somewhere else. A raise that forwards a variable is answered here.
TEXTS = {"REFUSED", "CHECKS", "explain_memory", "fp8_shape_refusal", "_refusals", "_explain", "_explain_status"}
TEXTS |= {"_quantized", "_compiled", "_hooked", "_commonest_reason", "_none_of_ours", "prefix_problem", "folder_problem"}
ABOUT_THEIR_ARGUMENT = {"first_line", "getattr", "int", "len", "list", "map", "megabytes", "next", "repr", "str", "sum"}
ABOUT_THEIR_ARGUMENT |= {"tuple", "type"}
LEAST_WORDS = 4  # of its own, in a message: less is a fragment of one
# A message belongs to the first task whose words it has, or that one of its file's folders is named for.
TASKS = [
    ("ComfyUI", {"nodes"}, None),
    ("The app in the browser", {"web"}, None),
    ("Benchmarks", {"bench"}, None),
    ("Installing", set(), r"install it|install what|pip install|no encoder"),
    ("LoRA", set(), r"\bLoRA\b"),
    (
        "GPU and memory",
        set(),
        r"GPU|compute capability|the input lies on|device .* cannot be used|several times slower|bfloat16 units|they need"
        r"|the package triton|no multiple of",
    ),
    ("Offloading, compiling, casting", set(), r"not in memory|offload|compile|layerwise|on disk, where"),
    (
        "The Hugging Face Hub",
        set(),
        r"\bHub\b|\brepository\b|the cache\b|offline mode|its digest|this token|owner/name",
    ),
    ("Calibration", {"calibration"}, r"\bcalibrat|--calibrate"),
    ("Formatbooks", {"formatbook"}, r"formatbook|dialect <"),
    ("Tokens and steps", {"semantics"}, r"semantic|salient|tokens|token (grid|order)|refresh_|protected_"),
    (
        "Settings",
        set(),
        r"no setting|no preset|these settings|settings of|choose one of|regular expression|either a config or",
    ),
    ("Command line", set(), r"(^|[^>\w])--[a-z]|the prompt is empty|self-test|write one a line|two by two"),
    (
        "Files and folders",
        {"checkpoint"},
        r"checkpoint|\bfiles?\b|\bfolder|\bkeys?\b|damaged|cannot write|cannot read|format version|download it again"
        r"|holds unfinished|no JSON|GB are free",
    ),
    ("Loading and quantizing a model", set(), r""),
]


@dataclass
class Module:
    """A file: its tree, and the strings and tables of strings that it names."""

    path: Path
    tree: ast.Module
    constants: dict[str, ast.expr] = field(default_factory=dict)


def modules() -> list[Module]:
    """Every file of the package."""
    paths = sorted(path for room in ROOMS if (ROOT / room).is_dir() for path in (ROOT / room).rglob("*.py"))
    found = []
    for path in paths:
        module = Module(path, ast.parse(path.read_text(encoding="utf-8")))
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                module.constants[node.targets[0].id] = node.value
        found.append(module)
    return found


def constants(found: list[Module]) -> dict[str, str]:
    """Module-level strings and numbers by name, as long as no two files give one name two values."""
    values: dict[str, set[str]] = {}
    for module in found:
        for name, value in module.constants.items():
            if isinstance(value, ast.Constant) and isinstance(value.value, str | int) and not isinstance(value.value, bool):
                values.setdefault(name, set()).add(str(value.value))
    return {name: texts.pop() for name, texts in values.items() if len(texts) == 1}


def text_of(node: ast.AST, known: dict[str, str]) -> str | None:
    """A message as users read it, with <name> where a value stands; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(part, known) for part in node.values)
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left, known), text_of(node.right, known)
        return None if left is None else left + (right or "")
    return None


def _part(part: ast.expr, known: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    if isinstance(part.value, ast.Name) and part.value.id in known:
        value = known[part.value.id]
        return repr(value) if part.conversion == ord("r") else value
    return f"<{_name(part.value)}>"


def _name(node: ast.AST) -> str:
    """What stands for a value: the last word of the expression that gives it."""
    if isinstance(node, ast.Call):
        return _name(_inside(node))
    if isinstance(node, ast.Attribute):
        return "model" if node.attr == "__name__" else _words(node.attr)
    if isinstance(node, ast.Name):
        return _words(node.id)
    for child in ("value", "elt", "left", "values", "operand", "body", "elts"):
        inner = getattr(node, child, None)
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, ast.AST):
            return _name(inner)
    return "value"


def _inside(call: ast.Call) -> ast.AST:
    """What a call is about: what it is given, what it is a method of, or its own name."""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method == "join" or (isinstance(call.func, ast.Name) and call.func.id in ABOUT_THEIR_ARGUMENT):
        return call.args[-1] if isinstance(call.func, ast.Name) and call.func.id == "map" else call.args[0]
    return call.func.value if isinstance(call.func, ast.Attribute) and method in {"get", "replace", "pop"} else call.func


def _words(name: str) -> str:
    return name.strip("_").replace("_", " ").lower()


def messages() -> dict[str, Path]:
    """Every message, and a file that it comes from."""
    found = modules()
    known = constants(found)
    texts: dict[str, Path] = {}
    for module in found:
        for node in _sources(module.tree):
            text = " ".join((text_of(node, known) or "").split())
            own = re.sub(r"<[^>]*>", " ", text)
            if len(re.findall(r"[A-Za-z]{2,}", own)) >= LEAST_WORDS:
                texts.setdefault(text, module.path)
    return texts


def _sources(tree: ast.Module) -> Iterator[ast.AST]:
    """Expressions that become messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            if ast.unparse(node.exc.func) != "AttributeError":
                yield node.exc.args[0]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.BoolOp):
            yield from (arg for value in node.exc.values if isinstance(value, ast.Call) for arg in value.args[:1])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warn" and node.args:
            yield node.args[0]
        elif isinstance(node, ast.FunctionDef) and node.name in TEXTS:
            yield from _strings(node.body[1:] if ast.get_docstring(node) else node.body)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in TEXTS:
            yield from _strings([node.value])


def _strings(nodes: list[ast.stmt] | list[ast.expr]) -> Iterator[ast.AST]:
    """The outermost strings below these nodes, and those that two strings of a tuple make: a reason and its remedy."""
    for node in nodes:
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield node
        elif (
            isinstance(node, ast.Tuple)
            and len(node.elts) == 2
            and all(isinstance(e, ast.Constant | ast.JoinedStr) for e in node.elts)
        ):
            yield ast.JoinedStr([*_values(node.elts[0]), ast.Constant("; "), *_values(node.elts[1])])
        else:
            yield from _strings(list(ast.iter_child_nodes(node)))  # type: ignore[arg-type]


def _values(node: ast.expr) -> list[ast.expr]:
    return node.values if isinstance(node, ast.JoinedStr) else [node]


def task_of(text: str, path: Path) -> str:
    """The heading that a message stands under."""
    folders = set(path.relative_to(ROOT).parts[:-1])
    return next(title for title, own, words in TASKS if own & folders or (words is not None and re.search(words, text)))


def markdown() -> str:
    """All messages, as the page has them."""
    grouped: dict[str, list[str]] = {title: [] for title, _, _ in TASKS}
    for text, path in messages().items():
        grouped[task_of(text, path)].append(text)
    order = sorted((title for title in grouped if grouped[title]), key=_place)
    sections = (
        "\n".join([f"### {title}", "", *(f"* {_code(text)}" for text in sorted(grouped[title], key=_key))])
        for title in order
    )
    return "\n\n".join(sections)


def _place(title: str) -> tuple[bool, int]:
    """Installing first, front ends last, in the order of `TASKS` otherwise."""
    titles = [name for name, _, _ in TASKS]
    return title in titles[:3], titles.index(title)


def _key(text: str) -> tuple[str, str]:
    return re.sub(r"<[^>]*>|[^a-z ]", "", text.lower()).strip(), text


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def page_with(text: str) -> str:
    """The page with these messages between its marks."""
    return marked(PAGE.read_text(encoding="utf-8"), {"messages": text}, PAGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    if parser.parse_args().write:
        PAGE.write_text(page_with(markdown()), encoding="utf-8")
    else:
        print(markdown())
