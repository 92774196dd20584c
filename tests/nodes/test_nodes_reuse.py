"""Codes that are kept for the next run, on a stand-in for ComfyUI. The real one: test_comfyui_reuse.py."""

import gc
import importlib
import sys
from types import ModuleType

import pytest
import torch

from sedialect import Formatbook, SeDialectConfig
from sedialect.sedialect_core.plan.rules import make_plan

BOOK = Formatbook.builtin()


@pytest.fixture
def encoding(monkeypatch):
    comfy, management = ModuleType("comfy"), ModuleType("comfy.model_management")
    management.get_torch_device = lambda: torch.device("cpu")
    management.free_memory = lambda *_: None
    management.throw_exception_if_processing_interrupted = lambda: None
    comfy.model_management = management
    calibration, text = ModuleType("sedialect.nodes.comfy.calibration"), ModuleType("sedialect.nodes.comfy.text")
    calibration.COMPONENT, text.node = "diffusion_model", "1"
    text.running_node = lambda: text.node
    stands = {"comfy": comfy, "comfy.model_management": management}
    stands |= {module.__name__: module for module in (calibration, text)}
    package = importlib.import_module("sedialect.nodes.comfy")
    for name, module in stands.items():
        monkeypatch.setitem(sys.modules, name, module)
        if name.startswith("sedialect."):
            monkeypatch.setattr(package, name.rpartition(".")[2], module, raising=False)
    monkeypatch.delitem(sys.modules, "sedialect.nodes.comfy.encoding", raising=False)
    found = importlib.import_module("sedialect.nodes.comfy.encoding")
    monkeypatch.setattr(found, "give_back_when_gone", lambda model: None)
    yield found
    sys.modules.pop("sedialect.nodes.comfy.encoding", None)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1 = torch.nn.ModuleDict({"to_q": torch.nn.Linear(64, 64), "to_out": torch.nn.Linear(64, 64)})


class Model(torch.nn.Module):
    """As ComfyUI's hold a network."""

    def __init__(self):
        super().__init__()
        self.diffusion_model = torch.nn.Module()
        self.diffusion_model.transformer_blocks = torch.nn.ModuleList(Block() for _ in range(2))


def run(encoding, model, node="1", **settings):
    """The weights, the plan, and what the watch was told."""
    encoding.text.node, told = node, []
    weights = dict(model.diffusion_model.state_dict())
    plan = make_plan(model.diffusion_model, SeDialectConfig(**settings))
    plan = encoding.encode_or_reuse(model, weights, plan, BOOK, lambda *count: told.append(count), None)
    return weights, plan, told


def codes(weights) -> dict[str, torch.Tensor]:
    return {name: weight._qdata for name, weight in weights.items() if hasattr(weight, "_qdata")}


def test_the_same_codes_are_used_again_and_nothing_is_shared_but_they(encoding):
    model = Model()
    first, plan, told = run(encoding, model, equalize=False)
    assert len(codes(first)) == 4 and len(told) == 4 and encoding.KEPT_NOTE not in plan.notes
    again, other, told = run(encoding, model, equalize=False, salient_ratio=0.0, protected_steps=(1, 0), products="int8")
    assert told == [(1, 1)] and encoding.KEPT_NOTE in other.notes
    assert [one.outcome for one in other.layers] == [one.outcome for one in plan.layers]
    for name, kept in codes(again).items():
        assert kept.data_ptr() == codes(first)[name].data_ptr()
        assert again[name] is not first[name], "each MODEL tells its own weights which units multiply them"
    encoding.layout.set_products(again["transformer_blocks.0.attn1.to_q.weight"], "int8")
    third, *_ = run(encoding, model, equalize=False)
    assert third["transformer_blocks.0.attn1.to_q.weight"]._params.products == "auto"


@pytest.mark.parametrize(
    "settings", [{"block_size": 32}, {"precision": "w4a8"}, {"rotation": 64}, {"equalize": False}, {"skip": ("to_out",)}]
)
def test_other_codes_are_made_and_take_the_place_of_the_old(encoding, settings):
    model = Model()
    run(encoding, model)
    weights, plan, told = run(encoding, model, **settings)
    assert (1, 1) not in told and encoding.KEPT_NOTE not in plan.notes
    assert len(encoding.kept_bytes()) == 1
    assert all(torch.equal(codes(run(encoding, model, **settings)[0])[name], kept) for name, kept in codes(weights).items())


def test_weights_that_were_changed_are_encoded_anew(encoding):
    model = Model()
    run(encoding, model)
    with torch.no_grad():
        model.diffusion_model.transformer_blocks[1].attn1["to_q"].weight.mul_(1.1)
    assert (1, 1) not in run(encoding, model)[2]


def test_what_is_kept_goes_with_the_model_and_has_a_bound(encoding):
    model, other = Model(), Model()
    for number in range(6):
        run(encoding, model, node=str(number), block_size=16 if number % 2 else 32)
    assert len(encoding.kept_bytes()) == encoding.MOST
    run(encoding, other, node="x")
    del model
    gc.collect()
    assert len(encoding.kept_bytes()) == 1, "codes of the model that is gone"
    del other
    gc.collect()
    assert encoding.kept_bytes() == []


def test_a_cancelled_encoding_leaves_nothing(encoding, monkeypatch):
    model = Model()
    run(encoding, model)

    def cancel():
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding.comfy.model_management, "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(KeyboardInterrupt):
        run(encoding, model, block_size=32)
    assert encoding.kept_bytes() == []


def test_other_systems_have_nothing_to_give_back(monkeypatch):
    memory = importlib.import_module("sedialect.nodes.comfy.memory")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.give_back() is False


def test_memory_is_given_back_when_the_model_is_gone(monkeypatch):
    memory, given = importlib.import_module("sedialect.nodes.comfy.memory"), []
    monkeypatch.setattr(memory, "_soon", lambda: given.append(1))
    model = Model()
    memory.give_back_when_gone(model)
    memory.give_back_when_gone(model)
    assert given == []
    del model
    gc.collect()
    assert given == [1]
