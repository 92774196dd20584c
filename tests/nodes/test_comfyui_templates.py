"""The example workflows in a real ComfyUI: run, opened in its frontend, and its template browser. COMFYUI_DIR names it."""

import json
import urllib.parse
from pathlib import Path

import pytest
from comfyui_examples import FILES, tiny
from comfyui_page import boxes, open_workflow
from comfyui_server import needs_comfyui
from comfyui_workflows import Workflow
from workflow_notes import FILES as MODELS

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

pytestmark = needs_comfyui
READABLE = 0.57  # zoom below which the canvas draws no text: its MinFontSizeForLOD of 8 px for letters of 14


@pytest.fixture(scope="module")
def saved(server, base) -> str:
    """A quantized file, as SeDialect Load names it."""
    graph = Workflow(base)
    graph.add(
        "SeDialectSave", model=graph.quantize(graph.model()), filename_prefix="diffusion_models/saved", names="ComfyUI"
    )
    (path,) = server.run(graph.nodes).saved
    return path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_workflow_runs(server, saved, path):
    nodes = tiny(path, server.get("/object_info"), saved)
    outcome = server.run(nodes)
    shown = {nodes[name]["class_type"] for name in outcome.outputs}
    assert shown & {"SaveVideo", "SeDialectCompare"}


@pytest.fixture
def models(base):
    """Empty files with the names that the workflows choose, so that the frontend misses none."""
    for name, (folder, _) in MODELS.items():
        place = base / "models" / folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


SAID = """\
400 of 406 layers in w4a8, 28600.0 -> 8400.0 MB
auto took the preset quality: this GPU has FP8 units, on which 8-bit activations take the time of 4-bit ones
the encoded weights of the run before are used again: only LoRAs or what layers do at run time has changed
speed: plain torch encodes and decodes, several times slower than Triton kernels: the package triton is not installed"""


def test_no_two_nodes_overlap(page, models):
    """By what is really drawn, in both node systems, before and after a run; folded and small enough to be read."""
    for path in FILES:
        open_workflow(page, json.loads(path.read_text()))
        scale = page.evaluate("() => window.app.canvas.ds.scale")
        assert scale >= READABLE, f"{path.stem}: at {scale:.0%} its nodes are blank boxes"
        assert_apart(page, path)
        page.evaluate(
            """(text) => {
              for (const node of window.app.graph.nodes)
                if (/SeDialect(Quantize|Load|Save)$/.test(node.type)) node.onExecuted({ text: [text] });
            }""",
            SAID,
        )
        page.wait_for_timeout(1000)
        assert_apart(page, path)


def assert_apart(page, path: Path) -> None:
    """No node lies over another."""
    found = list(boxes(page).items())
    assert len(found) == len(json.loads(path.read_text())["nodes"])
    for number, (name, (left, top, right, bottom)) in enumerate(found):
        for other, (x, y, across, down) in found[number + 1 :]:
            apart = right <= x or across <= left or bottom <= y or down <= top
            assert apart, f"{path.stem}: {name} lies over {other}"


def test_titles_and_pictures_are_served(server):
    assert sorted(server.get("/workflow_templates")["sedialect"]) == [path.stem for path in FILES]
    for path in FILES:
        for ending in ("json", "jpg"):
            address = f"/api/workflow_templates/sedialect/{urllib.parse.quote(path.stem)}.{ending}"
            assert server.fetch(address) == path.with_suffix(f".{ending}").read_bytes()


def test_the_template_browser_shows_them(page):
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_placeholder("Search").last.wait_for()
    page.locator("[role=dialog]").get_by_text("sedialect", exact=True).first.click()  # without it the list may stay empty
    title = "Wan 2.2 14B image to video in 4 bit"
    card = page.get_by_text(title).first
    card.wait_for()
    pictures = "[role=dialog] img[src^='blob:']"  # each is fetched when its card comes into view
    page.wait_for_function(
        "(chosen) => { const all = [...document.querySelectorAll(chosen)];"
        " return all.length >= 4 && all.every((picture) => picture.naturalWidth === 640); }",
        arg=pictures,
    )
    card.click()
    page.wait_for_function("() => window.app.graph.nodes.some((node) => node.type === 'WanImageToVideo')")
