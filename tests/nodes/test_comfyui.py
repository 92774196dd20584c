"""The nodes in a real ComfyUI on the CPU, over its HTTP API. COMFYUI_DIR names it; `make test-comfyui` runs this.

COMFYUI_PYTHON is the interpreter that ComfyUI and the requirements of this pack are installed for.
"""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from comfyui_server import ON_CPU, needs_comfyui
from comfyui_workflows import DEMO, OUTLIERS, PROMPT, Workflow, assert_near, distance, samples
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sedialect
from sedialect.kernels import reference as reference_kernels
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.calibration.cache import CalibrationCache
from sedialect.sedialect_core.checkpoint.wan_names import to_authors, to_diffusers
from sedialect.sedialect_core.linear import SeDialectLinear
from sedialect.sedialect_core.quantize.weights import InputStatistics

pytestmark = needs_comfyui


@pytest.fixture(scope="module")
def saved(server, base) -> str:
    """A quantized file, as SeDialect Load names it."""
    graph = Workflow(base)
    graph.add(
        "SeDialectSave", model=graph.quantize(graph.model()), filename_prefix="diffusion_models/saved", names="ComfyUI"
    )
    return saved_by(server.run(graph.nodes))[0].name


def saved_by(outcome) -> list[Path]:
    """What Save nodes wrote, by their texts."""
    said = [shown["text"][0] for shown in outcome.outputs.values() if "text" in shown]
    return [Path(text.removeprefix("saved ")) for text in said if text.startswith("saved ")]


def answers(path: Path) -> dict[str, torch.Tensor]:
    """What each layer answered, by name."""
    return {key.removesuffix("|y"): value for key, value in load_file(path).items() if key.endswith("|y")}


