"""Offloading of diffusers and accelerate with quantized layers, and the orders in which it must refuse."""

import pytest
import torch
from offloads import (
    CPU,
    OFFLOADS,
    group_offload,
    group_offload_to_disk,
    is_written,
    model_offload,
    sequential_offload,
    unchanged,
)
from quantized_pipelines import layers, quantized
from tiny_pipelines import build, generate

from sedialect.sedialect_core.errors import ModelError

feature = pytest.mark.feature
FAMILIES = ("wan", "hunyuan")  # with and without a parameter of the model's own: accelerate leaves other buffers behind


NOTES = {
    "Sequential CPU offload": "Takes weights out of memory, so there is nothing left to quantize: enable sedialect first.",
    "Group offload, leaf level": "New layers would miss its hooks: enable sedialect first.",
    "Group offload to disk": "Use a new folder: diffusers reads the files of an earlier run, whatever was in them.",
}


def offloads():
    return [
        pytest.param(apply, id=apply.__name__, marks=feature(name, "first", NOTES.get(name, "")))
        for name, variants in OFFLOADS.items()
        for apply in variants
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("apply", offloads())
def test_offloading_changes_nothing(apply, family, tmp_path):
    pipe, arguments = quantized(family)
    before = generate(pipe, arguments)
    apply(pipe, tmp_path)
    for _ in range(2):
        assert unchanged(apply, generate(pipe, arguments), before)


def test_sequential_and_disk_offloading_take_the_packed_weights_along(tmp_path):
    pipe, _ = quantized("hunyuan")
    sequential_offload(pipe, tmp_path)
    assert {p.device.type for layer in layers(pipe.transformer) for p in layer.parameters()} == {"meta"}
    pipe, _ = quantized("hunyuan")
    group_offload_to_disk(pipe, tmp_path)
    assert is_written(pipe.transformer, tmp_path)


@feature("Model CPU offload", "after")
def test_enabling_after_model_offload():
    wanted = generate(*quantized())
    pipe, arguments = build("wan")
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.enable_sedialect(progress=False)
    assert torch.equal(generate(pipe, arguments), wanted)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        pytest.param(apply, message, id=apply.__name__, marks=feature(name, "after", refused=True))
        for name, variants in OFFLOADS.items()
        for apply in variants
        for message in ["is not in memory .*quantize first" if apply is sequential_offload else "is offloaded by groups"]
        if apply is not model_offload
    ],
)
def test_enabling_after_offloading_layer_by_layer_is_refused(apply, message, tmp_path):
    pipe, _ = build("wan")
    apply(pipe, tmp_path)
    with pytest.raises(ModelError, match=message):
        pipe.enable_sedialect(progress=False)
    assert not layers(pipe.transformer)


@pytest.mark.parametrize("apply", [sequential_offload, group_offload, group_offload_to_disk])
def test_disabling_under_offloading_layer_by_layer_is_refused(apply, tmp_path):
    pipe, arguments = quantized(keep_original=True)
    before = generate(pipe, arguments)
    apply(pipe, tmp_path)
    with pytest.raises(ModelError, match="transformer is offloaded .*call disable_sedialect.. before offloading"):
        pipe.disable_sedialect()
    assert unchanged(apply, generate(pipe, arguments), before)


STREAMS = "With streams it needs a GPU, which diffusers checks."


@feature("Group offload, leaf level", "first", STREAMS)
def test_streamed_group_offload_needs_an_accelerator_of_diffusers_or_changes_nothing():
    pipe, arguments = quantized()
    streams = {"offload_type": "leaf_level", "use_stream": True}
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="stream"):
            pipe.transformer.enable_group_offload(onload_device=CPU, **streams)
        return
    pipe.to("cuda")
    before = generate(pipe, arguments)
    pipe.transformer.enable_group_offload(onload_device=torch.device("cuda"), **streams)
    assert torch.equal(generate(pipe, arguments), before)
