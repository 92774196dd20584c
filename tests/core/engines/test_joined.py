"""Which saved layers an engine's layer is made of, and slices of them. Needs no engine."""

import pytest
import torch
from torch import nn

from sedialect import EncodedTensor, SeDialectConfig, SeDialectLinear
from sedialect.sedialect_core.engines.joined import AXES, join, saved_names
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.plan.layers import LayerPlan

PACKED = {"to_qkv": ["to_q", "to_k", "to_v"]}
SAVED = [f"blocks.0.attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")] + [
    "blocks.0.ffn.net.0.proj",
    "blocks.0.ffn.net.2",
]


def entry(name="to_q", **changes):
    settings = {"precision": "w4a4", "block_size": 16, "reason": "", "rotation": 0, "equalized": ""}
    return LayerPlan(name, "attention", 96, 64, **settings | changes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.0.attn1.to_qkv", ["blocks.0.attn1.to_q", "blocks.0.attn1.to_k", "blocks.0.attn1.to_v"]),
        ("blocks.0.attn1.to_out", ["blocks.0.attn1.to_out.0"]),
        ("blocks.0.ffn.net_0.proj", ["blocks.0.ffn.net.0.proj"]),
        ("blocks.0.ffn.net_2", ["blocks.0.ffn.net.2"]),
        ("blocks.1.attn1.to_qkv", []),
        ("blocks.0.attn2.to_q", []),
    ],
)
def test_names_of_an_engine_and_of_a_file(name, expected):
    assert list(saved_names(name, PACKED, SAVED)) == expected


def test_a_layer_that_is_joined_in_the_file_already_is_found():
    assert saved_names("blocks.0.to_qkv", PACKED, ["blocks.0.to_qkv"]) == ("blocks.0.to_qkv",)


def test_layers_of_which_some_are_quantized_are_refused_by_name():
    with pytest.raises(
        ModelError, match=r"to_q is quantized and blocks\.0\.attn1\.to_v is in 16 bit.*quantize both or neither"
    ):
        saved_names("blocks.0.attn1.to_qkv", PACKED, SAVED[:2])


@pytest.mark.parametrize(
    "changes",
    [{"precision": "w4a8"}, {"rotation": 32}, {"equalized": "weights"}, {"salient": "norm"}, {"shared_input": "text"}],
)
def test_layers_that_are_quantized_in_unlike_ways_are_not_joined(changes):
    with pytest.raises(ModelError, match=f"to_q and to_k run as one layer, but differ in {next(iter(changes))}"):
        join([entry(), entry("to_k", **changes)])


@pytest.mark.parametrize(("rotation", "width"), [(0, 40), (0, 24), (32, 48), (64, 32)])
def test_slices_that_cut_blocks_are_refused(rotation, width):
    with pytest.raises(
        ModelError, match=f"to_q: 96 inputs over {96 // width} processes are {width} each, which cuts its codes"
    ):
        join([entry(rotation=rotation)]).check_columns(width)


def test_a_refusal_says_over_how_many_processes_it_can_be_cut():
    with pytest.raises(ModelError, match="--tensor-parallel-size 2, or split the sequence: --usp 4"):
        join([entry()]).check_columns(24)
    with pytest.raises(ModelError, match="do without tensor parallelism"):
        join([entry(rotation=64)]).check_columns(48)


@pytest.mark.parametrize(("rotation", "width"), [(0, 96), (64, 96), (0, 48), (0, 16), (32, 32)])
def test_slices_between_blocks_are_taken(rotation, width):
    join([entry(rotation=rotation)]).check_columns(width)


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("rotation", [0, 32])
@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_slices_of_what_is_stored_decode_to_slices_of_the_weight(block_size, rotation, equalized, ranks):
    """By the axes alone that vLLM's loaders are told, bit for bit."""
    torch.manual_seed(3)
    rows, columns = 24, 256
    layer = SeDialectLinear(columns, rows, bias=False, block_size=block_size, rotation=rotation, equalized=equalized)
    if layer.weight_equalizer is not None:
        layer.weight_equalizer.copy_(torch.randint(-3, 4, (columns,)))
    layer.store(layer.encode_weight(torch.randn(rows, columns) * torch.linspace(0.01, 3, columns)))
    whole = layer.dequantize(torch.float32)
    for axis, size in enumerate((rows, columns)):
        for rank in range(ranks):
            parts = {name: cut(getattr(layer, name), axes[axis], rank, ranks) for name, axes in AXES.items()}
            stored = [parts[name].contiguous() for name in ("weight", "weight_meta", "weight_scale")]
            settings = {"block_size": block_size, "rotation": rotation, "equalizer": parts["weight_equalizer"]}
            part = EncodedTensor.of_stored(stored, layer.formatbook, **settings)
            assert torch.equal(part.dequantize(torch.float32), whole.narrow(axis, rank * size // ranks, size // ranks))


def cut(tensor, axis, rank, ranks):
    if tensor is None or axis is None:
        return tensor
    size = tensor.shape[axis] // ranks
    return tensor.detach().narrow(axis, rank * size, size)


def test_rows_of_an_encoded_weight_decode_to_rows_of_it():
    torch.manual_seed(3)
    encoded = SeDialectLinear.from_linear(nn.Linear(64, 12), block_size=16).encoded
    assert torch.equal(encoded.rows(4, 9).dequantize(), encoded.dequantize()[4:9])


def test_settings_of_a_joined_layer_make_our_layer():
    joined = join([entry(equalized="weights", rotation=32)])
    layer = SeDialectLinear(96, 64, candidates=SeDialectConfig().candidates, **joined.settings)
    assert (layer.precision, layer.block_size, layer.rotation) == ("w4a4", 16, 32) and layer.weight_equalizer is not None
