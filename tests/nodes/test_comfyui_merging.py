"""Quantized models in ComfyUI's nodes that merge models, extract a LoRA from them, and train one. COMFYUI_DIR names it, as
for test_comfyui.py."""

import pytest
import torch
from comfyui_server import needs_comfyui
from comfyui_training import trained
from comfyui_workflows import OUTLIERS, PROMPT, distance, samples
from safetensors.torch import load_file

pytestmark = needs_comfyui
WAN_PARTS = ("patch_embedding", "time_embedding", "time_projection", "text_embedding", "img_emb", "head")
UP = ".lora_up.weight"
MERGES = {
    "ModelMergeSimple": {"ratio": 0.5},
    "ModelMergeWAN2_1": {f"{name}.": 0.5 for name in (*WAN_PARTS, *(f"blocks.{n}" for n in range(40)))},
    "ModelMergeAdd": {},
}


@pytest.mark.parametrize("kind", MERGES)
def test_a_quantized_model_is_merged(server, graph, kind):
    """With a 16-bit one, on either side, and with another quantized one: it loses its share of what quantizing lost."""
    plain = graph.model()
    other, quantized = graph.lora(plain, "second.safetensors"), graph.quantize(plain, preset="weight-only")
    pairs = {
        "16 bit": (plain, other),
        "first": (quantized, other),
        "second": (plain, graph.lora(quantized, "second.safetensors")),
        "both": (quantized, graph.lora(quantized, "second.safetensors")),
    }
    models = {name: graph.add(kind, model1=one, model2=two, **MERGES[kind]) for name, (one, two) in pairs.items()}
    models |= {"plain": plain, "quantized": quantized}
    files = {name: graph.keep(graph.sample(model, steps=1), f"merged_{name}") for name, model in models.items()}
    server.run(graph.nodes)
    found = {name: samples(path) for name, path in files.items()}
    lost = {name: distance(found[name], found["16 bit"]) for name in ("first", "second", "both")}
    alone = distance(found["quantized"], found["plain"])
    print(kind, {name: round(value, 3) for name, value in lost.items()}, round(alone, 3))
    assert 0 < max(lost["first"], lost["second"]) < lost["both"] < 1.2 * alone
    assert distance(found["16 bit"], found["plain"]) > 0.3


def test_a_merge_in_front_of_quantize_is_encoded(server, graph):
    """Not kept beside: all of the one model or of the other gives that one's codes, and no layer has a product more."""
    one, other = graph.model(), graph.model(OUTLIERS)
    models = {"one": one, "other": other}
    for name, ratio in (("all of one", 1.0), ("all of the other", 0.0), ("half", 0.5)):
        models[name] = graph.add("ModelMergeSimple", model1=one, model2=other, ratio=ratio)
    models["LoRA in it"] = graph.lora(models["all of one"])
    quantized = {name: graph.quantize(model) for name, model in models.items()}
    files = {name: graph.layers(model, name) for name, model in quantized.items()}
    reports = {name: graph.add("SeDialectReport", model=quantized[name]) for name in ("one", "half")}
    outcome = server.run(graph.nodes)
    found = {name: load_file(path) for name, path in files.items()}
    for name, expected in (("all of one", "one"), ("all of the other", "other")):
        assert found[name].keys() == found[expected].keys()
        assert all(torch.equal(found[name][key], found[expected][key]) for key in found[expected])
    codes = [key for key in found["one"] if key.endswith("|weight")]
    assert not all(torch.equal(found["half"][key], found[end][key]) for key in codes for end in ("one", "other"))
    assert not any(torch.equal(found["LoRA in it"][key], found["one"][key]) for key in codes)
    said = "another model is merged into 80 layers before they are encoded"
    assert said in outcome.text(reports["half"][0]) and said not in outcome.text(reports["one"][0])
    assert "LoRA of another kind" not in outcome.text(reports["half"][0])


@pytest.mark.parametrize("training_dtype", ["fp32", "bf16"])
def test_a_lora_is_trained_over_a_quantized_model(server, graph, training_dtype):
    """With *bypass_mode*, which is meant for quantized models, and without: ComfyUI then decodes each weight. Both train the
    same; and what they train has an effect on the MODEL they were given. (In float16, which ComfyUI chooses for
    this network on a GPU, gradients overflow with the 16-bit MODEL, too, and no step is taken.)"""
    quantized = graph.quantize(graph.model(), preset="weight-only")
    settings = {"training_dtype": training_dtype, "learning_rate": 0.01, "rank": 2}
    off, files = graph.keep(graph.sample(quantized, steps=1), "untrained"), []
    for bypass in (True, False):
        lora = trained(graph, quantized, graph.latent(), graph.prompt(PROMPT), bypass_mode=bypass, **settings)
        with_it = graph.add("LoraModelLoader", model=quantized, lora=lora, strength_model=1.0, bypass=False)
        files.append(graph.keep(graph.sample(with_it, steps=1), f"trained_{bypass}"))
    server.run(graph.nodes)
    beside, merged = map(samples, files)
    change = distance(beside, samples(off))
    assert change > 0.1 and distance(beside, merged) < change / 4


@pytest.mark.parametrize("loaded", [False, True])
def test_a_difference_of_quantized_models_is_extracted_as_a_lora(server, graph, base, loaded):
    """*Extract and Save LoRA* of what a LoRA changes gives that, whether the MODEL lies on the device already or not."""
    quantized = graph.quantize(graph.model(), preset="weight-only")
    difference = graph.add("ModelMergeSubtract", model1=graph.lora(quantized), model2=quantized, multiplier=1.0)
    if loaded:
        graph.keep(graph.sample(difference, steps=1), "difference")
        server.run(graph.nodes)
    settings = {"rank": 16, "lora_type": "full_diff", "bias_diff": True, "model_diff": difference}
    graph.add("LoraSave", filename_prefix=f"extracted_{loaded}", **settings)
    server.run(graph.nodes)
    (file,) = (base / "output").glob(f"extracted_{loaded}*")
    found, lora = load_file(file), load_file(base / "models" / "loras" / "lora.safetensors")
    names = [key.removesuffix(UP) for key in lora if key.endswith(UP)]
    assert len(names) == 80
    for name in names:
        expected = lora[name + UP] @ lora[f"{name}.lora_down.weight"]
        assert distance(found[f"{name}.diff"].float(), expected) < 0.01
