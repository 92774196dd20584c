"""Peers against their specifications: known values, and readings that are written element by element."""

import math

import pytest
import torch
from torch import nn

from sedialect.bench.peers import formats as peers
from sedialect.bench.peers.formats import PEERS, Bits, PeerLinear
from sedialect.bench.smoothing import power_of_two_scale
from sedialect.sedialect_core.formatbook import Formatbook

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
BOOK = Formatbook.builtin("dialectfp4-16").half_units.tolist()
# Relative squared errors of Gaussian blocks in thousandths, as an independent emulation in NumPy gave them.
GAUSSIAN = {"MXFP4-32": 13.27, "DialectFP4-16 B=16, two-stage": 8.37, "DialectFP4-16 B=16, table": 7.46}
GAUSSIAN |= {"DialectFP4-16 B=32, two-stage": 9.83, "DialectFP4-16 B=32, table": 8.77, "NVFP4-16": 9.10}


def peer(name: str) -> peers.Peer:
    return next(peer for peer in PEERS if peer.name == name)


def nearest_even(value: float) -> float:
    """The E2M1 number nearest to a magnitude; of two, the one whose mantissa bit is 0, that is an even index."""
    best = min(abs(candidate - value) for candidate in E2M1)
    tied = [index for index, candidate in enumerate(E2M1) if abs(candidate - value) == best]
    return E2M1[next(index for index in tied if len(tied) == 1 or index % 2 == 0)]


def test_e2m1_rounds_to_the_nearest_even():
    grid = torch.arange(0, 64) / 8  # every value, tie and saturating magnitude of the format
    wanted = torch.tensor([nearest_even(value) for value in grid.tolist()])
    assert torch.equal(peers.e2m1(grid), wanted) and torch.equal(peers.e2m1(-grid), -wanted)
    assert peers.e2m1(torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 100.0])).tolist() == [0, 1, 1, 2, 2, 4, 4, 6]


def test_mxfp4_takes_its_exponent_from_the_blocks_maximum():
    block = torch.zeros(32)
    block[:6] = torch.tensor([7.0, 5.0, -2.4, 0.2, 0.25, 0.3])  # floor(log2 7) - 2 = 0: scale 1, and 7 saturates
    wanted = torch.zeros(32)
    wanted[:6] = torch.tensor([6.0, 4.0, -2.0, 0.0, 0.0, 0.5])
    assert torch.equal(peers.mxfp4(block), wanted)
    assert torch.equal(peers.mxfp4(block * 2**-9), wanted * 2**-9)
    assert torch.equal(peers.mxfp4(torch.cat([block, 8 * block])), torch.cat([wanted, 8 * wanted]))


def test_nvfp4_has_two_levels():
    torch.manual_seed(0)
    x = torch.randn(4, 32) * torch.tensor([1.0, 1e-3]).repeat_interleave(16)
    tensor_scale = x.abs().max() / (448 * 6)
    wanted = torch.empty_like(x)
    for row in range(4):
        for start in (0, 16):
            block = x[row, start : start + 16]
            scale = (block.abs().max() / 6 / tensor_scale).to(torch.float8_e4m3fn).float() * tensor_scale
            values = [math.copysign(nearest_even(float(abs(v) / scale)), v) * scale for v in block]
            wanted[row, start : start + 16] = torch.stack(values)
    assert torch.allclose(peers.nvfp4(x), wanted, rtol=1e-6)


def test_nvfp4_scales_each_sample_of_a_batch_by_itself():
    torch.manual_seed(0)
    batch = torch.randn(3, 5, 32) * torch.tensor([1.0, 1e4, 1e-4]).view(3, 1, 1)
    assert torch.equal(peers.nvfp4(batch), torch.cat([peers.nvfp4(sample.unsqueeze(0)) for sample in batch]))


def test_int4_is_symmetric_under_the_groups_maximum():
    x = torch.zeros(64)
    x[:5] = torch.tensor([-7.0, 7.0, 2.5, 3.5, -0.6])  # scale 1
    wanted = torch.zeros(64)
    wanted[:5] = torch.tensor([-7.0, 7.0, 2.0, 4.0, -1.0])
    assert torch.equal(peers.int4(x), wanted)
    assert peers.int4(torch.randn(8, 128)).unique().numel() <= 8 * 2 * 15


