"""The nodes in ComfyUI's own frontend, in a headless Chromium, in both of its node systems.

COMFYUI_DIR names the ComfyUI. With SEDIALECT_PICTURES=docs SEDIALECT_STEPS=8 the pictures of docs/comfyui.md are taken anew.
"""

import json
import os
from pathlib import Path

import comfyui_models
import pytest
from comfyui_graphs import to_api, without
from comfyui_page import run
from comfyui_server import COMFYUI, FLAGS, Server, needs_comfyui, python_of_comfyui

from sedialect.sedialect_core import demo

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

pytestmark = needs_comfyui
PICTURES = os.environ.get("SEDIALECT_PICTURES")
STEPS = int(os.environ.get("SEDIALECT_STEPS", "2"))
EXAMPLE = Path(__file__).parents[2] / "example_workflows" / "Wan 2.1 16 bit and 4 bit side by side.json"
PATIENCE = 600_000  # ms


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    (base / "models" / "diffusion_models").mkdir(parents=True)
    comfyui_models.bundled(base / "models" / "diffusion_models")
    comfyui_models.embeddings(base / "prompts.safetensors", [prompt(), ""])
    with Server(Path(COMFYUI), python_of_comfyui(), base, *FLAGS) as running:
        yield running


def prompt() -> str:
    return json.loads((demo.MODEL.parent / "defaults.json").read_text())["prompt"]


def workflow(server: Server) -> dict:
    """The example that compares, with the bundled model, its text encoder and its VAE."""
    nodes = without(to_api(json.loads(EXAMPLE.read_text()), server.get("/object_info")), "CLIPLoader", "VAELoader")
    texts = iter((prompt(), ""))
    size = {"width": 128, "height": 128, "length": 33} if PICTURES else {"width": 64, "height": 64, "length": 9}
    said = {"file": "prompts.safetensors", "tokens": 1, "dim": 1, "pooled": 0, "mask": False}
    changes = {
        "SeDialectQuantize": {"preset": "default"},
        "UNETLoader": {"unet_name": "bundled_wan.safetensors"},
        "EmptyHunyuanLatentVideo": size,
        "BasicScheduler": {"steps": STEPS},
        "ModelSamplingSD3": {"shift": 3.0},
        "CFGGuider": {"cfg": 2.0},
        "RandomNoise": {"noise_seed": 1004},
    }
    for node in nodes.values():
        if node["class_type"] == "CLIPTextEncode":
            node["class_type"], node["inputs"] = "SeDialectTestConditioning", {**said, "text": next(texts)}
        elif node["class_type"] == "VAEDecode":
            node["class_type"], node["inputs"] = "SeDialectTestDecode", {"samples": node["inputs"]["samples"]}
        node["inputs"] |= changes.get(node["class_type"], {})
    return nodes


def test_a_node_is_dragged_from_the_library(page):
    page.evaluate("() => window.app.graph.clear()")
    page.get_by_role("button", name="Node Library").first.click()
    side = page.locator(".sidebar-content-container")
    side.locator("input").first.fill("SeDialect")
    page.wait_for_timeout(1500)
    items = side.locator("[role=treeitem][draggable=true]")
    found = {text.strip() for text in items.all_inner_texts()}
    assert {"SeDialect Quantize", "SeDialect Compare", "SeDialect Load"} <= found
    items.filter(has_text="SeDialect Quantize").first.drag_to(
        page.locator("#graph-canvas"), target_position={"x": 900, "y": 420}
    )
    page.wait_for_function("() => window.app.graph.nodes.length === 1")
    node = page.evaluate("() => { const n = window.app.graph.nodes[0]; return [n.type, n.widgets.map(w => w.name)]; }")
    assert node[0] == "SeDialectQuantize" and "preset" in node[1] and "precision" in node[1]


def test_what_people_type_finds_our_nodes(page):
    page.get_by_role("button", name="Node Library").first.click()
    side = page.locator(".sidebar-content-container")
    items = side.locator("[role=treeitem][draggable=true]")
    for word, node in {
        "nvfp4": "Quantize",
        "gguf": "Quantize",
        "int4": "Quantize",
        "fp8": "Quantize",
        "load 4-bit": "Load",
    }.items():
        side.locator("input").first.fill(word)
        items.filter(has_text=f"SeDialect {node}").first.wait_for(timeout=20_000)


def test_the_comparison_runs_and_its_player_plays(page, server):
    nodes = workflow(server)
    page.evaluate("async (nodes) => { await window.app.loadApiJson(nodes, 'compare'); }", nodes)
    page.wait_for_timeout(2000)
    page.evaluate("() => window.app.graph.arrange(60)")
    name, detail = run(page)
    assert name == "execution_success", detail
    look_at_the_comparison(page)
    page.locator(".sedialect-compare").get_by_role("slider").first.wait_for()
    tell = "(act) => act(window.app.graph.nodes.find((node) => node.type === 'SeDialectCompare').sedialectCompare.player)"
    page.evaluate(f"() => ({tell})((player) => player.play())")
    page.wait_for_function(f"() => ({tell})((player) => player.frame) > 2")
    page.evaluate(f"() => ({tell})((player) => {{ player.pause(); player.seek(4); }})")
    page.wait_for_function(f"() => ({tell})((player) => player.frame) === 4")
    divider = page.locator(".sedialect-compare").get_by_label("Divider", exact=True)
    before = divider.get_attribute("aria-valuenow")
    divider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert float(divider.get_attribute("aria-valuenow")) > float(before)
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"comfyui-compare-{page.system}.png"))


def look_at_the_comparison(page) -> None:
    """Move the view so that the comparison node fills most of it."""
    page.evaluate(
        """() => {
          const node = window.app.graph.nodes.find((node) => node.type === "SeDialectCompare");
          const view = window.app.canvas.ds;
          node.setSize([860, 800]);
          view.scale = 1;
          view.offset[0] = 480 - node.pos[0];
          view.offset[1] = 110 - node.pos[1];
          window.app.canvas.setDirty(true, true);
        }"""
    )
    page.wait_for_timeout(1500)