@pytest.fixture(scope="module")
def reference():
    """The bundled transformer quantized by sedialect in diffusers."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(demo.MODEL, subfolder="transformer", torch_dtype=torch.float32)
    sedialect.quantize_model(model, sedialect.SeDialectConfig())
    return model


def test_every_layer_stores_and_answers_what_the_reference_does(server, graph, reference):
    path = graph.layers(graph.quantize(graph.model(), salient_ratio=0.0), "layers")
    server.run(graph.nodes)
    found = load_file(path)
    layers = {to_authors(name): layer for name, layer in reference.named_modules() if isinstance(layer, SeDialectLinear)}
    assert {key.partition("|")[0] for key in found} == set(layers)
    for name, layer in layers.items():
        for suffix in ("weight", "weight_meta", "weight_scale"):
            assert torch.equal(found[f"{name}|{suffix}"], getattr(layer, suffix)), (name, suffix)
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(layer.in_features))
        guide, layer.guide = layer.guide, None
        assert_near(found[f"{name}|y"], layer(x), exactly=1e-5, roughly=2**-7)
        layer.guide = guide


def test_both_branches_run_in_one_workflow_and_the_original_is_not_changed(server, graph):
    model = graph.model()
    alone, beside, quantized = (
        graph.keep(samples, name)
        for samples, name in (
            (graph.sample(model), "alone"),
            (graph.sample(model, seed=8), "beside"),
            (graph.sample(graph.quantize(model)), "quantized"),
        )
    )
    server.run(graph.nodes)
    again = Workflow(graph.base)
    path = again.keep(again.sample(again.model()), "again")
    server.run(again.nodes)
    assert torch.equal(samples(alone), samples(path))
    assert 0.01 < distance(samples(quantized), samples(alone)) < distance(samples(beside), samples(alone))


def test_a_saved_file_loads_here_and_in_diffusers(server, graph, reference):
    quantized = graph.quantize(graph.model())
    graph.add("SeDialectSave", model=quantized, filename_prefix="diffusion_models/one", names="ComfyUI")
    graph.add("SeDialectSave", model=quantized, filename_prefix="diffusion_models/two", names="diffusers")
    first = graph.layers(quantized, "before")
    outcome = server.run(graph.nodes)
    single, folder = sorted(saved_by(outcome))
    with safe_open(single, framework="pt") as opened:
        assert json.loads(opened.metadata()["config"])["transformer"]["text_dim"] == 192
    loaded = Workflow(graph.base)
    files = [
        loaded.layers(loaded.add("SeDialectLoad", file=name), f"after{number}")
        for number, name in enumerate((single.name, f"{folder.name}/diffusion_pytorch_model.safetensors"))
    ]
    server.run(loaded.nodes)
    for file in files:
        before, after = load_file(first), load_file(file)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
    state, expected = model.state_dict(), reference.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key].float(), expected[key].float()) for key in state)


def test_what_diffusers_saved_loads(server, graph, base):
    from diffusers import WanTransformer3DModel

    settings = sedialect.SeDialectConfig(block_size=32, precision="w4a8")
    model = WanTransformer3DModel.from_pretrained(
        demo.MODEL, subfolder="transformer", torch_dtype=torch.bfloat16, quantization_config=settings
    )
    model.save_pretrained(base / "models" / "diffusion_models" / "saved")
    loaded = graph.add("SeDialectLoad", file="saved/diffusion_pytorch_model.safetensors")
    path, latents = graph.layers(loaded, "diffusers"), graph.keep(graph.sample(loaded), "diffusers_latents")
    report = graph.add("SeDialectReport", model=loaded)
    outcome = server.run(graph.nodes)
    assert "80 in w4a8" in outcome.text(report[0]) or "w4a8" in outcome.text(report[0])
    found = load_file(path)
    for name, layer in model.named_modules():
        if isinstance(layer, SeDialectLinear):
            assert torch.equal(found[f"{to_authors(name)}|weight"], layer.weight)
    assert samples(latents).isfinite().all()


def test_core_save_and_our_load_agree(server, graph):
    """ComfyUI's own Save Model knows nothing of our record, and still writes it."""
    quantized = graph.quantize(graph.model(), block_size="32")
    graph.add("ModelSave", model=quantized, filename_prefix="diffusion_models/core")
    first = graph.layers(quantized, "core_before")
    server.run(graph.nodes)
    (file,) = (graph.base / "output" / "diffusion_models").glob("core*.safetensors")
    again = Workflow(graph.base)
    second = again.layers(again.add("SeDialectLoad", file=file.name), "core_after")
    server.run(again.nodes)
    before, after = load_file(first), load_file(second)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_core_saves_layers_that_are_not_loaded_whole(server, graph):
    """ComfyUI merges LoRAs into such layers while it writes them, which codes do not take: they are written as they are."""
    quantized = graph.quantize(graph.model(), block_size="32")
    path = graph.base / "models" / "diffusion_models" / "partly.safetensors"
    graph.add("SeDialectTestSavePartlyLoaded", model=graph.lora(quantized), file=str(path))
    first = graph.layers(quantized, "partly_before")
    server.run(graph.nodes)
    again = Workflow(graph.base)
    second = again.layers(again.add("SeDialectLoad", file=path.name), "partly_after")
    server.run(again.nodes)
    before, after = load_file(first), load_file(second)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("order", ["before", "behind"])
def test_a_lora_is_added_beside_the_codes(server, graph, order):
    """Both orders give the same layers: codes of the 16-bit weight, and the LoRA in full precision on top."""
    plain = graph.layers(graph.quantize(graph.model()), f"{order}_plain")
    model = graph.model()
    chained = graph.quantize(graph.lora(model)) if order == "before" else graph.lora(graph.quantize(model))
    path = graph.layers(chained, f"{order}_lora")
    server.run(graph.nodes)
    weights = load_file(graph.base / "models" / "loras" / "lora.safetensors")
    base, changed = answers(plain), answers(path)
    for name in base:
        up, down = (weights[f"diffusion_model.{name}.lora_{part}.weight"] for part in ("up", "down"))
        x = torch.randn(5, down.shape[1], generator=torch.Generator().manual_seed(down.shape[1]))
        assert_near(changed[name] - base[name], x @ down.T @ up.T, exactly=1e-3, roughly=0.03)


