"""Layers that read the same input encode it once, and never take the wrong one."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from sedialect import SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.kernels import ops
from sedialect.sedialect_core.shared_input import share_inputs

from . import tiny_models


def projections(count: int = 3) -> list[SeDialectLinear]:
    torch.manual_seed(0)
    layers = [SeDialectLinear.from_linear(nn.Linear(64, 32)) for _ in range(count)]
    share_inputs(("qkv", layer) for layer in layers)
    return layers


@pytest.fixture
def encodings(monkeypatch):
    """Counts calls of `ops.encode`."""
    calls = []
    encode = ops.encode

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return encode(*args, **kwargs)

    monkeypatch.setattr(ops, "encode", counted)
    return calls


@torch.no_grad()
def test_one_encoding_serves_all_and_changes_nothing(encodings):
    layers, x = projections(), torch.randn(5, 64)
    together = [layer(x) for layer in layers]
    assert len(encodings) == 1
    for layer, y in zip(layers, together, strict=True):
        layer.shared_input = None
        assert torch.equal(layer(x), y)


@torch.no_grad()
def test_an_input_that_changed_in_place_is_encoded_again(encodings):
    (first, second, _), x = projections(), torch.randn(5, 64)
    first(x)
    x.mul_(2)
    y = second(x)
    assert len(encodings) == 2
    second.shared_input = None
    assert torch.equal(y, second(x))


@torch.no_grad()
def test_other_inputs_are_encoded_for_themselves(encodings):
    first, second, _ = projections()
    x = torch.randn(5, 64)
    first(x)
    second(x.clone())
    assert len(encodings) == 2


@torch.no_grad()
def test_nothing_is_kept_once_all_have_had_it_or_the_input_is_gone():
    first, second, third = projections()
    x = torch.randn(5, 64)
    first(x), second(x)
    kept = first.shared_input._kept
    assert kept is not None
    operand = weakref.ref(kept[-1].operand)
    del kept
    third(x)
    assert operand() is None and first.shared_input._kept is None
    first(x)
    del x
    gc.collect()
    assert first.shared_input._kept is None


def test_inference_mode_encodes_each_time(encodings):
    layers = projections()
    with torch.inference_mode():
        x = torch.randn(5, 64)
        for layer in layers:
            layer(x)
    assert len(encodings) == 3


@torch.no_grad()
def test_copies_share_among_themselves_only():
    layers, x = nn.ModuleList(projections()), torch.randn(5, 64)
    layers[0](x)
    for twin in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert twin[0].shared_input is twin[1].shared_input is not layers[0].shared_input
        assert twin[0].shared_input._kept is None and layers[0].shared_input._kept is not None


@torch.no_grad()
def test_compiled_graphs_do_without_it():
    layers, x = projections(), torch.randn(5, 64)
    counter = CompileCounter()
    compiled = torch.compile(lambda x: [layer(x) for layer in layers], backend=counter, fullgraph=True)
    for y, wanted in zip(compiled(x), [layer(x) for layer in layers], strict=True):
        assert torch.equal(y, wanted)
    compiled(x + 1)
    assert counter.frame_count == 1


@torch.no_grad()
def test_layers_of_a_model_share_what_its_family_says(encodings):
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    plan = quantize_model(model, SeDialectConfig())
    model(**inputs)
    readers = [layer for layer in plan.quantized if layer.precision == "w4a4"]
    inputs_read = {layer.shared_input or layer.name for layer in readers}
    assert len(encodings) == len(inputs_read) < len(readers)


def test_layers_of_one_key_only_share():
    a, b, c = projections()
    share_inputs([("x", a), ("x", b), (None, c)])
    assert a.shared_input is b.shared_input and c.shared_input is None
    share_inputs([("x", a), ("y", b)])
    assert a.shared_input is None and b.shared_input is None
