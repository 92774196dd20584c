"""SeDialect Calibrate, the fitting of formatbooks and a glance at the weights in a real ComfyUI. COMFYUI_DIR names it, as
for test_comfyui.py."""

import json
from collections.abc import Mapping

import torch
from comfyui_server import needs_comfyui
from comfyui_workflows import DEMO, OUTLIERS, PROMPT, Workflow, distance, samples
from safetensors.torch import load_file

import sedialect
from sedialect.kernels import reference as reference_kernels
from sedialect.sedialect_core.calibration.cache import CalibrationCache
from sedialect.sedialect_core.quantize.weights import InputStatistics

pytestmark = needs_comfyui


def test_a_formatbook_is_fitted_to_a_model(server, graph):
    model = graph.model("tiny_high.safetensors")
    book = graph.add("SeDialectFormatbook", book="(fitted to the MODEL below)", model=model)
    report = graph.add("SeDialectReport", model=graph.quantize(model, formatbook=book))
    outcome = server.run(graph.nodes)
    assert "WanModel-" in outcome.text(book[0]) and "WanModel-" in outcome.text(report[0])


def calibrated(graph: Workflow, model: list, **settings: object) -> list:
    prompts = [graph.prompt(PROMPT), graph.prompt("")]
    positive = graph.add("ConditioningCombine", conditioning_1=prompts[0], conditioning_2=prompts[1])
    asked = {"negative": graph.prompt(""), "latent_image": graph.latent(frames=13, size=96), "steps": 6, "cfg": 2.0}
    return graph.add("SeDialectCalibrate", model=model, positive=positive, **{**asked, **settings})


def test_calibrated_weights_bring_the_layers_nearer_to_16_bit(server, graph, base):
    model = graph.model()
    plain = graph.quantize(model, precision="w4a16")
    better = graph.quantize(model, precision="w4a16", calibration=calibrated(graph, model))
    files = [graph.layers(one, name) for name, one in (("calplain", plain), ("calbetter", better))]
    report = graph.add("SeDialectReport", model=better)
    outcome = server.run(graph.nodes)
    text = outcome.text(report[0])
    assert "; calibrated" in text and "calibrated with 2 prompts at 96x96x13" in text
    (folder,) = (base / "output" / "sedialect_calibrations").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == len(json.loads((folder / "calibration.json").read_text())["inputs"])
    seen = CalibrationCache.load(folder).component("diffusion_model")
    weights = load_file(base / "models" / "diffusion_models" / DEMO)
    lost = [sum(output_lost(name, load_file(path), weights, seen) for name in seen) for path in files]
    assert lost[1] < 0.5 * lost[0]


def output_lost(name: str, stored: dict, weights: dict, seen: Mapping[str, InputStatistics]) -> float:
    """Relative squared error of what a layer gives on what it read while calibrating."""
    weight, moment = weights[f"{name}.weight"].double(), seen[name].moment.double()
    parts = (stored[f"{name}|weight{suffix}"] for suffix in ("", "_meta"))
    scale = stored[f"{name}|weight_scale"].view(torch.float32)
    book = sedialect.Formatbook.resolve(sedialect.SeDialectConfig().formatbook)
    decoded = reference_kernels.decode_rows(*parts, book.tables()).double() * scale
    exponents = stored.get(f"{name}|weight_equalizer")
    error = (decoded if exponents is None else decoded * torch.pow(2.0, -exponents.double())) - weight
    return float(((error @ moment) * error).sum() / ((weight @ moment) * weight).sum())


def test_a_glance_equalizes_channels_and_what_is_saved_gives_the_same(server, graph, base):
    model, calibrations = graph.model(OUTLIERS), base / "output" / "sedialect_calibrations"
    before = set(calibrations.iterdir()) if calibrations.exists() else set()
    glanced = graph.quantize(model, calibration=calibrated(graph, model, glance=True, steps=20))
    first, report = graph.layers(glanced, "glanced"), graph.add("SeDialectReport", model=glanced)
    tame, video = graph.model(), {"latent": graph.latent(frames=13, size=96), "steps": 1}  # from one noise, one velocity
    pairs = {"glanced": (glanced, model), "unequalized": (graph.quantize(model, equalize="off"), model)}
    pairs["tame"] = graph.quantize(tame, equalize="off"), tame
    latents = {
        name: [graph.keep(graph.sample(one, **video), f"outliers_{name}_{number}") for number, one in enumerate(pair)]
        for name, pair in pairs.items()
    }
    graph.add("SeDialectSave", model=glanced, filename_prefix="diffusion_models/glanced", names="ComfyUI")
    outcome = server.run(graph.nodes)
    text = outcome.text(report[0])
    assert "equalized by a glance at one prompt at 96x96x13" in text and "have scaled channels" in text
    lost = {name: distance(*map(samples, paths)) for name, paths in latents.items()}
    assert lost["glanced"] < 1.15 * lost["tame"] and lost["unequalized"] > 1.3 * lost["tame"]

    (folder,) = set(calibrations.iterdir()) - before
    seen = CalibrationCache.load(folder).component("diffusion_model")
    name = "blocks.0.self_attn.q"
    assert folder.name.endswith("-glance") and seen[name].moment.ndim == 1
    assert len(seen[name].rows) == 32 * 4, "a call in each of four steps, both branches of guidance in it"

    (file,) = (base / "output" / "diffusion_models").glob("glanced*.safetensors")
    again = Workflow(base)
    loaded, video["latent"] = again.add("SeDialectLoad", file=file.name), again.latent(frames=13, size=96)
    second, latent = again.layers(loaded, "glanced_again"), again.keep(again.sample(loaded, **video), "outliers_again")
    server.run(again.nodes)
    stored, found = load_file(first), load_file(second)
    assert f"{name}|weight_equalizer" in stored and stored.keys() == found.keys()
    assert all(torch.equal(stored[key], found[key]) for key in stored)
    assert torch.equal(samples(latent), samples(latents["glanced"][0]))


def test_a_calibration_of_another_model_is_refused(server, graph):
    calibration = calibrated(graph, graph.model())
    other = graph.model("tiny_high.safetensors")
    graph.layers(graph.quantize(other, calibration=calibration), "othermodel")
    assert "the calibration is of other weights" in server.error(graph.nodes)


def test_too_few_tokens_are_told_with_the_prompts_that_are_needed(server, graph):
    calibration = calibrated(graph, graph.model(), latent_image=graph.latent(frames=5, size=32), steps=1)
    graph.layers(graph.quantize(graph.model(), calibration=calibration), "fewtokens")
    assert "too few for a moment of that size; give" in server.error(graph.nodes)
