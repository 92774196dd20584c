"""Layers that read the same input encode it once, and never take the wrong one."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import open_sora_models
import pytest
import tiny_models
import torch
from torch import nn

from sedialect import SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.kernels import ops
from sedialect.sedialect_core.shared_input import SharedInput, share_inputs

MODELS = {**tiny_models.TINY, **open_sora_models.OPEN_SORA}


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


EXTRA = torch.__version__.startswith("2.6.")  # that torch also returns what was kept for a moment while it traced


class Graphs:
    """A compiler's back end that runs graphs as they are, and counts those that were made and the encodings in them."""

    def __init__(self) -> None:
        self.encodings: list[int] = []
        self.outputs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        self.encodings.append(sum(node.target is torch.ops.sedialect.encode.default for node in graph.graph.nodes))
        self.outputs = len(graph.graph.output_node().args[0])
        return graph.forward


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiled_graphs_encode_once_and_keep_nothing(mode):
    layers, graphs = projections(), Graphs()

    def read(x: torch.Tensor) -> list[torch.Tensor]:
        x = x * 2
        return [layer(x) for layer in layers]

    compiled = torch.compile(read, backend=graphs, fullgraph=True)
    with mode():
        for _ in range(3):
            x = torch.randn(5, 64)
            for y, wanted in zip(compiled(x), read(x), strict=True):
                assert torch.equal(y, wanted)
    assert graphs.encodings == [1] and graphs.outputs == 3 + EXTRA
    assert layers[0].shared_input._traced is None and layers[0].shared_input._served == 0


@torch.no_grad()
def test_graphs_keep_nothing_either_where_members_read_something_else():
    """As in blocks whose feed-forward half reads what attention reads a copy of."""
    layers, graphs = projections(4), Graphs()

    def read(x: torch.Tensor) -> list[torch.Tensor]:
        first = layers[3](x)
        x = torch.cat([x, x])
        return [first, *(layer(x) for layer in layers[:3])]

    compiled = torch.compile(read, backend=graphs, fullgraph=True)
    for _ in range(3):
        compiled(torch.randn(5, 64))
    assert graphs.encodings == [2] and graphs.outputs == 4 + EXTRA and layers[0].shared_input._traced is None


@torch.no_grad()
def test_a_member_that_graphs_leave_out_costs_time_only():
    layers, graphs = projections(), Graphs()
    compiled = torch.compile(lambda x: [layer(x) for layer in layers[:2]], backend=graphs, fullgraph=True)
    for _ in range(4):
        x = torch.randn(5, 64)
        for y, wanted in zip(compiled(x), [layer(x) for layer in layers[:2]], strict=True):
            assert torch.equal(y, wanted)
    assert max(graphs.encodings) == 1 and len(graphs.encodings) <= 2


@torch.no_grad()
def test_a_graph_that_breaks_between_members_changes_nothing():
    layers, graphs = projections(), Graphs()

    def read(x: torch.Tensor) -> list[torch.Tensor]:
        x = x * 2
        first = layers[0](x)
        torch._dynamo.graph_break()
        return [first, *(layer(x) for layer in layers[1:])]

    compiled = torch.compile(read, backend=graphs)
    for _ in range(3):
        x = torch.randn(5, 64)
        for y, wanted in zip(compiled(x), [layer(x * 2) for layer in layers], strict=True):
            assert torch.equal(y, wanted)
    assert len(graphs.encodings) == 2 and layers[0].shared_input._traced is None


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_graphs_rely_on_holds_in_every_family(name, monkeypatch):
    """Each member is called once in a forward, and whatever is read twice is not changed in between."""
    seen: dict[SharedInput, list[tuple[int, torch.Tensor, int]]] = {}
    encoded = SharedInput.encoded

    def watched(self, x, encode, reader):
        seen.setdefault(self, []).append((reader, x, x._version))
        return encoded(self, x, encode, reader)

    monkeypatch.setattr(SharedInput, "encoded", watched)
    model, inputs = MODELS[name]()
    quantize_model(model, SeDialectConfig())
    model(**inputs)
    for shared, calls in seen.items():
        assert sorted(reader for reader, _, _ in calls) == list(range(shared.members))
        versions = {}
        for _, x, version in calls:
            assert versions.setdefault(id(x), version) == version


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
