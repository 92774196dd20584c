"""What people run, in small and in a real ComfyUI: kinds of models, LoRA files, and nodes on top. COMFYUI_DIR names it,
as for test_comfyui.py; docs/comfyui.md has a row for each."""

import comfyui_models
import pytest
import torch
from comfyui_server import ON_CPU, needs_comfyui
from comfyui_workflows import DEMO, Workflow, answers, assert_near, distance, samples
from safetensors.torch import load_file

pytestmark = needs_comfyui
VARIANTS = (
    "Wan 2.1, image to video",
    "Wan 2.1, first and last frame",
    "Wan 2.1, VACE",
    "Wan 2.2 14B, image to video",
    "Wan 2.2 14B, first and last frame",
    "Wan 2.2 5B, image to video",
    "Wan 2.2, camera control",
    "HunyuanVideo 1.5, image to video",
    "LTX-Video, image to video",
    "LTX-2, image to video with sound",
)


def sampled(graph: Workflow, name: str, seed: int = 1, model: list | None = None, **settings: object) -> list:
    """One step of a variant: its own model, quantized if there are settings."""
    node, _ = graph.add("SeDialectTestVariant", name=name, seed=seed)
    model = graph.quantize([node, 0], **settings) if settings else [node, 0]
    return graph.sample(model, steps=1, latent=[node, 3], positive=[node, 1], negative=[node, 2])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_quantized_model_stays_near_its_16_bit(server, graph, name):
    """Nearer than half of what another image, control or prompt changes."""
    made = {
        "plain": sampled(graph, name),
        "other": sampled(graph, name, seed=2),
        "weights": sampled(graph, name, preset="weight-only"),
        "default": sampled(graph, name, preset="default"),
    }
    files = {kind: graph.keep(latent, f"variant_{kind}") for kind, latent in made.items()}
    server.run(graph.nodes)
    found = {kind: samples(path) for kind, path in files.items()}
    lost = {kind: distance(found[kind], found["plain"]) for kind in ("other", "weights", "default")}
    print(name, {kind: round(value, 3) for kind, value in lost.items()})
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert 0 < lost["weights"] < lost["default"] < lost["other"] / 2
    assert not torch.equal(found["weights"], found["default"])


@pytest.fixture(scope="module")
def loras(base) -> dict[str, str]:
    """LoRA files by what they are."""
    folder, models = base / "models" / "loras", base / "models" / "diffusion_models"
    source = folder / "lora.safetensors"
    files = {naming: f"named_{number}.safetensors" for number, naming in enumerate(comfyui_models.NAMINGS)}
    for naming, file in files.items():
        comfyui_models.renamed_lora(folder / file, source, naming)
    comfyui_models.distilled_lora(folder / "distilled.safetensors", models / DEMO, source)
    return {**files, "distilled": "distilled.safetensors"}


def test_lora_files_of_other_trainers_do_the_same(server, graph, loras):
    model = graph.quantize(graph.model())
    expected = graph.layers(graph.lora(model), "named")
    files = {naming: graph.layers(graph.lora(model, file), f"named {naming}") for naming, file in loras.items()}
    twice = graph.layers(graph.lora(graph.lora(model, loras["kohya"], 0.5), loras["A and B"], 0.5), "halves")
    server.run(graph.nodes)
    expected, halves = answers(expected), answers(twice)
    for naming in comfyui_models.NAMINGS:
        found = answers(files[naming])
        assert all(torch.equal(found[key], expected[key]) for key in expected), naming
    for key in expected:
        assert_near(halves[key], expected[key], exactly=1e-4, roughly=0.02)


def test_a_lora_that_changes_biases_too(server, graph, base, loras):
    """Loaded whole, and with layers that are cast when they run. The changes are so small that outputs in 16 bit hold
    them roughly."""
    model = graph.quantize(graph.model())
    plain = graph.layers(graph.lora(model), "matrices")
    made = graph.lora(model, loras["distilled"])
    full, low = graph.layers(made, "distilled"), graph.layers(made, "distilled_low", budget=1)
    server.run(graph.nodes)
    changes = load_file(base / "models" / "loras" / loras["distilled"])
    plain, full, low = map(answers, (plain, full, low))
    for name, tensor in plain.items():
        change = changes[f"diffusion_model.{name}.diff_b"]
        assert_near(full[name] - tensor, change.expand_as(tensor), exactly=1e-4, roughly=0.5)
        assert_near(low[name], full[name], exactly=1e-5, roughly=2**-7)


def test_four_steps_with_their_lora_and_shift(server, graph, loras):
    few = {"steps": 4, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple", "latent": graph.latent(frames=9)}

    def four(model: list, lora: bool = True) -> list:
        changed = graph.lora(model, loras["distilled"]) if lora else model
        return graph.sample(graph.add("ModelSamplingSD3", model=changed, shift=5.0), **few)

    plain = graph.model()
    made = {"plain": four(plain), "without": four(plain, lora=False)}
    made["quality"] = four(graph.quantize(plain, preset="quality"))
    files = {name: graph.keep(latent, f"four_{name}") for name, latent in made.items()}
    server.run(graph.nodes)
    found = {name: samples(path) for name, path in files.items()}
    lost = {name: distance(found[name], found["plain"]) for name in ("without", "quality")}
    print({name: round(value, 3) for name, value in lost.items()})
    assert lost["quality"] < lost["without"] / 2


ON_TOP = {
    "SkipLayerGuidanceDiT": {
        "double_layers": "3, 4",
        "single_layers": "",
        "scale": 3.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "rescaling_scale": 0.0,
    },
    "CFGZeroStar": {},
    "TCFG": {},
    "RescaleCFG": {"multiplier": 0.7},
}


@pytest.mark.parametrize("kind", ON_TOP)
def test_guidance_nodes_do_their_work_on_top(server, graph, kind):
    """What the node changes of a quantized model's video is about what it changes in 16 bit."""
    files = {}
    for name, model in (("plain", graph.model()), ("quantized", graph.quantize(graph.model(), preset="quality"))):
        pair = (model, graph.add(kind, model=model, **ON_TOP[kind]))
        latents = [graph.sample(one, steps=1, cfg=6.0) for one in pair]
        files[name] = [graph.keep(latent, f"{kind}_{name}_{number}") for number, latent in enumerate(latents)]
    server.run(graph.nodes)
    change = {name: samples(paths[1]) - samples(paths[0]) for name, paths in files.items()}
    assert change["plain"].any()
    lost = distance(change["quantized"], change["plain"])
    print(kind, round(lost, 3))
    assert lost < 0.6


def test_a_compute_dtype_leaves_activations_in_4_bit(server, graph):
    quantized = graph.quantize(graph.model())
    alone = graph.keep(graph.sample(quantized, steps=1), "no_dtype")
    named = graph.keep(graph.sample(graph.add("ModelComputeDtype", model=quantized, dtype="fp32"), steps=1), "dtype")
    weights = graph.keep(graph.sample(graph.quantize(graph.model(), preset="weight-only"), steps=1), "dtype_weights")
    server.run(graph.nodes)
    alone, named, weights = map(samples, (alone, named, weights))
    if ON_CPU:  # which computes in float32 anyway
        assert torch.equal(named, alone)
    assert distance(named, weights) > 0.1
