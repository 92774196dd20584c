"""What our nodes show and fold away in ComfyUI's own frontend, in both node systems. COMFYUI_DIR names the ComfyUI."""

import os
from pathlib import Path

import pytest
from comfyui_page import fit_view, open_nodes, open_workflow, run
from comfyui_server import needs_comfyui
from comfyui_workflows import Workflow

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

pytestmark = needs_comfyui
PICTURES = os.environ.get("SEDIALECT_PICTURES")
NODE = "(act) => act(window.app.graph.nodes.find((node) => node.type === '{}'))"


def of_node(page, kind: str, act: str):
    """What a function of the only node of a kind gives."""
    return page.evaluate(f"() => ({NODE.format(kind)})({act})")


def visible(page, kind: str) -> list[str]:
    """Names of the inputs that a user sees on a node."""
    names = of_node(page, kind, "(n) => n.widgets.map((w) => [w.name, n.isWidgetVisible(w)])")
    ours = ("sedialect_more", "sedialect_text")
    if page.system == "canvas":
        return [name for name, seen in names if seen and name not in ours]
    number = of_node(page, kind, "(n) => n.id")
    shown = page.locator(f"[data-node-id='{number}'] .lg-node-widget:visible").count()
    return [name for name, _ in names if name not in ours][:shown]


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


FRONT = ["preset", "precision", "block_size"]


def test_three_settings_stand_in_front_and_the_rest_is_folded(page, graph):
    graph.quantize(graph.model())
    open_nodes(page, graph.nodes)
    assert visible(page, "SeDialectQuantize") == FRONT
    low = of_node(page, "SeDialectQuantize", "(n) => n.size[1]")
    turn(page)
    shown = visible(page, "SeDialectQuantize")
    assert shown[:3] == FRONT and len(shown) == 18
    assert {"salient_ratio", "attention", "products", "skip", "quantized_source"} <= set(shown)
    assert of_node(page, "SeDialectQuantize", "(n) => n.size[1]") > low + 200
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"comfyui-settings-{page.system}.png"))
    turn(page)
    assert visible(page, "SeDialectQuantize") == FRONT


OLD = {
    "id": 2,
    "type": "SeDialectQuantize",
    "pos": [400, 0],
    "size": [340, 520],
    "inputs": [{"name": "model", "type": "MODEL", "link": None}],
    "outputs": [{"name": "MODEL", "type": "MODEL", "links": []}],
    "properties": {},
}


@pytest.mark.parametrize("rotation", ["preset", "64"])
def test_a_workflow_of_the_old_layout_loads_with_its_values(page, rotation):
    """All seventeen values stood on the canvas then. What decides something is in view."""
    values = ["compact", "w4a8", "preset", 0.5 if rotation == "64" else -1, "preset", 1 if rotation == "64" else -1, -1]
    values += ["preset", "preset", -1, rotation, "preset", "preset", "preset", "preset", "preset", ""]
    open_workflow(page, {"nodes": [{**OLD, "widgets_values": values}], "links": [], "version": 0.4, "last_node_id": 2})
    kept = of_node(page, "SeDialectQuantize", "(n) => n.serialize().widgets_values")
    assert kept[: len(values)] == values
    shown = visible(page, "SeDialectQuantize")
    assert (shown == FRONT) if rotation == "preset" else ("rotation" in shown and "salient_ratio" in shown)
    if rotation == "preset":
        assert of_node(page, "SeDialectQuantize", "(n) => n.size[1]") < 300, "no room is left for what is folded"


def test_errors_stand_in_the_toast_in_our_words_and_once(page, graph):
    graph.add("SeDialectReport", model=graph.quantize(graph.quantize(graph.model())))
    open_nodes(page, graph.nodes)
    name, _ = run(page)
    assert name == "execution_error"
    said = "this WanModel is quantized by SeDialect already; connect the 16-bit MODEL, or leave this node out"
    assert toasts(page) == [said]
    for wrong, says in (
        ({"filename_prefix": "../x"}, "leads out of the output folder"),
        ({"skip": "("}, "no regular expression"),
    ):
        other = Workflow(graph.base)
        patterns = {"skip": wrong["skip"]} if "skip" in wrong else {}
        model = other.quantize(other.model(), **patterns)
        other.add("SeDialectSave", model=model, filename_prefix=wrong.get("filename_prefix", "x"), names="ComfyUI")
        page.evaluate("() => window.app.extensionManager.toast.removeAll()")
        open_nodes(page, other.nodes)
        page.get_by_role("button", name="Run", exact=True).first.click()
        page.wait_for_timeout(2500)
        (found,) = toasts(page)
        assert says in found
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"comfyui-toast-{page.system}.png"))


def toasts(page) -> list[str]:
    """What ComfyUI's toasts say, of errors."""
    shown = page.locator(".p-toast-message-error .p-toast-detail")
    return [text.strip() for text in shown.all_inner_texts()]


def turn(page) -> None:
    """Fold or unfold the settings of the only Quantize, as a user does."""
    fit_view(page)
    if page.system == "canvas":
        place = of_node(
            page,
            "SeDialectQuantize",
            """(n) => {
              const button = n.widgets.find((w) => w.name === 'sedialect_more');
              const { scale, offset } = window.app.canvas.ds;
              const box = window.app.canvas.canvas.getBoundingClientRect();
              const x = n.pos[0] + n.size[0] / 2, y = n.pos[1] + button.last_y + 10;
              return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale];
            }""",
        )
        page.mouse.click(*place)
    else:
        page.get_by_test_id("advanced-inputs-button").last.click()
    page.wait_for_timeout(800)
