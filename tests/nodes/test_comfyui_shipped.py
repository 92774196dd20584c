"""ComfyUI's own template workflows for video models with SeDialect Quantize behind each loader: opened in its frontend,
taken by its server, and run in small.

COMFYUI_DIR names ComfyUI. COMFYUI_TEMPLATES is the folder `templates` of the package comfyui-workflow-templates-json, where
ComfyUI's interpreter does not have it.
"""

import json
import os
import subprocess
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from comfyui_page import ready
from comfyui_server import needs_comfyui, python_of_comfyui
from comfyui_shipped import FRAMES, INSERT, KINDS, ONLY_OPENED, PICTURE, SIZE, SOUND, VIDEO, outstanding, small
from PIL import Image

from sedialect.sedialect_core.video.mp4 import write_mp4

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")

pytestmark = needs_comfyui
PACKAGE = "comfyui_workflow_templates_json"
FIND = f"import importlib.util as u; s = u.find_spec({PACKAGE!r}); print(s.submodule_search_locations[0] if s else '')"


@pytest.fixture(scope="module")
def templates() -> Path:
    """The folder of ComfyUI's templates."""
    named = os.environ.get("COMFYUI_TEMPLATES")
    if named:
        return Path(named)
    found = subprocess.run([python_of_comfyui(), "-c", FIND], capture_output=True, text=True, check=True).stdout.strip()
    if not found:
        pytest.skip(f"ComfyUI's interpreter has no {PACKAGE}: install its requirements.txt, or set COMFYUI_TEMPLATES")
    return Path(found) / "templates"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's base folder, without models: there are stand-ins for all."""
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="module")
def page(browser, server):
    """The frontend, for all templates."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    ready(page, server.url, vue=False)
    yield page
    context.close()


@pytest.fixture(scope="module")
def inputs(base):
    """A picture, a video and a sound in ComfyUI's input folder."""
    folder = base / "input"
    folder.mkdir(exist_ok=True)
    frames = np.random.default_rng(0).integers(0, 255, (2 * FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(frames[0]).save(folder / PICTURE)
    write_mp4(folder / VIDEO, frames, Fraction(16))
    with wave.open(str(folder / SOUND), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes(frames.tobytes()[: 3 * 32000])


def opened(page, server, templates: Path, name: str) -> dict:
    """A template with our node in it, in the server's form. All that the server may have against it is missing files."""
    made = page.evaluate(INSERT, json.loads((templates / f"{name}.json").read_text(encoding="utf-8")))
    quantized = [node for node in made["nodes"].values() if node["class_type"] == "SeDialectQuantize"]
    assert made["put"] and quantized and all(isinstance(node["inputs"]["model"], list) for node in quantized)
    _, answer = server.post("/prompt", {"prompt": made["nodes"]})
    assert answer["node_errors"] and outstanding(answer) == []
    server.post("/queue", {"clear": True})  # of some templates a part needs no file
    server.post("/interrupt", {})
    return made["nodes"]


@pytest.mark.parametrize("name", ONLY_OPENED)
def test_a_shipped_template_takes_our_node(page, server, templates, name):
    opened(page, server, templates, name)


@pytest.mark.parametrize("name", KINDS)
def test_a_shipped_template_runs_with_our_node(page, server, templates, inputs, name):
    nodes = small(opened(page, server, templates, name), KINDS[name])
    outcome = server.run(nodes)
    made = [number for number, node in nodes.items() if node["class_type"] == "SeDialectQuantize"]
    said = [outcome.text(number) for number in made if number in outcome.outputs]
    assert said and all(" layers in w4a4" in text for text in said), said
    kinds = {nodes[number]["class_type"] for number in outcome.outputs}
    assert kinds & {"SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveImage"}, kinds
