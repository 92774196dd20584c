"""Attention in 8 bit in a real ComfyUI on the CPU; COMFYUI_DIR names it, as for test_comfyui.py."""

import torch
from comfyui_server import needs_comfyui
from comfyui_workflows import distance, samples

pytestmark = needs_comfyui
LONG = {"frames": 33, "size": 128}  # 576 tokens: attention is long from 512


def sampled(server, graph, models: dict[str, list]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What each model samples, and what its report says after the run."""
    files, reports = {}, {}
    for name, model in models.items():
        result = graph.sample(model, steps=1, latent=graph.latent(**LONG))
        files[name] = graph.keep(result, name)
        if name != "plain":
            reports[name] = graph.add("SeDialectReport", model=model, samples=result)
    outcome = server.run(graph.nodes)
    texts = {name: outcome.text(node[0]) for name, node in reports.items()}
    return {name: samples(path) for name, path in files.items()}, texts


def test_attention_alone_changes_a_clone_and_no_more(server, graph):
    model = graph.model()
    alone = graph.quantize(model, precision="16bit", attention="8bit")
    found, said = sampled(server, graph, {"alone": alone, "plain": model})
    assert 0 < distance(found["alone"], found["plain"]) < 0.05
    assert "all left as they are" in said["alone"] and "8 of 16 in 8bit" in said["alone"]
    assert "stayed in 16 bit" not in said["alone"], said["alone"]


def test_quantized_layers_and_attention_go_together(server, graph):
    model = graph.model()
    models = {"weights": graph.quantize(model, preset="weight-only"), "plain": model}
    models["both"] = graph.quantize(model, preset="weight-only", attention="8bit")
    found, said = sampled(server, graph, models)
    lost = {name: distance(found[name], found["plain"]) for name in ("weights", "both")}
    assert not torch.equal(found["both"], found["weights"]) and lost["both"] < 1.2 * lost["weights"]
    assert "8 of 16 in 8bit" in said["both"] and "stayed" not in said["both"] and "in 8bit" not in said["weights"]
