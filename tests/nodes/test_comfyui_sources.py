"""Files that another quantizer has stored, behind ComfyUI's own loader in a real ComfyUI: refused with the file to take
instead, or decoded and quantized. COMFYUI_DIR names it, as for test_comfyui.py; COMFYUI_GGUF, a checkout of ComfyUI-GGUF."""

import os
import shutil
from pathlib import Path

import comfyui_stored
import pytest
import torch
from comfyui_server import COMFYUI, FLAGS, Server, needs_comfyui, python_of_comfyui
from comfyui_workflows import DEMO, Workflow, assert_near, base_folder, distance, samples
from safetensors.torch import load_file

pytestmark = needs_comfyui
GGUF = os.environ.get("COMFYUI_GGUF")
PREFIX = "wan2.1_t2v_bundled"
# What a file is called, how it comes to be, and what ComfyUI calls the kind.
KINDS = {
    "fp8_scaled": (lambda *files: comfyui_stored.stored(*files, "float8_e4m3fn"), "FP8E4M3"),
    "fp8_old": (comfyui_stored.stored_in_the_old_way, "FP8E4M3"),
    "fp8_plain": (comfyui_stored.stored_plainly, "float8_e4m3fn"),
    "nvfp4": (lambda *files: comfyui_stored.stored(*files, "nvfp4"), "NVFP4"),
    "mxfp8": (lambda *files: comfyui_stored.stored(*files, "mxfp8"), "MXFP8"),
    "int8": (lambda *files: comfyui_stored.stored(*files, "int8_tensorwise"), "INT8"),
    "int4_convrot": (lambda *files: comfyui_stored.stored(*files, "convrot_w4a4"), "ConvRotW4A4"),
    "int4_w4a8": (lambda *files: comfyui_stored.stored(*files, "asym_w4a8_int8"), "AsymW4A8Int8"),
}


@pytest.fixture(scope="module", autouse=True)
def stored(base: Path) -> None:
    """Files of all kinds, beside the one that they were made from."""
    models = base / "models" / "diffusion_models"
    for kind, (write, _) in KINDS.items():
        write(models / DEMO, models / f"{PREFIX}_{kind}.safetensors")


