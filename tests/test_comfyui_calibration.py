"""A calibration that diffusers has made, used by the nodes in a real ComfyUI, which COMFYUI_DIR names."""

import os
from pathlib import Path

import pytest
import torch
from comfyui_server import Server, python_of_comfyui
from comfyui_workflows import Workflow, base_folder
from safetensors.torch import load_file

import sedialect
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.linear import SeDialectLinear
from sedialect.sedialect_core.sampling import Request
from sedialect.sedialect_core.wan_keys import to_authors

COMFYUI = os.environ.get("COMFYUI_DIR")
pytestmark = pytest.mark.skipif(not COMFYUI, reason="set COMFYUI_DIR to a ComfyUI, as make test-comfyui does")


@pytest.fixture(scope="module")
def pipe():
    from diffusers import WanPipeline

    torch.set_num_threads(1)  # as in the server: sums of other orders would flip single codes
    return WanPipeline.from_pretrained(demo.MODEL, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory, pipe) -> Path:
    base = base_folder(tmp_path_factory.mktemp("comfyui"))
    folder = base / "models" / "sedialect_calibrations" / "bundled"
    request = Request("a red ball rolls to the left", steps=4, height=128, width=128, num_frames=17)
    sedialect.calibrate(pipe, [request], folder=folder, every=1, progress=False)
    return base


@pytest.fixture(scope="module")
def server(base):
    with Server(Path(COMFYUI), python_of_comfyui(), base) as running:
        yield running


def test_the_weights_are_those_of_diffusers_with_the_same_calibration(server, base, pipe):
    graph = Workflow(base)
    model = graph.model()
    calibrated = graph.quantize(model, calibration="bundled", rotation="16")
    report = graph.add("SeDialectReport", model=calibrated)
    path, plain = graph.layers(calibrated, "calibrated"), graph.layers(graph.quantize(model, rotation="16"), "plain")
    graph.keep(graph.sample(calibrated), "calibrated_latents")
    text = server.run(graph.nodes).text(report[0])
    assert "compensated" in text and "calibrated with 1 prompts at 128x128x17" in text
    pipe.enable_sedialect(calibration=base / "models" / "sedialect_calibrations" / "bundled", rotation=16)
    found, other = load_file(path), load_file(plain)
    layers = {to_authors(n): layer for n, layer in pipe.transformer.named_modules() if isinstance(layer, SeDialectLinear)}
    assert {key.partition("|")[0] for key in found} == set(layers)
    changed = 0
    for name, layer in layers.items():
        for suffix in ("weight", "weight_meta", "weight_scale"):
            assert torch.equal(found[f"{name}|{suffix}"], getattr(layer, suffix)), (name, suffix)
        changed += not torch.equal(found[f"{name}|weight"], other[f"{name}|weight"])
    assert changed > 70


def test_a_calibration_of_other_weights_is_refused(server, base):
    graph = Workflow(base)
    graph.layers(graph.quantize(graph.model("tiny_high.safetensors"), calibration="bundled"), "refused")
    assert "the calibration is of other weights" in server.error(graph.nodes)
    damaged = base / "models" / "sedialect_calibrations" / "damaged"
    damaged.mkdir()
    (damaged / "calibration.json").write_text("{")
    graph = Workflow(base)
    graph.layers(graph.quantize(graph.model(), calibration="damaged"), "refused")
    assert "is damaged" in server.error(graph.nodes)
    graph = Workflow(base)
    graph.layers(graph.quantize(graph.model(), calibration="gone"), "refused")
    assert "not in list" in server.refusal(graph.nodes)
