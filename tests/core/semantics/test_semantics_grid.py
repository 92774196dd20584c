"""Where a model's video tokens stand: layouts that are given, grids that do not fit, forwards that tell no grid."""

import pytest
import tiny_models
import torch
from semantic_settings import ATTENTION, GROUPS
from torch.nn import functional

from sedialect import SeDialectConfig, SeDialectLinear, TokenLayout, quantize_model
from sedialect.sedialect_core.errors import ModelError

pytestmark = pytest.mark.usefixtures("strict")


class Unknown(torch.nn.Module):
    """A plain module that no table knows: self-attention over a video in THW order, and a feed-forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        block = torch.nn.Module()
        block.attention = SelfAttention()
        block.mlp = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64))
        self.blocks = torch.nn.ModuleList([block])

    def forward(self, x, t):
        tokens = x.flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block.attention(tokens)
            tokens = tokens + block.mlp(tokens)
        return tokens


class SelfAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(64, 64) for _ in range(3))
        self.out = torch.nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(2, (2, 32)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_unknown_tokens_are_refused_and_windows_checked():
    block = torch.nn.Module()
    block.attn = torch.nn.Module()
    block.attn.to_q = torch.nn.Linear(32, 32)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([block])
    with pytest.raises(ModelError, match="semantic=True needs to know where the video tokens of Module stand"):
        quantize_model(model, SeDialectConfig(semantic=True))
    wan, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(wan, SeDialectConfig(semantic=True, semantic_window=(2, 3, 2)))
    with pytest.raises(ModelError, match=r"semantic_window is \(2, 3, 2\), and the grid has \(3, 2, 4\) tokens"):
        wan(**inputs)


@torch.no_grad()
def test_a_plain_module_is_profiled_by_the_layout_it_is_given(softmaxes):
    model, x = Unknown(), torch.randn(2, 64, 2, 4, 4)
    with pytest.raises(ModelError, match="pass token_layout"):
        quantize_model(model, SeDialectConfig(**GROUPS))
    layout = TokenLayout("video", patch=(1, 1, 1), sources=("x",))
    plan = quantize_model(model, SeDialectConfig(**{**GROUPS, **ATTENTION}), layout)
    assert all(layer.grouped and layer.salient == "attention" for layer in plan.quantized) and not plan.notes
    model(x, torch.tensor(9.0))
    received = model._sedialect_steps.blocks["blocks.0"].received[0]
    assert torch.allclose(received, softmaxes[0], atol=1e-6)


@torch.no_grad()
def test_a_grid_that_does_not_match_the_sequence_is_refused():
    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**GROUPS), TokenLayout("video", patch=(1, 1, 2)))
    with pytest.raises(ModelError, match="a layer reads 24 tokens where the grid has 48"):
        model(**inputs)


def salient_rows(model: torch.nn.Module, run) -> list[int]:
    """How many rows of each quantized layer's input have a second term in one forward."""
    found = []
    layers = [layer for layer in model.modules() if isinstance(layer, SeDialectLinear) and layer.guide is not None]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, args: found.append(len(layer.guide(args[0]).salient)))
    run()
    return found


@torch.no_grad()
def test_tokens_are_chosen_by_norm_among_all_rows_where_the_grid_is_not_told():
    """What every model runs with by default must not ask for anything but the input."""
    settings = SeDialectConfig(salient_ratio=0.25, salient_by="norm", salient_layers="all")
    model, inputs = tiny_models.TINY["LTXVideoTransformer3DModel"]()
    quantize_model(model, settings)
    del inputs["num_frames"]
    told = salient_rows(model, lambda: model(**inputs, video_coords=torch.rand(2, 3, 24)))
    assert 2 * 6 in told and min(told) > 0

    model, inputs = tiny_models.TINY["WanTransformer3DModel"]()
    quantize_model(model, settings, TokenLayout("video", patch=(1, 1, 2)))
    assert min(salient_rows(model, lambda: model(**inputs))) > 0

    class NoSteps(Unknown):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.blocks[0].mlp(tokens + self.blocks[0].attention(tokens))

    model = NoSteps()
    quantize_model(model, settings)
    assert salient_rows(model, lambda: model(torch.randn(2, 10, 64))) == [2 * 3] * 6


@torch.no_grad()
def test_a_forward_without_its_grid_says_so():
    model, inputs = tiny_models.TINY["LTXVideoTransformer3DModel"]()
    quantize_model(model, SeDialectConfig(**ATTENTION))
    del inputs["num_frames"]
    with pytest.raises(ModelError, match="the token grid is not known: this forward lacks the arguments that tell it"):
        model(**inputs, video_coords=torch.rand(2, 3, 24))