def test_a_weak_lora_has_its_whole_effect_and_strength_scales_it(server, graph):
    """1 % of a weight is far below what 4 bits can hold: merged and rounded it would be noise."""
    quantized = graph.quantize(graph.model())
    files = {s: graph.layers(graph.lora(quantized, "weak.safetensors", s), f"weak{s}") for s in (0.0, 0.5, 1.0, -1.0)}
    plain = graph.layers(quantized, "weak_off")
    server.run(graph.nodes)
    base, found = answers(plain), {s: answers(path) for s, path in files.items()}
    for name in base:
        assert torch.equal(found[0.0][name], base[name])
        effect = found[1.0][name] - base[name]
        assert 0.001 < distance(found[1.0][name], base[name]) < 0.1
        # In bfloat16 a third of so small an effect is rounding; merged into 4 bits it would be lost in it.
        assert_near(found[0.5][name] - base[name], effect / 2, exactly=1e-3, roughly=0.6)
        assert_near(found[-1.0][name] - base[name], -effect, exactly=1e-3, roughly=0.5)


def test_loras_add_up_and_come_off(server, graph):
    quantized = graph.quantize(graph.model())
    both = graph.layers(graph.lora(graph.lora(quantized), "second.safetensors"), "both")
    one, other = (
        graph.layers(graph.lora(quantized), "one"),
        graph.layers(graph.lora(quantized, "second.safetensors"), "other"),
    )
    off = graph.layers(quantized, "off")
    server.run(graph.nodes)
    both, one, other, off = map(answers, (both, one, other, off))
    for name in off:
        assert_near(both[name] - off[name], one[name] + other[name] - 2 * off[name], exactly=1e-3, roughly=0.05)


def test_low_vram_gives_the_same_layers(server, graph):
    """ComfyUI then casts every layer when it runs, and applies LoRAs in the cast: ours must not be rounded there either."""
    model = graph.lora(graph.quantize(graph.model()))
    full, low = graph.layers(model, "full"), graph.layers(model, "low", budget=1)
    server.run(graph.nodes)
    full, low = answers(full), answers(low)
    assert all(torch.equal(full[name], low[name]) for name in full)


def test_a_bypass_lora_does_what_a_lora_does(server, graph):
    """It adds its product behind the layer, which rounds otherwise in bfloat16. Inputs in 16 bit keep that small, where 4
    bit round some of them the other way. Fastened to the 16-bit MODEL before, it is off again when that is quantized."""
    graph.keep(graph.sample(graph.lora(graph.model(), bypass=True), steps=1), "sixteen")
    server.run(graph.nodes)
    graph = Workflow(graph.base)
    quantized = graph.quantize(graph.model(), preset="weight-only")
    kept = [
        graph.keep(graph.sample(model, steps=1), name)
        for name, model in (
            ("off", quantized),
            ("normal", graph.lora(quantized)),
            ("bypass", graph.lora(quantized, bypass=True)),
        )
    ]
    server.run(graph.nodes)
    off, normal, bypass = map(samples, kept)
    assert distance(normal, off) > 0.3
    assert distance(bypass, normal) < (1e-4 if ON_CPU else 0.02)


def test_a_dora_works(server, graph):
    quantized = graph.quantize(graph.model())
    with_dora = graph.lora(quantized, "dora.safetensors")
    dora, report = graph.layers(with_dora, "dora"), graph.add("SeDialectReport", model=with_dora)
    off = graph.layers(quantized, "dora_off")
    text = server.run(graph.nodes).text(report[0])
    assert "speed: 80 layers have a LoRA of another kind" in text
    assert ("speed: on cpu quantized layers save memory" in text) == ON_CPU
    dora, off = answers(dora), answers(off)
    assert all(0.05 < distance(dora[name], off[name]) < 1 for name in off)


