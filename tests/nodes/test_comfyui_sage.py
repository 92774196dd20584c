"""Whose attention runs under `--use-sage-attention`, in a real ComfyUI on the CPU; COMFYUI_DIR names it.

The package sageattention needs a GPU. In its place stands a module that gives torch's attention: the test shows which calls
reach it, not that its numbers are good. On a GPU: `run_comfyui_gpu.py sage`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_server import COMFYUI, FLAGS, Server, needs_comfyui, python_of_comfyui
from comfyui_workflows import Workflow, distance, samples

pytestmark = needs_comfyui
STAND_IN = """
import torch

def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=True):
    swap = (lambda x: x.transpose(1, 2)) if tensor_layout == "NHD" else (lambda x: x)
    return swap(torch.nn.functional.scaled_dot_product_attention(*map(swap, (q, k, v)), scale=sm_scale))
"""
LONG = {"frames": 33, "size": 128}  # 576 tokens: attention is long from 512
BLOCKS = 8
MODELS = {
    "16 bit": None,
    "layers": {"preset": "weight-only"},
    "layers and attention": {"preset": "weight-only", "attention": "8bit"},
    "attention alone": {"precision": "16bit", "attention": "8bit"},
    "profiled": {"preset": "default", "salient_by": "attention"},
}


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the flag, and with the stand-in."""
    place = tmp_path_factory.mktemp("site")
    (place / "sageattention.py").write_text(STAND_IN)
    with Server(
        Path(COMFYUI), python_of_comfyui(), base, *FLAGS, "--use-sage-attention", environment={"PYTHONPATH": str(place)}
    ) as running:
        yield running


def test_our_attention_goes_before_sage_attention_and_sage_runs_the_rest(server, base):
    found, files = {}, {}
    for name, settings in MODELS.items():
        graph = Workflow(base)
        model = graph.model() if settings is None else graph.quantize(graph.model(), **settings)
        sampled = graph.sample(model, steps=1, cfg=1.0, latent=graph.latent(**LONG))
        files[name] = graph.keep(sampled, f"sage_{name}")
        counted = graph.add("SeDialectTestSage", samples=sampled)[0]
        found[name] = json.loads(server.run(graph.nodes).text(counted))
    assert "Using sage attention" in server.log.read_text(errors="replace")
    ours = {"layers and attention", "attention alone"}
    for name, seen in found.items():
        assert seen == {"self": 0 if name in ours else BLOCKS, "cross": BLOCKS, "failed": 0}, name
    assert 0 < distance(samples(files["attention alone"]), samples(files["16 bit"])) < 0.05
