"""Arms of the speed bench and its peers: the same layers of the same weights, and the error that each has.

The packages of peers are no dependency; where they are installed, they are held to what they promise.
"""

import math

import pytest
import torch
from speed_trials import CPU, arm, linears
from torch import nn

from sedialect.bench.peers import layers as peer_layers
from sedialect.bench.speed import arms, block_kinds
from sedialect.kernels import ops
from sedialect.sedialect_core.config import SeDialectConfig
from sedialect.sedialect_core.linear import SeDialectLinear
from sedialect.sedialect_core.plan.rules import make_plan


def test_readers_of_one_input_share_its_encoding_and_their_outputs_are_their_own(monkeypatch):
    encoded = []
    monkeypatch.setattr(ops, "encode", lambda *a, encode=ops.encode, **k: encoded.append(a[0]) or encode(*a, **k))
    x = torch.randn(8, 64).bfloat16()
    with torch.no_grad():
        together = arm("w4a4").together(linears(3), rows=8)(x)
        assert len(encoded) == 1
        alone = [arm("w4a4").together([linear], rows=8)(x) for linear in linears(3)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_the_more_is_decomposed_the_smaller_the_error():
    x = torch.randn(200, 64).bfloat16()
    with torch.no_grad():
        exact = arm("BF16").together(linears(), rows=200)(x)
        names = ("w4a4", "w4a4 + 10% decomposed", "w4a4 + 25% decomposed", "w4a8")
        errors = [float((arm(name).together(linears(), rows=200)(x) - exact).norm()) for name in names]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.02 * errors[2]


@pytest.mark.parametrize(("rows", "ratio"), [(1, 0.1), (7, 0.25), (32_760, 0.1), (10, 1.0)])
def test_salient_rows_are_as_many_as_asked_for_and_all_different(rows, ratio):
    salient = arms.FixedRows(rows, ratio, CPU).salient
    assert len(salient.unique()) == len(salient) == math.ceil(ratio * rows)
    assert salient.min() >= 0 and salient.max() < rows and salient.dtype == torch.int32


def test_peers_replace_the_very_layers_that_ours_quantizes():
    class Marked(nn.Linear):
        pass

    def mark(linear: nn.Linear) -> nn.Module:
        return Marked(linear.in_features, linear.out_features)

    for kind in block_kinds.QUICK_BLOCKS:
        ours, peers = (block_kinds.make_model(kind, CPU) for _ in range(2))
        arm("w4a4").model(ours, kind.rows)
        arms.Arm("marked", mark).model(peers, kind.rows)
        kinds = ((ours, SeDialectLinear), (peers, Marked))
        names = [{name for name, one in model.named_modules() if isinstance(one, cls)} for model, cls in kinds]
        assert names[0] == names[1] != set()


def test_guides_know_how_many_rows_each_stream_has():
    kind = next(kind for kind in block_kinds.QUICK_BLOCKS if kind.name == "tiny-single")
    model = block_kinds.make_model(kind, CPU)
    arm("w4a4 + 10% decomposed").model(model, kind.rows)
    plan = {layer.name: layer for layer in make_plan(block_kinds.make_model(kind, CPU), SeDialectConfig()).quantized}
    counts = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SeDialectLinear):
            counts.setdefault(plan[name].stream, set()).add(
                0 if layer.guide is None else len(layer.guide(torch.empty(0)).salient)
            )
    assert counts["joint"] == {math.ceil(0.1 * kind.sequence)} and counts["video"] == {math.ceil(0.1 * kind.rows["video"])}
    assert counts["text"] == counts["vector"] == {0}


def test_models_keep_in_float32_what_diffusers_keeps():
    model = block_kinds.make_model(block_kinds.QUICK_BLOCKS[0], CPU)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["blocks.0.scale_shift_table"] == torch.float32 and dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16


def test_q4_0_is_ggmls_layout():
    """Block by block: a float16 scale, then low nibbles for the first half; values are scale * (number - 8)."""
    torch.manual_seed(0)
    weight = torch.randn(8, 64)
    weight[0, :32] = 0
    packed = peer_layers.q4_0(weight).view(8, 2, 18)
    scale = packed[..., :2].contiguous().view(torch.float16).float()
    numbers = torch.cat([packed[..., 2:] & 15, packed[..., 2:] >> 4], -1).float() - 8
    back = (scale * numbers).view(8, 64)
    step = scale.abs().expand(8, 2, 32).reshape(8, 64)
    assert ((back - weight).abs() <= step * 1.01).all() and torch.equal(back[0, :32], weight[0, :32])
    largest = weight.view(8, 2, 32).abs().argmax(-1, keepdim=True)
    found = back.view(8, 2, 32).gather(-1, largest), weight.view(8, 2, 32).gather(-1, largest)
    assert torch.allclose(*found, rtol=1e-3)


def test_q4_0_is_what_the_gguf_package_makes():
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    wanted = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(peer_layers.q4_0(weight), torch.from_numpy(wanted))


@pytest.mark.parametrize(
    ("name", "package", "most"),
    [
        ("bitsandbytes NF4", "bitsandbytes", 0.12),
        ("GGUF Q4_0", "gguf", 0.1),
        ("SDNQ int8", "sdnq", 0.02),
        ("SDNQ uint4", "sdnq", 0.1),
    ],
)
def test_peers_that_are_installed_run_on_the_same_weights(name, package, most):
    pytest.importorskip(package)
    x = torch.randn(64, 256).bfloat16()
    with torch.no_grad():
        exact = linears(width=256)[0](x)
        error = float((arm(name).together(linears(width=256), 64)(x) - exact).norm() / exact.norm())
    assert 0.001 < error < most