def test_neither_save_node_puts_a_lora_into_the_codes(server, graph):
    """ComfyUI's would round the sum to 4 bit, and only where it has not loaded the layer: not so with ours."""
    quantized = graph.quantize(graph.model())
    model = graph.lora(quantized)
    graph.keep(graph.sample(model, steps=1), "loaded")
    graph.add("ModelSave", model=model, filename_prefix="diffusion_models/with_lora")
    graph.add("SeDialectSave", model=model, filename_prefix="diffusion_models/ours_with_lora", names="ComfyUI")
    plain = graph.layers(quantized, "without_lora")
    server.run(graph.nodes)
    for file in (graph.base / "output" / "diffusion_models").glob("*with_lora*"):
        again = Workflow(graph.base)
        path = again.layers(again.add("SeDialectLoad", file=file.name), file.stem)
        server.run(again.nodes)
        before, after = load_file(plain), load_file(path)
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_lora_by_hooks_on_the_conditioning_works(server, graph):
    """Only the conditionings that carry the hook feel it, and switching between them leaves the codes as they are."""
    quantized = graph.quantize(graph.model())
    hooks = graph.add("CreateHookLoraModelOnly", lora_name="lora.safetensors", strength_model=1.0)
    texts = [graph.prompt(PROMPT), graph.prompt("")]
    hooked = [
        graph.add("ConditioningSetProperties", cond_NEW=text, strength=1.0, set_cond_area="default", hooks=hooks)
        for text in texts
    ]
    both = graph.keep(graph.sample(quantized, steps=1, positive=hooked[0], negative=hooked[1]), "hook_both")
    one = graph.keep(graph.sample(quantized, steps=1, positive=hooked[0]), "hook_one")
    normal, plain = (
        graph.keep(graph.sample(graph.lora(quantized), steps=1), "hook_normal"),
        graph.keep(graph.sample(quantized, steps=1), "hook_off"),
    )
    server.run(graph.nodes)
    both, one, normal, plain = map(samples, (both, one, normal, plain))
    assert distance(both, normal) < 0.02 < distance(one, normal) and distance(one, plain) > 0.02