def quantized(graph: Workflow, kind: str, decoded: bool = False, **settings: object) -> list:
    file = f"{PREFIX}_{kind}_decoded.safetensors" if decoded else f"{PREFIX}_{kind}.safetensors"
    return graph.quantize(graph.model(file), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused_with_the_file_to_load_instead(server, graph, kind):
    graph.keep(graph.sample(quantized(graph, kind)), "refused")
    message = server.error(graph.nodes)
    assert f"quantized already ({KINDS[kind][1]}); load its 16-bit checkpoint instead, {PREFIX} with fp16 or bf16" in message
    assert "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged" in message and "quantized_source" in message


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_it_gives_the_codes_of_the_decoded_weights(server, graph, kind):
    """The same as a file with the decoded weights in float32, layer by layer."""
    made = [quantized(graph, kind, quantized_source="decode"), quantized(graph, kind, decoded=True)]
    files = [graph.layers(model, f"{kind}_{number}") for number, model in enumerate(made)]
    report = graph.add("SeDialectReport", model=made[0])
    outcome = server.run(graph.nodes)
    assert f"the weights were {KINDS[kind][1]}: decoded to 16 bit first, so they are rounded twice" in outcome.text(
        report[0]
    )
    found, expected = (load_file(path) for path in files)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if key.endswith("|y"):
            assert_near(found[key], tensor, exactly=1e-5, roughly=2**-7)
        else:
            assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("kind", ["fp8_scaled", "fp8_plain"])
def test_it_samples_is_saved_and_takes_loras(server, graph, base, kind):
    model = quantized(graph, kind, quantized_source="decode")
    first = graph.keep(graph.sample(model), f"{kind}_sampled")
    changed = graph.keep(graph.sample(graph.lora(model)), f"{kind}_lora")
    graph.add("SeDialectSave", model=model, filename_prefix=f"diffusion_models/{kind}", names="ComfyUI")
    server.run(graph.nodes)
    (file,) = (base / "output" / "diffusion_models").glob(f"{kind}*.safetensors")
    again = Workflow(base)
    loaded = again.add("SeDialectLoad", file=file.name)
    second = again.keep(again.sample(loaded), f"{kind}_loaded")
    third = again.keep(again.sample(again.lora(loaded)), f"{kind}_loaded_lora")
    server.run(again.nodes)
    assert torch.equal(samples(first), samples(second)) and torch.equal(samples(changed), samples(third))
    assert distance(samples(changed), samples(first)) > 0.02


def test_what_rounding_twice_costs(server, graph):
    """One velocity from one noise, against 16 bit: docs/comfyui.md has what this prints with -s."""
    one = {"steps": 1, "latent": graph.latent(frames=13, size=96)}
    plain = graph.keep(graph.sample(graph.model(), **one), "velocity_plain")
    once = graph.keep(graph.sample(graph.quantize(graph.model()), **one), "velocity_once")
    files = {
        kind: [
            graph.keep(graph.sample(graph.model(f"{PREFIX}_{kind}.safetensors"), **one), f"velocity_{kind}"),
            graph.keep(graph.sample(quantized(graph, kind, quantized_source="decode"), **one), f"velocity_{kind}_decoded"),
        ]
        for kind in KINDS
    }
    server.run(graph.nodes)
    best = distance(samples(once), samples(plain))
    print(f"\n| 16 bit | 0.000 | {best:.3f} |")
    for kind, paths in files.items():
        alone, twice = (distance(samples(path), samples(plain)) for path in paths)
        print(f"| {kind} | {alone:.3f} | {twice:.3f} |")
        assert twice < 1.5 * (best**2 + alone**2) ** 0.5, "more than both roundings together"


@pytest.mark.skipif(not GGUF, reason="set COMFYUI_GGUF to a checkout of ComfyUI-GGUF")
def test_gguf_is_decoded_by_its_own_loader(base, tmp_path_factory):
    import gguf

    folder = base_folder(tmp_path_factory.mktemp("gguf"))
    models = folder / "models" / "diffusion_models"
    write_gguf(models / DEMO, models / "wan2.1_bundled-Q8_0.gguf", gguf)
    (folder / "custom_nodes").mkdir(exist_ok=True)
    shutil.copytree(GGUF, folder / "custom_nodes" / "ComfyUI-GGUF")
    with Server(Path(COMFYUI), python_of_comfyui(), folder, *FLAGS) as server:
        refused, graph = Workflow(folder), Workflow(folder)
        source = refused.add("UnetLoaderGGUF", unet_name="wan2.1_bundled-Q8_0.gguf")
        refused.keep(refused.sample(refused.quantize(source)), "gguf_refused")
        assert "quantized already (GGUF); load its 16-bit checkpoint instead" in server.error(refused.nodes)
        source = graph.add("UnetLoaderGGUF", unet_name="wan2.1_bundled-Q8_0.gguf")
        made = graph.quantize(source, quantized_source="decode")
        files = {
            name: graph.keep(graph.sample(model, steps=1), f"gguf_{name}")
            for name, model in (("plain", graph.model()), ("ours", made), ("lora", graph.lora(made)))
        }
        before = graph.quantize(graph.lora(source), quantized_source="decode")
        files["before"] = graph.keep(graph.sample(before, steps=1), "gguf_before")
        server.run(graph.nodes)
    found = {name: samples(path) for name, path in files.items()}
    assert distance(found["ours"], found["plain"]) < 0.3
    assert torch.equal(found["lora"], found["before"]) and distance(found["lora"], found["ours"]) > 0.02


def write_gguf(source: Path, path: Path, gguf) -> None:
    """The linears of the blocks in Q8_0, the rest in float32."""
    writer = gguf.GGUFWriter(path, "wan")
    for key, tensor in load_file(source).items():
        array = tensor.float().numpy()
        if key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