def test_the_published_dialects_are_chosen_and_rounded_as_published():
    """BlockDialect's example: pair 2 holds dialects 4 and 5, and dialect 4 maps [8, 11.5) half-units to 10."""
    block = torch.zeros(16)
    block[:4] = torch.tensor([6.5, 5.7, 4.25, -4.6])  # the even dialect is nearer to 5.7 and 4.6, the odd one to 4.25
    assert peers.dialectfp4(block, 16, "two-stage")[:4].tolist() == [6.5, 5.0, 5.0, -5.0]
    block[1:3] = torch.tensor([4.25, 3.6])  # now the odd one wins by 2 to 1
    assert peers.dialectfp4(block, 16, "two-stage")[:4].tolist() == [6.5, 4.0, 4.0, -4.0]
    block[:] = 0
    block[0] = 7.9  # beyond the grid's end
    assert peers.dialectfp4(block, 16, "two-stage")[0] == 7.5
    assert peers.dialectfp4(torch.full((16,), 6.5 * 2**-20), 16, "exact").tolist() == [6.5 * 2**-20] * 16


def test_beneficial_ranges_follow_from_the_dialects():
    for pair, (even_range, odd_range) in enumerate(peers.BENEFICIAL):
        even, odd = BOOK[2 * pair], BOOK[2 * pair + 1]
        first = next(i for i in range(8) if even[i] != odd[i])
        last = max(i for i in range(8) if even[i] != odd[i])
        assert odd_range[0] == odd[first - 1] + odd[first]
        assert even_range[1] == even[last] + even[last + 1]
        if first == last:
            assert odd_range[1] == even_range[0] == even[first] + odd[first]


@pytest.mark.parametrize("select", ["two-stage", "table", "exact"])
@pytest.mark.parametrize("block", [16, 32])
def test_dialects_by_brute_force(select, block):
    torch.manual_seed(1)
    x = torch.randn(6, 2 * block)
    for piece, got in zip(x.view(-1, block), peers.dialectfp4(x, block, select).view(-1, block), strict=True):
        unit = 2.0 ** (math.floor(math.log2(piece.abs().max())) - 3)
        lifted = [abs(v) / unit for v in piece.tolist()]
        q = [min(31, math.floor(2 * v)) for v in lifted]
        tries = []
        for values in BOOK:
            taken = [max(values, key=lambda h, v=v: (-abs(h - (v + 0.5) / 2), h)) for v in q]
            seen = [(v + 0.5) / 2 for v in q] if select == "table" else lifted
            tries.append((sum((a - b) ** 2 for a, b in zip(taken, seen, strict=True)), taken))
        chosen = min(range(16), key=lambda d: (tries[d][0], d))
        if select == "two-stage":
            pair = 15 - min(15, (max(q) + 1) >> 1)
            even, odd = (sum(low <= v < high for v in q) for low, high in peers.BENEFICIAL[pair])
            chosen = 2 * pair + (odd >= even)
        wanted = torch.copysign(torch.tensor(tries[chosen][1]) * unit, piece)
        assert torch.allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_errors_of_gaussian_blocks_are_the_known_ones(name):
    torch.manual_seed(2)
    x = torch.randn(6000, 32)
    error = (peer(name).activation(x) - x).square().sum() / x.square().sum()
    assert 1000 * float(error) == pytest.approx(GAUSSIAN[name], rel=0.03)


@pytest.mark.parametrize("one", PEERS, ids=lambda one: one.name)
def test_peers_keep_what_they_can_hold(one):
    """Zeros stay zeros, shapes stay, signs turn with their input, and powers of two only scale."""
    torch.manual_seed(3)
    x = torch.randn(2, 7, 80)  # 80: no multiple of 32 or 64
    x[0, 0] = 0
    for quantize in (one.weight, one.activation):
        y = quantize(x)
        assert y.shape == x.shape and y.dtype == torch.float32
        assert torch.equal(y[0, 0], torch.zeros(80)) and torch.equal(quantize(-x), -y)
        assert torch.allclose(quantize(x * 2**-8), y * 2**-8, rtol=1e-6)


