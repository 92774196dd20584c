"""The layer: what it computes, and what offloading, PEFT and the loaders need it to be."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from sedialect import Formatbook, SeDialectLinear, encode
from sedialect.kernels import ops
from sedialect.sedialect_core.errors import EncodeError, ModelError

PRECISIONS = ("w4a4", "w4a8", "w4a16")


def float_layer(inputs: int = 96, outputs: int = 40, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype)


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def expected(layer: SeDialectLinear, x: torch.Tensor) -> torch.Tensor:
    """float64 product of what the codec says that both sides are."""
    weight = layer.encoded.dequantize(torch.float64)
    if layer.precision == "w4a4":
        activation = encode(x, role="activation", block_size=layer.block_size).dequantize(torch.float64)
    elif layer.precision == "w4a8":
        scale = x.float().abs().amax(-1, keepdim=True) / 448
        activation = (x.float() / scale).to(torch.float8_e4m3fn).double() * scale.double()
    else:
        activation = x.double()
    return activation @ weight.T + (0 if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("block_size", "bias"), [(16, True), (32, False)])
def test_forward_is_the_product_of_both_encodings(precision, block_size, bias, dtype):
    layer = SeDialectLinear.from_linear(float_layer(bias=bias, dtype=dtype), precision=precision, block_size=block_size)
    x = rows(7, 96, dtype=dtype)
    y, wanted = layer(x), expected(layer, x)
    assert y.dtype == dtype and layer.compute_dtype == dtype
    # The honest tolerance: at most twice what plain torch loses in this dtype on a layer of the same shape.
    plain = float_layer(bias=bias, dtype=dtype)
    exact = nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
    torch_loss = (plain(x).double() - exact).norm() / exact.norm()
    assert (y.double() - wanted).norm() / wanted.norm() < 2 * torch_loss


@pytest.mark.parametrize("shape", [(96,), (0, 96), (2, 0, 96), (2, 3, 96), (2, 3, 4, 96)])
def test_any_leading_dimensions_and_zero_rows(shape):
    layer = SeDialectLinear.from_linear(float_layer())
    y = layer(rows(*shape))
    assert y.shape == (*shape[:-1], 40) and y.is_contiguous()


def test_outputs_are_fresh_and_inputs_untouched():
    layer = SeDialectLinear.from_linear(float_layer())
    x = rows(2, 96, 5).transpose(1, 2)
    before = x.clone()
    first, second = layer(x), layer(x)
    first.zero_()
    assert torch.equal(x, before) and second.abs().sum() > 0
    assert torch.equal(layer(x.contiguous()), second)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_stay_so_and_spoil_no_other(precision, bad):
    layer = SeDialectLinear.from_linear(float_layer(), precision=precision)
    x = rows(4, 96)
    clean = layer(x)
    x[2, 7] = bad
    y = layer(x)
    assert not y[2].isfinite().any()
    assert torch.equal(y[[0, 1, 3]], clean[[0, 1, 3]])


def test_parameters_are_bytes_that_nothing_casts_or_trains():
    layer = SeDialectLinear.from_linear(float_layer(dtype=torch.bfloat16))
    shapes = {name: (p.dtype, tuple(p.shape)) for name, p in layer.named_parameters()}
    assert shapes == {
        "weight": (torch.uint8, (40, 48)),
        "weight_meta": (torch.uint8, (40, 6)),
        "weight_scale": (torch.uint8, (40, 4)),
        "bias": (torch.bfloat16, (40,)),
    }
    assert not any(p.requires_grad for p in layer.parameters()) and not list(layer.buffers())
    assert isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (96, 40)
    x = rows(3, 96)
    before = layer.encoded.dequantize()
    layer.to(torch.float32)
    assert layer.weight.dtype == layer.weight_scale.dtype == torch.uint8
    assert torch.equal(layer.encoded.dequantize(), before) and layer(x).dtype == torch.float32


def test_copies_pickles_and_state_dicts_carry_the_weight(tmp_path):
    layer = SeDialectLinear.from_linear(float_layer())
    x, wanted = rows(3, 96), layer(rows(3, 96))
    empty = SeDialectLinear(96, 40, compute_dtype=torch.float32)
    empty.load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    others = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
        empty,
    ]
    for other in others:
        assert torch.equal(other(x), wanted)


def test_what_cannot_be_encoded_is_refused_by_name():
    with pytest.raises(
        EncodeError, match=r"blocks\.0\.ffn\.weight has 24 elements a row, not a multiple of the block size 16"
    ):
        SeDialectLinear.from_linear(nn.Linear(24, 8), name="blocks.0.ffn.weight")


class Foreign(torch.Tensor):
    """A weight of another quantizer, as torchao makes them."""


def test_other_quantizers_get_no_codes_to_round():
    layer = SeDialectLinear.from_linear(float_layer())
    before, x = layer.weight, rows(3, 96)
    wanted = layer(x)
    foreign = nn.Parameter(torch.zeros(40, 96).as_subclass(Foreign), requires_grad=False)
    assert type(foreign) is Foreign
    with pytest.raises(ModelError, match=r"\(96 to 40\) was to be replaced by .*'s Foreign: .*--gemm_quantization none"):
        layer.weight = foreign
    with pytest.raises(ModelError, match=r"\(96 to 40\) was to be taken away"):
        layer.weight = None
    assert layer.weight is before and torch.equal(layer(x), wanted)
    layer.weight = nn.Parameter(before.data, requires_grad=False)  # as loaders and offloading do
    assert torch.equal(layer(x), wanted)


def test_the_operator_keeps_its_contract():
    layer = SeDialectLinear.from_linear(float_layer())
    tables = list(Formatbook.builtin().tables())
    arguments = (rows(5, 96), layer.weight, layer.weight_meta, layer.row_scale, layer.bias, tables, 4, "max")
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(ops.linear_operator, arguments, test_utils=checks)


def test_a_compiled_model_is_one_graph_and_gives_the_same():
    model = nn.Sequential(SeDialectLinear.from_linear(float_layer()), nn.GELU())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = rows(6, 96)
    assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize(
    "settings", [{}, {"candidates": "all"}, {"precision": "w4a16"}, {"precision": "w4a8", "rotation": 32}]
)
def test_autocast_rounds_nothing_that_a_type_was_chosen_for(settings):
    layer = SeDialectLinear.from_linear(float_layer(), **settings)
    x = rows(6, 96).requires_grad_()
    plain = layer(x)
    (wanted,) = torch.autograd.grad(plain.sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), plain)
        (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(found, plain) and torch.equal(gradient, wanted)


LARGE_WEIGHT = """
import pathlib, torch
from sedialect.sedialect_core.codec import encode
torch.set_num_threads(2)
def peak():  # KiB of this process; getrusage would begin with its parent's
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
weight = torch.randn(13824, 5120, dtype=torch.bfloat16)
encode(weight[:64])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = peak()
encode(weight, role="weight")
print((peak() - before) / 2**20)
"""


def test_the_largest_weight_of_wan_encodes_in_2_gib():
    run = subprocess.run([sys.executable, "-P", "-c", LARGE_WEIGHT], capture_output=True, text=True, check=True)
    gibibytes = float(run.stdout)
    codes = 13824 * 5120 * (1 / 2 + 1 / 16) / 2**30  # a byte for each block beside them
    assert codes < gibibytes < 2, "less than codes alone: nothing was measured; what else is taken may lie in memory already"
