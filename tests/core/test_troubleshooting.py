"""docs/troubleshooting.md says what the code says."""

import ast
import re

import pytest
import torch
from make_troubleshooting import PAGE, TASKS, TEXTS, constants, markdown, messages, modules, page_with, text_of

from sedialect import Formatbook, SeDialectConfig, SeDialectError, encode
from sedialect.sedialect_core import errors
from sedialect.sedialect_core.video.sampling import load_pipeline

KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SeDialectError)}
FORWARDED = {"error", "problem"}  # a text that another raise, or one of `TEXTS`, has written


def patterns() -> list[re.Pattern[str]]:
    """The messages of the page as patterns, a placeholder standing for anything."""
    bullets = re.findall(r"^\* (`+) ?(.*?) ?\1$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.compile(".*".join(map(re.escape, re.split(r"<[^<>]*>", text)))) for _, text in bullets]


def test_the_page_is_up_to_date():
    current = page_with(markdown())
    assert current == PAGE.read_text(encoding="utf-8"), "run: python tests/helpers/make_troubleshooting.py --write"


def test_no_refusal_slips_through():
    """An error whose text is made elsewhere is in the list only if that place is read, too."""
    found = modules()
    known = constants(found)
    for module in found:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in KINDS:
                argument = node.exc.args[0]
                if text_of(argument, known) is None:
                    source = ast.unparse(argument.func if isinstance(argument, ast.Call) else argument)
                    assert source in TEXTS | FORWARDED, f"{module.path}:{node.lineno}: add {source} to TEXTS"


def test_every_source_of_texts_exists():
    names = {
        node.name if isinstance(node, ast.FunctionDef) else node.targets[0].id
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name))
    }
    assert names >= TEXTS, "these are gone; take them out of TEXTS"


def test_every_task_has_messages():
    text = markdown()
    for title, _, _ in TASKS:
        assert f"### {title}\n" in text


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: SeDialectConfig(block_size=7),
        lambda: SeDialectConfig.preset("fast"),
        lambda: encode(torch.randn(2, 24), block_size=16),
        lambda: encode(torch.full((2, 32), torch.nan)),
        lambda: Formatbook.builtin("mine"),
        lambda: load_pipeline("/nowhere at all", torch.float32, torch.device("cpu")),
    ],
)
def test_an_error_that_is_raised_is_found_on_the_page(mistake):
    with pytest.raises(SeDialectError) as caught:
        mistake()
    assert any(pattern.fullmatch(str(caught.value)) for pattern in patterns()), str(caught.value)


def test_messages_name_their_remedy():
    """Not all have one in words, but most must: a list of bare complaints is no help."""
    texts = messages()
    assert len(texts) > 200
    assert sum(bool(re.search(r"[;:,(] ?\S", text)) for text in texts) > 0.9 * len(texts)