def test_effective_bits():
    bits = {one.name: one.bits.per_element(1024) for one in PEERS}
    assert bits["MXFP4-32"] == 4.25 and bits["NVFP4-16"] == 4.5 and bits["INT4-g64"] == 4.25
    assert bits["FP8 rows"] == 8 + 32 / 1024
    assert bits["DialectFP4-16 B=16, two-stage"] == 4 + 9 / 16 and bits["DialectFP4-16 B=32, table"] == 4 + 9 / 32
    assert Bits(4, 8, 16, 32).per_element(64) == 5


@pytest.mark.parametrize("one", PEERS, ids=lambda one: one.name)
def test_layers_round_both_sides(one):
    torch.manual_seed(4)
    linear, x = nn.Linear(64, 32), torch.randn(2, 5, 64)
    wanted = one.activation(x).double() @ one.weight(linear.weight.detach()).double().T + linear.bias.double()
    assert torch.allclose(PeerLinear(linear, one)(x).double(), wanted, atol=1e-5)
    given = torch.randn(32, 64)  # encoded elsewhere, as a calibrated weight is
    wanted = one.activation(x).double() @ given.double().T + linear.bias.double()
    assert torch.allclose(PeerLinear(linear, one, weight=given)(x).double(), wanted, atol=1e-4)
    assert PeerLinear(linear, one)(x.bfloat16()).dtype == torch.bfloat16


def test_fp8_rows_round_to_e4m3_under_the_rows_maximum():
    torch.manual_seed(5)
    x = torch.randn(5, 64)
    scale = x.abs().amax(1, keepdim=True) / 448
    assert torch.allclose(peers.fp8_rows(x), (x / scale).to(torch.float8_e4m3fn).float() * scale)


def test_four_over_six_takes_the_end_that_loses_less():
    """Ending at 6, 4.9 of 6 becomes 4 or 6; ending at 4, it becomes 3 of 4 (4.5). By brute force over both ends."""
    torch.manual_seed(6)
    x = torch.randn(6, 64)
    tensor_scale = float(x.abs().max()) / (256 * 6)
    got = peers.four_over_six(x)
    ends = []
    for block, rounded in zip(x.view(-1, 16), got.view(-1, 16), strict=True):
        tries = []
        for end in (6, 4):
            scale = (block.abs().max() / end / tensor_scale).to(torch.float8_e4m3fn).float() * tensor_scale
            tries.append(torch.stack([math.copysign(nearest_even(min(6, float(abs(v) / scale))), v) * scale for v in block]))
        errors = [float((values - block).square().sum()) for values in tries]
        ends.append(errors[1] < errors[0])
        assert torch.allclose(rounded, tries[ends[-1]], rtol=1e-5)
    assert 0 < sum(ends) < len(ends), "both ends are taken"
    wide = torch.randn(6000, 32)
    errors = [float((quantize(wide) - wide).square().sum()) for quantize in (peers.four_over_six, peers.nvfp4)]
    assert errors[0] < 0.95 * errors[1]


def test_smoothed_layers_divide_what_they_read_and_multiply_their_columns():
    torch.manual_seed(7)
    linear, x = nn.Linear(64, 32), torch.randn(5, 64)
    scale = torch.exp2(torch.randint(-3, 4, (64,)).float())
    one = peer("NVFP4-16")
    wanted = one.activation(x / scale) @ one.weight(linear.weight.detach() * scale).T + linear.bias
    assert torch.allclose(PeerLinear(linear, one, smoothing=scale)(x), wanted, atol=1e-5)
    exact = peers.Peer("none", torch.Tensor.float, torch.Tensor.float, Bits(32))
    assert torch.allclose(PeerLinear(linear, exact, smoothing=scale)(x), linear(x), atol=1e-5)


def test_smoothing_scales_are_powers_of_two_around_one():
    torch.manual_seed(8)
    inputs, weights = torch.rand(64) + 0.5, torch.rand(64) + 0.5
    inputs[3] *= 256
    inputs[9] = 0
    scale = power_of_two_scale(inputs, weights)
    assert torch.equal(scale.log2(), scale.log2().round()) and scale[9] == 1
    assert abs(float(scale.log2().mean())) < 0.5 and scale[3] >= 8 * scale.median()
    assert torch.equal(power_of_two_scale(inputs * 2**6, weights), scale), "only proportions count"
