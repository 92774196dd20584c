"""Equalized layers in whole pipelines: offloaded, compiled, copied."""

import copy

import pytest
import torch
from offloads import (
    OFFLOADS,
    compile_blocks,
    compile_whole,
    group_offload_to_disk,
    is_written,
    sequential_offload,
    unchanged,
)
from quantized_pipelines import layers
from tiny_pipelines import build, generate

from sedialect import SeDialectLinear, encode
from sedialect.bench.outliers import plant_outliers

FAMILIES = ("wan", "hunyuan")


def equalized(family: str = "wan", **settings):
    """A tiny pipeline with outliers, quantized: layers of every kind that may be equalized are."""
    pipe, arguments = build(family)
    plant_outliers(pipe.transformer, 32)
    pipe.enable_sedialect(progress=False, **settings)
    found = exponents(pipe.transformer)
    assert len(found) > 5 and any(layer.shared_input for layer in found)
    return pipe, arguments


def exponents(model: torch.nn.Module) -> dict[SeDialectLinear, torch.Tensor]:
    return {layer: layer.weight_equalizer for layer in layers(model) if layer.weight_equalizer is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("apply", [apply for variants in OFFLOADS.values() for apply in variants])
def test_offloading_changes_nothing(apply, family, tmp_path):
    pipe, arguments = equalized(family)
    before = generate(pipe, arguments)
    apply(pipe, tmp_path)
    for _ in range(2):
        assert unchanged(apply, generate(pipe, arguments), before)


def test_exponents_are_offloaded_with_their_weights(tmp_path):
    pipe, _ = equalized()
    sequential_offload(pipe, tmp_path)
    assert {e.device.type for e in exponents(pipe.transformer).values()} == {"meta"}
    pipe, _ = equalized()
    group_offload_to_disk(pipe, tmp_path)
    assert is_written(pipe.transformer, tmp_path)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("apply", "salient_by"), [(compile_whole, "error"), (compile_whole, "norm"), (compile_blocks, "error")]
)
def test_compiled_models_are_one_graph_and_give_the_same(apply, salient_by):
    pipe, arguments = equalized(salient_by=salient_by)
    before = generate(pipe, arguments, 4)
    apply(pipe)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = generate(pipe, arguments, 4)
    assert torch.equal(found, before) if apply is compile_whole else torch.allclose(found, before, rtol=0, atol=5e-3)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] >= 1


@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_that_differ_in_exponents_are_compiled_without_breaks():
    pipe, arguments = equalized()
    for layer in layers(pipe.transformer.blocks[0]):
        weight = layer.dequantize(torch.float32)
        layer.store(encode(weight, formatbook=layer.formatbook, block_size=layer.block_size))
    assert not exponents(pipe.transformer.blocks[0]) and exponents(pipe.transformer.blocks[1])
    before = generate(pipe, arguments)
    compile_blocks(pipe)
    assert torch.allclose(generate(pipe, arguments), before, rtol=0, atol=5e-3)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_copy_gives_the_same_and_has_exponents_of_its_own():
    pipe, arguments = equalized()
    before = generate(pipe, arguments)
    original, twin = pipe.transformer, copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for e in exponents(original).values():
            e.zero_()
    assert not torch.equal(generate(pipe, arguments), before)
    pipe.transformer = twin
    assert torch.equal(generate(pipe, arguments), before)
    shared = {id(layer.shared_input) for layer in layers(original) if layer.shared_input}
    assert shared and not shared & {id(layer.shared_input) for layer in layers(twin)}