def test_caches_and_context_windows_go_on_top(server, graph):
    model = graph.quantize(graph.model())
    # Now one branch of guidance decides what is reused, now the other: the most that is allowed, so that all reuse steps.
    cache = {"reuse_threshold": 3.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
    windows = {
        "context_length": 9,
        "context_overlap": 4,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "freenoise": False,
        "retain_first_frame": False,
        "split_conds_to_windows": False,
    }
    plain = graph.keep(graph.sample(model, steps=6), "plain6")
    easy = graph.keep(graph.sample(graph.add("EasyCache", model=model, **cache), steps=6), "easy")
    lazy = graph.keep(graph.sample(graph.add("LazyCache", model=model, **cache), steps=6), "lazy")
    idle = graph.keep(graph.sample(graph.add("EasyCache", model=model, **cache | {"reuse_threshold": 0.0}), steps=6), "idle")
    long = graph.latent(frames=33)
    context = graph.keep(graph.sample(graph.add("WanContextWindowsManual", model=model, **windows), latent=long), "context")
    shifted = graph.keep(graph.sample(graph.add("ModelSamplingSD3", model=model, shift=3.0)), "shifted")
    server.run(graph.nodes)
    assert torch.equal(samples(idle), samples(plain)), "a cache that reuses nothing changes nothing"
    for reusing in (easy, lazy):
        assert not torch.equal(samples(reusing), samples(plain)), "this one has left a step out"
    assert samples(easy).isfinite().all() and samples(lazy).isfinite().all()
    assert samples(context).isfinite().all() and samples(shifted).isfinite().all()


def test_free_and_run_again(server, graph):
    sampled = graph.keep(graph.sample(graph.lora(graph.quantize(graph.model()))), "free")
    server.run(graph.nodes)
    first = samples(sampled)
    server.post("/free", {"unload_models": True})
    time.sleep(2)
    again = Workflow(graph.base)
    model = again.lora(again.quantize(again.model()))
    path = again.keep(again.sample(model), "free_again")
    again.keep(again.sample(model, seed=9), "free_more")
    server.run(again.nodes)
    assert torch.equal(samples(path), first)


def test_a_high_and_low_noise_pair(server, graph):
    """Wan 2.2: two quantized models, one after the other, in one graph."""
    high, low = (graph.quantize(graph.model(f"tiny_{kind}.safetensors")) for kind in ("high", "low"))
    text = graph.add("SeDialectTestConditioning", text="x", file="", tokens=8, dim=4096, pooled=0, mask=False)
    said = {"positive": text, "negative": text, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "steps": 4}
    first = graph.add(
        "KSamplerAdvanced",
        model=high,
        latent_image=graph.latent(),
        add_noise="enable",
        noise_seed=1,
        start_at_step=0,
        end_at_step=2,
        return_with_leftover_noise="enable",
        **said,
    )
    second = graph.add(
        "KSamplerAdvanced",
        model=low,
        latent_image=first,
        add_noise="disable",
        noise_seed=1,
        start_at_step=2,
        end_at_step=10000,
        return_with_leftover_noise="disable",
        **said,
    )
    path = graph.keep(second, "pair")
    server.run(graph.nodes)
    assert samples(path).isfinite().all()


def test_report_and_formatbook_show_text_and_pictures(server, graph):
    book = graph.add("SeDialectFormatbook", book="dialectfp4-16")
    model = graph.add("SeDialectQuantize", model=graph.model(), preset="compact", formatbook=book)
    report = graph.add("SeDialectReport", model=model)
    pictures = [
        graph.add("SaveImage", images=[node[0], 1], filename_prefix=name) for node, name in ((book, "book"), (report, "use"))
    ]
    outcome = server.run(graph.nodes)
    text = outcome.text(report[0])
    runs = "reference" if ON_CPU else "triton"
    assert "80 in w4a4" in text and "4.354 bits" in text and runs in text and "dialectfp4-16" in text, text
    assert "dialectfp4-16" in outcome.text(book[0])
    for picture in pictures:
        (image,) = outcome.outputs[picture[0]]["images"]
        assert (graph.base / "output" / image["filename"]).stat().st_size > 10_000


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


def test_compare_saves_two_videos_and_tells_the_player(server, graph):
    model = graph.model()
    latent = graph.latent(frames=9, size=128)
    frames = [
        graph.add("SeDialectTestDecode", samples=graph.sample(one, steps=4, latent=latent))
        for one in (model, graph.quantize(model))
    ]
    video = graph.add("CreateVideo", images=frames[1], fps=16.0)
    compare = graph.add("SeDialectCompare", left=frames[0], right=video, fps=16.0)
    outcome = server.run(graph.nodes)
    (payload,) = outcome.outputs[compare[0]]["sedialect_compare"]
    assert payload["frames"] == 9 and payload["fps"] == 16.0 and payload["labels"] == ["16 bit", "SemanticDialect"]
    assert [row["name"] for row in payload["series"]] == ["PSNR", "SSIM", "Flicker"]
    assert all(len(row["values"]) == 9 for row in payload["series"])
    assert all(10 < value < 60 for value in payload["series"][0]["values"])
    for side in ("left", "right"):
        place = "&".join(f"{key}={value}" for key, value in payload[side].items())
        assert server.fetch(f"/view?{place}")[4:8] == b"ftyp"


def test_cancelling_leaves_a_usable_server(server, graph):
    quantized = graph.quantize(graph.model(), skip="never")  # nothing that the cache knows
    # A GPU encodes in less time than a request takes: steps enough to be met by one.
    path = graph.keep(graph.sample(quantized) if ON_CPU else graph.sample(quantized, steps=400), "cancelled")
    prompt = server.queue(graph.nodes)

    def cancel() -> None:
        for _ in range(600):
            running = [entry[1] for entry in server.get("/queue")["queue_running"]]
            if (prompt in running and "SeDialectQuantize" in server.log.read_text()) or prompt in running:
                break
            time.sleep(0.05)
        time.sleep(1.0 if ON_CPU else 0.0)
        server.post("/interrupt", {})

    thread = threading.Thread(target=cancel)
    thread.start()
    outcome = server.wait(prompt)
    thread.join()
    assert "execution_interrupted" in outcome.events and not path.exists()
    server.run(graph.nodes)
    assert samples(path).isfinite().all()


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        (lambda g: g.quantize(g.quantize(g.model())), "quantized by SeDialect already"),
        (lambda g: g.quantize(g.lora(g.model(), bypass=True)), "put bypass LoRA nodes behind"),
        (
            lambda g: g.quantize(g.add("TorchCompileModel", model=g.model(), backend="inductor")),
            "put TorchCompileModel behind",
        ),
        (lambda g: g.quantize(g.model(), salient_ratio=-0.5), "salient_ratio is -0.5"),
        (lambda g: g.quantize(g.add("SeDialectTestForeign", of="image", file="")), "Flux is not a video model"),
        (lambda g: g.quantize(g.add("SeDialectTestForeign", of="gguf", file=DEMO)), "quantized already (GGUF)"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_a_sentence(server, graph, chain, says):
    graph.keep(graph.sample(chain(graph)), "refused")
    assert says in server.error(graph.nodes)


def test_weights_that_the_loader_was_told_to_round_to_fp8(server, graph):
    """Rounded weights are refused. Under dynamic VRAM ComfyUI keeps those of the file and rounds them whenever a layer runs:
    then the file's are quantized."""
    rounded = graph.quantize(graph.add("UNETLoader", unet_name=DEMO, weight_dtype="fp8_e4m3fn"))
    path = graph.layers(rounded, "rounded")
    if ON_CPU:
        assert "quantized already" in server.error(graph.nodes)
        return
    plain = graph.layers(graph.quantize(graph.model()), "not_rounded")
    server.run(graph.nodes)
    plain, rounded = load_file(plain), load_file(path)
    assert all(torch.equal(plain[key], rounded[key]) for key in plain if not key.endswith("|y"))


def test_files_that_cannot_be_loaded_are_refused(server, graph, base, saved):
    folder = base / "models" / "diffusion_models"
    (folder / "broken.safetensors").write_bytes(b"no safetensors")
    for file, says in (
        (DEMO, "not quantized by sedialect"),
        ("broken.safetensors", "cannot be read"),
        ("gone", "there is no"),
    ):
        refused = Workflow(base)
        refused.layers(refused.add("SeDialectLoad", file=file), "refused")
        assert says in server.refusal(refused.nodes)
    whole = folder.parents[1] / "output" / "diffusion_models" / saved
    tensors = load_file(whole)
    tensors.pop("blocks.0.norm3.bias")
    with safe_open(whole, framework="pt") as opened:
        save_file(tensors, folder / "cut.safetensors", metadata=opened.metadata())
    cut = Workflow(base)
    cut.layers(cut.add("SeDialectLoad", file="cut.safetensors"), "cut")
    assert "'blocks.0.norm3.bias' is missing" in server.error(cut.nodes)
    graph.layers(graph.add("SeDialectLoad", file="(from the Hub repository below)", repository=""), "refused")
    assert "write the repository" in server.error(graph.nodes)
    plain = Workflow(base)
    plain.add("SeDialectSave", model=plain.model(), filename_prefix="x", names="ComfyUI")
    assert "not quantized by SeDialect" in server.error(plain.nodes)


def test_every_linear_in_the_blocks_of_every_family_is_quantized(server, graph):
    """No table knows most of these classes: rules on names do."""
    node = graph.add("SeDialectTestFamilies")
    found = json.loads(server.run(graph.nodes).text(node[0]))
    assert len(found) == 12 and all(family["blocks"] >= 10 for family in found.values())
    assert {name: family["left"] for name, family in found.items() if family["left"]} == {}


def test_memory_of_quantizing_on_the_fly_and_of_loading(server, base):
    """Peaks of the whole process over what it held before; docs/comfyui.md has the figures of a larger model."""
    weights = (base / "models" / "diffusion_models" / "wide.safetensors").stat().st_size
    taken = {}
    for name in ("fly", "loaded"):
        server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(3)
        graph = Workflow(base)
        before = json.loads(server.run({"1": {"class_type": "SeDialectTestMemory", "inputs": {}}}).text("1"))
        if name == "fly":
            model = graph.quantize(graph.model("wide.safetensors"))
            graph.add("SeDialectSave", model=model, filename_prefix="diffusion_models/wide", names="ComfyUI")
        else:
            model = graph.add("SeDialectLoad", file="wide_00001_.safetensors")
        node = graph.add("SeDialectTestMemory", model=model)
        after = json.loads(server.run(graph.nodes).text(node[0]))
        taken[name] = after["VmHWM"] - before["VmRSS"]
    print({name: f"{count / weights:.2f} of the 16-bit file" for name, count in taken.items()})
    assert taken["loaded"] < taken["fly"] and taken["loaded"] < 0.8 * weights


def test_help_translations_and_examples_are_served(server):
    for node in ("Quantize", "Load", "Save", "Formatbook", "Report", "Compare"):
        assert b"#" in server.fetch(f"/extensions/sedialect/docs/SeDialect{node}.md")
    words = server.get("/i18n")
    for language in ("en", "zh", "ja"):
        assert words[language]["nodeDefs"]["SeDialectQuantize"]["display_name"]


def test_names_of_the_bundled_model_go_both_ways(reference):
    names = [name for name in reference.state_dict() if not name.startswith("rope.")]
    assert [to_diffusers(to_authors(name)) for name in names] == names
