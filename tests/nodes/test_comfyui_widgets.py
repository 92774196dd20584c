"""What our nodes show and fold away in ComfyUI's own frontend, in both node systems. COMFYUI_DIR names the ComfyUI."""

import os
from pathlib import Path

import pytest
from comfyui_page import open_nodes, run
from comfyui_server import needs_comfyui

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

pytestmark = needs_comfyui
PICTURES = os.environ.get("SEDIALECT_PICTURES")
NODE = "(act) => act(window.app.graph.nodes.find((node) => node.type === '{}'))"


def of_node(page, kind: str, act: str):
    """What a function of the only node of a kind gives."""
    return page.evaluate(f"() => ({NODE.format(kind)})({act})")


def visible(page, kind: str) -> list[str]:
    """Names of the inputs that a user sees on a node."""
    if page.system == "canvas":
        return of_node(page, kind, "(n) => n.widgets.filter((w) => n.isWidgetVisible(w)).map((w) => w.name)")
    number = of_node(page, kind, "(n) => n.id")
    shown = page.locator(f"[data-node-id='{number}'] .lg-node-widget:visible")
    return [text.partition("\n")[0].strip() for text in shown.all_inner_texts()]


def test_report_and_saved_path_stand_on_their_nodes(page, graph):
    book = graph.add("SeDialectFormatbook", book="dialectfp4-16")
    model = graph.quantize(graph.model(), formatbook=book)
    graph.add("SeDialectReport", model=model)
    graph.add("SeDialectSave", model=model, filename_prefix="diffusion_models/shown", names="ComfyUI")
    open_nodes(page, graph.nodes)
    hints = page.locator("textarea.sedialect-text")
    assert {"report appears here", "dialects appear here"} == {
        hint.partition("and the ")[2].rstrip(".") for hint in (box.get_attribute("placeholder") for box in hints.all())
    }
    name, detail = run(page)
    assert name == "execution_success", detail
    boxes = page.locator("textarea.sedialect-text:visible")
    texts = [box.input_value() for box in boxes.all()]
    (report,) = [text for text in texts if "80 in w4a4" in text]
    assert "runs on" in report and "ffn" in report
    assert any(text.startswith("saved ") and "shown_" in text for text in texts)
    assert any(text.startswith("dialectfp4-16") for text in texts), texts
    for box, text in zip(boxes.all(), texts, strict=True):
        place = box.bounding_box()
        assert place["height"] > 20 and place["width"] > 80
        if text.startswith("saved "):
            assert box.evaluate("(box) => box.scrollHeight <= box.clientHeight + 1"), "the path is cut"
    kept = of_node(page, "SeDialectReport", "(n) => n.serialize().widgets_values ?? []")
    assert kept == [], "a workflow keeps no reports"
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert all("sedialect_text" not in node["inputs"] and "sedialect_more" not in node["inputs"] for node in prompt.values())
    lines = of_node(page, "SeDialectQuantize", "(n) => n.widgets.filter((w) => w.name.startsWith('$$')).length")
    assert lines == 0, "what a node was doing stays on it"
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"comfyui-report-{page.system}.png"))


def test_three_settings_stand_in_front_and_the_rest_is_folded(page, graph):
    plain, chosen = graph.quantize(graph.model()), graph.quantize(graph.model(), rotation="64")
    graph.add("SeDialectReport", model=plain)
    graph.add("SeDialectReport", model=chosen)
    open_nodes(page, graph.nodes)
    page.evaluate("() => { const n = window.app.graph; n.remove(n.getNodeById(4)); n.remove(n.getNodeById(6)); }")
    front = ["preset", "precision", "block size"]
    assert visible(page, "SeDialectQuantize") == front
