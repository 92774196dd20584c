"""Salient tokens, groups and protected steps in a real ComfyUI on the CPU; COMFYUI_DIR names it, as for test_comfyui.py."""

import json
import os
from pathlib import Path

import pytest
import torch
from comfyui_server import Server, python_of_comfyui
from comfyui_workflows import Workflow, base_folder
from safetensors.torch import load_file

import sedialect
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.integrations.semantics import HOOK
from sedialect.sedialect_core.linear import SeDialectLinear
from sedialect.sedialect_core.wan_keys import to_authors

COMFYUI = os.environ.get("COMFYUI_DIR")
pytestmark = pytest.mark.skipif(not COMFYUI, reason="set COMFYUI_DIR to a ComfyUI, as make test-comfyui does")
BY_NORM = {"salient_ratio": 0.25, "salient_by": "norm", "salient_layers": "all"}
BY_ATTENTION = {**BY_NORM, "salient_by": "attention"}
GROUPS = {"salient_ratio": 0.0, "semantic": "on"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return base_folder(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="module")
def server(base):
    with Server(Path(COMFYUI), python_of_comfyui(), base) as running:
        yield running


@pytest.fixture
def graph(base) -> Workflow:
    return Workflow(base)


def recorded(server, graph, settings: dict, steps: int = 3, model: list | None = None, **more: object) -> tuple[dict, dict]:
    """What guided layers read, were told and answered in a run of the bundled model, and what was said of it."""
    watched = graph.add("SeDialectTestRecord", model=model or graph.quantize(graph.model(), **settings))
    path = graph.base / "temp" / "recorded.safetensors"
    sampled = graph.sample(watched, steps=steps, **more)
    node = graph.add("SeDialectTestRecorded", model=watched, samples=sampled, file=str(path))
    return load_file(path) if (said := json.loads(server.run(graph.nodes).text(node[0]))) else {}, said


@pytest.fixture(scope="module")
def reference():
    """Makes the bundled transformer quantized by sedialect in diffusers."""
    from diffusers import WanTransformer3DModel

    def make(**settings):
        model = WanTransformer3DModel.from_pretrained(demo.MODEL, subfolder="transformer", torch_dtype=torch.float32)
        sedialect.quantize_model(model, sedialect.SeDialectConfig(**settings))
        return model.eval()

    return make


def replayed(model, found: dict) -> list[dict[str, torch.Tensor]]:
    """What the layers of the reference were told when it ran on what ComfyUI's network ran on: a dictionary a forward."""
    told: list[dict[str, torch.Tensor]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, SeDialectLinear) and layer.guide is not None:
            layer.guide = Noting(to_authors(name), layer.guide, told)
    for number in range(int(found["forwards"])):
        told.append({})
        said = {"timestep": found[f"{number}|t"], "encoder_hidden_states": found[f"{number}|context"]}
        with torch.no_grad():
            model(hidden_states=found[f"{number}|x"], **said)
    return told


class Noting:
    def __init__(self, name, guide, told):
        self.name, self.guide, self.told = name, guide, told

    def __call__(self, x):
        guidance = self.guide(x)
        self.told[-1] |= {f"{self.name}|{p}": t.clone() for p, t in guidance._asdict().items() if t is not None}
        return guidance


def test_layers_choose_and_answer_what_the_reference_does(server, graph, reference):
    """Given what they read: with a second term for the tokens of the largest norm, nothing else decides."""
    found, said = recorded(server, graph, BY_NORM)
    assert said["rooms"] == 0 and int(found["forwards"]) == 3
    model = reference(**BY_NORM)
    model.__dict__[HOOK].flags.video_tokens = 32
    layers = {to_authors(name): layer for name, layer in model.named_modules() if isinstance(layer, SeDialectLinear)}
    compared = 0
    for number in range(3):
        for name, layer in layers.items():
            key = f"{number}|{name}"
            x = found[f"{key}|x"]
            assert set(found[f"{key}|salient"].tolist()) == set(layer.guide(x).salient.tolist())
            torch.testing.assert_close(found[f"{key}|y"], layer(x), rtol=1e-5, atol=1e-4)
            compared += 1
    assert compared == 240


def test_the_most_attended_tokens_are_those_of_diffusers(server, graph, reference):
    """Both networks run on the same inputs. A code that flips by a last digit changes what later layers see; up to the first
    attention there is nothing to flip."""
    found, said = recorded(server, graph, BY_ATTENTION)
    told = replayed(reference(**BY_ATTENTION), found)
    assert not said["unseen"] and said["map"].startswith("attention received")
    assert found["map"].shape == (2, 4, 4) and found["map"].min() > 0
    shared = []
    for number, layers in enumerate(told):
        for key in (key for key in layers if key.endswith("|salient")):
            ours, theirs = set(found[f"{number}|{key}"].tolist()), set(layers[key].tolist())
            assert len(ours) == len(theirs)
            if number == 0 and key.startswith("blocks.0.self_attn"):
                assert ours == theirs
            shared.append(len(ours & theirs) / len(ours))
    assert sum(shared) / len(shared) > 0.8, "by chance it would be a quarter"


def test_the_same_groups_are_formed_as_in_diffusers(server, graph, reference):
    found, said = recorded(server, graph, GROUPS)
    told = replayed(reference(semantic=True), found)
    assert not said["unseen"]
    grouped, equal = 0, []
    for number, layers in enumerate(told):
        for key in (key for key in layers if key.endswith("|group")):
            ours = found[f"{number}|{key}"]
            equal.append(float((ours == layers[key]).float().mean()))
            grouped += int((ours >= 0).sum())
            assert number > 0 or (ours == -1).all(), "nothing was seen before the first step"
    assert grouped > 0 and sum(equal) / len(equal) > 0.98
