"""What outlives a call is made of ordinary tensors, whatever mode the call is made under: tables, layers, state."""

import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from sedialect import SeDialectLinear
from sedialect.sedialect_core.formatbook import book

pytestmark = pytest.mark.usefixtures("one_thread")
feature = pytest.mark.feature


def export(layer: nn.Module, x: torch.Tensor) -> None:
    torch.export.export(nn.Sequential(layer), (x,), strict=False)


def under(context):
    def run(layer: nn.Module, x: torch.Tensor) -> None:
        with context():
            layer(x)

    return run


def on_default_device(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.device("meta"):
        layer(x)


def compiled_first(layer: nn.Module, x: torch.Tensor) -> None:
    torch._dynamo.reset()
    with torch.inference_mode():
        torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()


MODES = {
    "export": export,
    "inference_mode": under(torch.inference_mode),
    "a default device": on_default_device,
    "fake tensors": under(lambda: FakeTensorMode(allow_non_fake_inputs=True)),
    "torch.func": lambda layer, x: torch.func.grad(lambda x: layer(x).sum())(x),
    "vmap": lambda layer, x: torch.vmap(layer)(x),
    "torch.compile under inference_mode": compiled_first,
}


@pytest.fixture
def new_process(monkeypatch):
    """No tables yet, as in a process that has just loaded a model."""
    monkeypatch.setattr(book, "_TABLES", {})


@feature("`inference_mode`, `torch.export`, fake tensors, default devices, then training", "first")
@pytest.mark.parametrize("mode", MODES)
def test_a_first_call_under_a_mode_leaves_nothing_of_it_behind(mode, new_process):
    torch.manual_seed(0)
    layer = SeDialectLinear.from_linear(nn.Linear(96, 40))
    x = torch.randn(3, 96)
    wanted = layer(x)
    book._TABLES.clear()
    layer.formatbook.__dict__.pop("half_units", None)
    MODES[mode](layer, x)
    assert book._TABLES, "the tables were made under the mode, else this shows nothing"
    for tables in book._TABLES.values():
        for table in tables:
            assert type(table) is torch.Tensor and not table.is_inference() and table.device.type == "cpu"
    assert torch.equal(layer(x), wanted)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize("context", [torch.inference_mode, contextlib.nullcontext])
def test_layers_made_under_inference_mode_can_be_trained_through(context):
    torch.manual_seed(0)
    from sedialect import SeDialectConfig, quantize_model

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(32, 32)})})])

        def forward(self, x):
            return self.blocks[0]["attn"]["to_q"](x)

    model = Model()
    with context():
        quantize_model(model, SeDialectConfig())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    x = torch.randn(3, 32, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.abs().max() > 0
