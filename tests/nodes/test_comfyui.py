"""The nodes in a real ComfyUI on the CPU, over its HTTP API. COMFYUI_DIR names it; `make test-comfyui` runs this.

COMFYUI_PYTHON is the interpreter that ComfyUI and the requirements of this pack are installed for.
"""

import json
import threading
import time

import pytest
import torch
from comfyui_server import ON_CPU, needs_comfyui
from comfyui_workflows import DEMO, Workflow, assert_near, distance, samples
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sedialect
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.checkpoint.wan_names import to_authors, to_diffusers
from sedialect.sedialect_core.linear import SeDialectLinear

pytestmark = needs_comfyui


@pytest.fixture(scope="module")
def saved(server, base) -> str:
    """A quantized file, as SeDialect Load names it."""
    graph = Workflow(base)
    graph.add(
        "SeDialectSave", model=graph.quantize(graph.model()), filename_prefix="diffusion_models/saved", names="ComfyUI"
    )
    return server.run(graph.nodes).saved[0].name


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
    single, folder = sorted(outcome.saved)
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
