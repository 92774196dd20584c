"""Peers in the compensating loop, and the bench of the loop itself."""

import pytest
import torch

from sedialect.bench.costs import calibrating
from sedialect.bench.costs.calibrating import Stage, measure_calibrating, render
from sedialect.bench.costs.compensating import measure_compensating
from sedialect.bench.peers.calibrated import blocks_of, calibrated_weight, rotated
from sedialect.bench.peers.formats import FOUR_OVER_SIX, FP8_ROWS, INT4, MXFP4, NVFP4, PeerLinear
from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.quantize.apply import quantize_layers
from sedialect.sedialect_core.quantize.weights import InputStatistics


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(count, width=192, seed=0):
    return (random(count, 9, seed=seed) @ random(9, width, seed=77) + 0.3 * random(count, width, seed=seed + 1)) * random(
        width, seed=78
    ).exp()


def statistics(x):
    return InputStatistics(x.T @ x / len(x), x.abs().amax(0), x[:10], len(x))


@pytest.mark.parametrize("rotation", [0, 64])
@pytest.mark.parametrize("peer", [NVFP4, FOUR_OVER_SIX, MXFP4, INT4], ids=lambda peer: peer.name)
def test_calibrated_peers_lose_less_on_rows_that_they_did_not_see(peer, rotation):
    weight, seen, unseen = random(32, 192, seed=5), rows(3000), rows(3000, seed=50)
    bias = torch.nn.Linear(192, 32, bias=False)
    bias.weight.data.copy_(weight)
    form = rotated(peer, rotation) if rotation else peer
    plain = PeerLinear(bias, form, weights_only=not rotation)
    calibrated = PeerLinear(
        bias, form, weight=calibrated_weight(weight, statistics(seen), peer, rotation), weights_only=not rotation
    )
    wanted = unseen @ weight.T
    lost = [float((layer(unseen) - wanted).square().sum()) for layer in (plain, calibrated)]
    assert lost[1] < (0.8 if rotation else 0.6) * lost[0]  # rotated peers round activations, too


@pytest.mark.parametrize("peer", [NVFP4, MXFP4, INT4], ids=lambda peer: peer.name)
def test_without_a_choice_of_scales_a_block_is_the_peers_own(peer):
    weight = random(24, 192, seed=6)
    form = blocks_of(peer, weight)
    form.shrinks = (1.0,)
    block, size = weight[:, : form.block_size].T, form.block_size
    form.choose(0, block, torch.eye(size))
    values = torch.stack([form.quantize(block[i]) for i in range(size)], 1)
    assert torch.equal(values, peer.weight(weight)[:, :size])


def test_peers_without_blocks_and_widths_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="FP8 rows cannot be calibrated"):
        blocks_of(FP8_ROWS, random(4, 192, seed=0))
    with pytest.raises(InputError, match="INT4-g64 cannot be calibrated on 96 inputs"):
        blocks_of(INT4, random(4, 96, seed=0))


def test_the_bench_prints_its_table():
    table = measure_compensating(64, 128, 1000, "cpu")
    cells = table.splitlines()[-1].split("|")
    assert cells[1].strip() == "64 x 128"
    assert float(cells[8]) < 0.9 * float(cells[7])


def test_a_models_time_is_reckoned_from_one_block():
    stages = measure_calibrating(torch.device("cpu"), quick=True)
    assert [stage.name for stage in stages][3:] == ["encoding plainly", "encoding with the moments"]
    assert all(stage.bytes is None for stage in stages) and all(stages[n].seconds > 0 for n in (0, 3, 4))
    minutes = [Stage(str(n), seconds, 5e9) for n, seconds in enumerate((6.0, 12.0, 15.0, 20.0, 40.0))]
    text = render(minutes, {"versions": {"torch": "0"}, "device": "none", "date": "today"})
    assert "| 4 | 40.00 | 5.0 |" in text and "none; torch 0; today." in text
    assert "40 blocks: encoding 26.7 minutes (13.3 plainly)" in text  # 40 x 40 s, 40 x 20 s
    assert (
        "branches 1280 minutes, and summing up at every 2nd step 650 minutes more." in text
    )  # 320 and 160 x 40 x 6 s, 40 x 15 s


def test_what_calibrates_a_block_is_what_calibrates_a_pipeline():
    stages = {}

    def note(module, config=None, token_layout=None, *, calibration=None, **rest):
        plan = quantize_layers(module, config, token_layout, calibration=calibration, **rest)
        stages[calibration is not None] = [layer.calibrated for layer in plan.quantized]
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "quantize_layers", note)
        measure_calibrating(torch.device("cpu"), quick=True)
    assert not any(stages[False]) and all(stages[True]) and len(stages[True]) > 5
