"""Hostile files in ComfyUI's nodes: each a sentence in the node's error, in seconds, and the server goes on."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from comfyui_server import needs_comfyui
from comfyui_workflows import Workflow
from damaged import flip
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sedialect.sedialect_core.checkpoint.record import RECORD, record_digest
from sedialect.sedialect_core.storage.digests import tensor_digest

pytestmark = needs_comfyui
LAYER, BIAS = "blocks.0.self_attn.q", "blocks.0.norm3.bias"
SECONDS = 20.0


@pytest.fixture(scope="module")
def whole(server, base) -> Path:
    """A sound quantized file."""
    graph = Workflow(base)
    made = graph.quantize(graph.model(), formatbook=graph.add("SeDialectFormatbook", book="dialectfp4-16"))
    graph.add("SeDialectSave", model=made, filename_prefix="diffusion_models/sound", names="ComfyUI")
    (path,) = server.run(graph.nodes).saved
    return path


def written(whole: Path, path: Path, tensors=None, settings=None) -> None:
    """The file with other tensors, to which the digests are made to fit, or with another metadata entry `config`."""
    with safe_open(whole, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(whole) | (tensors or {})
    record = json.loads(state[RECORD].numpy().tobytes())
    record["digests"] = {key: tensor_digest(value) for key, value in state.items() if key != RECORD}
    record["digest"] = record_digest(record)
    state[RECORD] = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
    if settings is not None:
        metadata["config"] = settings(json.loads(metadata["config"]))
    save_file(state, path, metadata)


def error(server, base, name: str) -> str:
    """What the node says of a file, before or while it runs."""
    workflow, begun = Workflow(base), time.monotonic()
    workflow.layers(workflow.add("SeDialectLoad", file=name), "hostile")
    status, answer = server.post("/prompt", {"prompt": workflow.nodes})
    if status == 200:
        said = server.wait(answer["prompt_id"]).message
        assert said is not None, "the workflow ended well"
    else:
        said = "; ".join(one["details"] for node in answer["node_errors"].values() for one in node["errors"])
    assert time.monotonic() - begun < SECONDS and server.process.poll() is None
    return said


def size(key: str, value: object):
    """Another size in what ComfyUI builds the network with."""
    return lambda config: json.dumps({**config, "transformer": {**config["transformer"], key: value}})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (size("num_layers", 10**9), "'num_layers' in its settings is 1000000000, and at most 8 belongs to these tensors"),
        (size("dim", 10**9), "'dim' in its settings is 1000000000, and at most 10,000,000"),
        (size("dim", None), "ComfyUI cannot build the "),
        (size("num_heads", 0), "ComfyUI cannot build the "),
        (size("text_dim", "x" * 5000), "where the model has"),
        (size("qk_norm", None), "for which its settings leave no place in WanModel"),
        (size("cross_attn_norm", False), "for which its settings leave no place in WanModel"),
        (lambda config: json.dumps({**config, "transformer": None}), "'transformer' in its settings is None, not an object"),
        (lambda config: "[" * 100_000, "is damaged"),
    ],
)
def test_settings_that_build_no_model_or_one_without_end_are_refused(server, base, whole, settings, says):
    written(whole, base / "models" / "diffusion_models" / "sizes.safetensors", settings=settings)
    said = error(server, base, "sizes.safetensors")
    assert says in said and len(said) < 600 and "\n" not in said


@pytest.mark.parametrize("shape", [(0,), (1, 256), (512,)])
def test_tensors_of_other_shapes_are_a_sentence(server, base, whole, shape):
    written(whole, base / "models" / "diffusion_models" / "shape.safetensors", {BIAS: torch.zeros(shape)})
    said = error(server, base, "shape.safetensors")
    assert "ComfyUI cannot build the " in said and "size mismatch" in said and "\n" not in said


@pytest.mark.parametrize(("suffix", "column", "value"), [("weight_meta", -1, 31), ("weight_scale", -1, 255)])
def test_forged_codes_are_refused(server, base, whole, suffix, column, value):
    forged = load_file(whole)[f"{LAYER}.{suffix}"].clone()
    forged[..., column] = value
    written(whole, base / "models" / "diffusion_models" / "codes.safetensors", {f"{LAYER}.{suffix}": forged})
    assert f"{LAYER}.{suffix}" in error(server, base, "codes.safetensors")


def test_flipped_bits_cut_files_and_names_that_count_oddly_are_refused_and_the_sound_file_still_loads(server, base, whole):
    folder = base / "models" / "diffusion_models"
    for name, change in (
        ("flipped.safetensors", lambda path: flip(path, path.stat().st_size - 1000)),
        ("cut.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1000])),
        ("gguf.safetensors", lambda path: path.write_bytes(b"GGUF\x03" + bytes(5000))),
    ):
        shutil.copy(whole, folder / name)
        change(folder / name)
        said = error(server, base, name)
        assert name.partition(".")[0] in said and len(said) < 600
    shutil.copy(whole, folder / "m-00001-of-²²²²².safetensors")
    for name in ("m-00001-of-²²²²².safetensors", whole.name):
        sound = Workflow(base)
        sound.layers(sound.add("SeDialectLoad", file=name), "sound")
        server.run(sound.nodes)


def test_files_of_other_quantizers_and_ours_in_comfyuis_own_loader_are_refused(server, base, whole):
    folder = base / "models" / "diffusion_models"
    fp8 = {f"{LAYER}.weight": torch.zeros(32, 32).to(torch.float8_e4m3fn), f"{LAYER}.scale_weight": torch.ones(1)}
    save_file(fp8, folder / "fp8.safetensors")
    assert "is not quantized by sedialect" in error(server, base, "fp8.safetensors")
    own = Workflow(base)
    own.keep(own.sample(own.add("UNETLoader", unet_name=whole.name, weight_dtype="default"), steps=1), "own")
    said = server.error(own.nodes)  # dynamic VRAM takes tensors of any size, and its layers then find that they do not fit
    assert "size mismatch" in said or "cannot be multiplied" in said
