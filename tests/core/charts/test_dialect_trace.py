"""What is recorded beside a run is what the layers did in it."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines
import torch

from sedialect.sedialect_core.charts.trace import evidence, tracing
from sedialect.sedialect_core.codec import encode

GRID = (2, 2, 3)  # latents of 2 x 4 x 6 in patches of 1 x 2 x 2


@pytest.fixture(scope="module")
def traced():
    pipe, arguments = tiny_pipelines.build("wan")
    pipe.enable_sedialect(progress=False)
    seen = {}

    def keep(layer, args):
        seen.setdefault("inputs", []).append(args[0].detach().clone())

    plain = tiny_pipelines.generate(pipe, arguments, steps=3)
    hooks = hooks_of(pipe.transformer)
    handle = pipe.transformer.blocks[1].attn1.to_q.register_forward_pre_hook(keep)
    with tracing({"transformer": pipe.transformer}, steps=3) as trace:
        watched = tiny_pipelines.generate(pipe, arguments, steps=3)
    handle.remove()
    assert torch.equal(plain, watched), "looking changes nothing"
    assert hooks_of(pipe.transformer) == hooks, "no hook is left behind"
    return pipe, trace, seen["inputs"]


def hooks_of(model):
    return [list(module._forward_pre_hooks.values()) for module in model.modules()]


def test_every_quantized_layer_has_its_weights_and_every_step(traced):
    pipe, trace, _ = traced
    assert trace.grid == GRID and len(trace.steps) == 20 and set(trace.steps) <= set(trace.weights)
    assert all(len(steps) == 3 for steps in trace.steps.values()), "one forward a step, though guidance makes two"
    for name, counts in trace.weights.items():
        assert sum(counts) == pipe.transformer.get_submodule(name.partition(".")[2]).weight_meta.numel()


def test_counts_and_errors_are_those_of_the_encoded_input(traced):
    pipe, trace, inputs = traced
    layer = pipe.transformer.blocks[1].attn1.to_q
    for step, x in zip(trace.steps["transformer.blocks.1.attn1.to_q"], inputs[::2], strict=True):
        encoded = encode(x[-1].float(), role="activation", formatbook=layer.formatbook)
        assert step.counts == torch.bincount((encoded.meta.long() & 31).flatten(), minlength=32).tolist()
        error = (encoded.dequantize() - x[-1]).norm(dim=1) / x[-1].norm(dim=1)
        assert step.maps["error"].shape == GRID
        assert np.allclose(step.maps["error"].ravel(), error.numpy(), rtol=1e-3)


def test_layers_that_read_text_have_counts_and_no_map(traced):
    _, trace, _ = traced
    step = trace.steps["transformer.blocks.0.attn2.to_k"][0]
    assert sum(step.counts) > 0 and step.maps == {}
    video = trace.steps["transformer.blocks.0.attn1.to_q"][0].maps["error"]
    assert 0 < float(video.astype(np.float32).mean()) < 0.5


def test_what_a_guide_knows_becomes_numbers_of_tokens(traced):
    layer = traced[0].transformer.blocks[0].attn1.to_q
    assert evidence(layer, 12) == {}, "nobody guides this layer"
    received, group = torch.rand(2, 3, 12), torch.full((2, 3, 12), -1)
    group[0, 2, :4] = torch.tensor([5, 5, 4, 4])
    choice = torch.full((2, 6, 3), 0xFF, dtype=torch.uint8)
    choice[0, 5], choice[0, 4] = torch.tensor([0b11, 0b11, 0b110]), torch.tensor([0b1100, 0b110, 0b1100])
    groups = SimpleNamespace(group=group, choice=choice)
    layer.guide = SimpleNamespace(attention=SimpleNamespace(block=SimpleNamespace(received=received), groups=groups))
    try:
        found = evidence(layer, 12)
        assert evidence(layer, 13) == {}, "a layer that reads other tokens"
    finally:
        layer.guide = None
    assert torch.equal(found["saliency"], received[0, -1]) and torch.equal(found["group"], group[0, -1])
    assert found["shapes"].tolist() == [0b11, 0b11, 0b1100, 0b1100] + [-1] * 8


def test_what_attention_showed_becomes_maps_of_every_layer_that_reads_the_video():
    pipe, arguments = tiny_pipelines.build("wan")
    settings = {"salient_ratio": 0.25, "salient_by": "attention", "semantic": True, "semantic_window": (1, 2, 2)}
    pipe.enable_sedialect(progress=False, **settings)
    with tracing({"transformer": pipe.transformer}, steps=2) as trace:
        tiny_pipelines.generate(pipe, arguments, steps=2)
    maps = trace.steps["transformer.blocks.0.attn1.to_q"][-1].maps
    assert set(maps) == {"error", "saliency", "group", "shapes"} and all(values.shape == GRID for values in maps.values())
    assert maps["saliency"].min() >= 0 and maps["saliency"].max() > 0 and maps["group"].min() >= -1
