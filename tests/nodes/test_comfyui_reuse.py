"""Encoded weights that are used again in a real ComfyUI, and when they are not. COMFYUI_DIR names it."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from comfyui_server import COMFYUI, FLAGS, Server, needs_comfyui, python_of_comfyui
from comfyui_workflows import DEMO, Workflow
from safetensors.torch import load_file

pytestmark = needs_comfyui
AGAIN = "the encoded weights of the run before are used again"


def free(server) -> None:
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)


class Ran(NamedTuple):
    """What a run gave: the layers' tensors and answers, whether codes were used again, and bytes of codes that are kept."""

    layers: dict[str, torch.Tensor]
    again: bool
    kept: list[int]


def run(server, base, name: str, lora: str = "lora.safetensors", strength: float = 1.0, file: str = DEMO, **settings) -> Ran:
    """A LoRA, if one is named, before Quantize."""
    graph = Workflow(base)
    model = graph.lora(graph.model(file), lora, strength) if lora else graph.model(file)
    quantized = graph.quantize(model, **settings)
    path, report = graph.layers(quantized, name), graph.add("SeDialectReport", model=quantized)
    memory = graph.add("SeDialectTestMemory", model=quantized)
    outcome = server.run(graph.nodes)
    return Ran(load_file(path), AGAIN in outcome.text(report[0]), json.loads(outcome.text(memory[0]))["kept"])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


CHANGES = {
    "half": {"strength": 0.5},
    "second": {"lora": "second.safetensors"},
    "live": {"salient_ratio": 0.0, "protected_first": 1},
}


def test_another_strength_or_lora_encodes_nothing_anew_and_answers_the_same(server, base):
    free(server)
    first = run(server, base, "reuse_first")
    assert not first.again and len(first.kept) == 1
    found = {name: run(server, base, f"reuse_{name}", **change) for name, change in CHANGES.items()}
    for name, change in CHANGES.items():
        assert found[name].again and found[name].kept == first.kept, name
        free(server)
        fresh = run(server, base, f"reuse_{name}_fresh", **change)
        assert not fresh.again and same(fresh.layers, found[name].layers), name
    assert not same(found["half"].layers, first.layers) and not same(found["second"].layers, first.layers)


def test_other_codes_are_made_anew_and_take_the_place_of_the_old_ones(server, base):
    free(server)
    before = run(server, base, "reuse_sixteen")
    after = run(server, base, "reuse_thirty_two", block_size="32")
    assert not after.again and len(after.kept) == 1 and after.kept[0] < before.kept[0]
    free(server)
    assert same(run(server, base, "reuse_thirty_two_fresh", block_size="32").layers, after.layers)


def test_what_is_kept_goes_with_the_16_bit_model(base):
    """ComfyUI's usual cache keeps a model that no workflow asks for as long as 128 GB are free; the older one does not."""
    assert COMFYUI is not None
    with Server(Path(COMFYUI), python_of_comfyui(), base, *FLAGS, "--cache-classic") as server:
        assert run(server, base, "reuse_kept").kept
        tiny = run(server, base, "reuse_tiny", lora="", file="tiny_high.safetensors")
        assert len(tiny.kept) == 1 and tiny.kept[0] < 1_500_000, "another file in the loader: the first one's codes are gone"
        free(server)
        memory = server.run({"1": {"class_type": "SeDialectTestMemory", "inputs": {}}}).text("1")
        assert json.loads(memory)["kept"] == [], "/free lets go of them"


@pytest.mark.parametrize("live", [False, True])
def test_two_nodes_of_one_model_do_not_disturb_each_other(server, base, live):
    """They share codes where they can, and each keeps its own settings."""
    free(server)
    graph = Workflow(base)
    model, other = graph.model(), {"products": "int8"} if live else {"precision": "w4a8"}
    pair = [
        graph.layers(graph.quantize(model, **settings), f"pair{number}{live}") for number, settings in enumerate(({}, other))
    ]
    server.run(graph.nodes)
    for path, settings in zip(pair, ({}, other), strict=True):
        free(server)
        alone = Workflow(base)
        single = alone.layers(alone.quantize(alone.model(), **settings), f"{path.stem}_alone")
        server.run(alone.nodes)
        assert same(load_file(path), load_file(single))
