"""The study of the channels' order: that its ways are what it calls them."""

import pytest
import torch

from sedialect import Formatbook
from sedialect.bench import ordering
from sedialect.bench.smoothing import power_of_two_scale
from sedialect.cli.main import main
from sedialect.sedialect_core.plan.layers import LayerPlan

PLAN = LayerPlan("blocks.3.ffn.net.2", "feed_forward", 128, 64, "w4a4", 16, "", block="blocks.3")


def layer(sizes: torch.Tensor, weights: torch.Tensor) -> ordering.Layer:
    torch.manual_seed(0)
    rows, weight = torch.randn(256, 128) * sizes, torch.randn(64, 128) * weights
    scale = power_of_two_scale(rows.square().mean(0).sqrt(), weight.square().mean(0).sqrt())
    return ordering.Layer(PLAN, weight, rows, scale)


def test_sorting_and_equalizing_help_where_small_inputs_count():
    book = Formatbook.builtin()
    even = torch.ones(128)
    mixed = torch.tensor([1.0, 1 / 16]).repeat(64)
    alike = ordering.errors(layer(even, even), book)
    assert max(alike.values()) < 1.1 * min(alike.values())
    hidden = ordering.errors(layer(mixed, mixed.reciprocal()), book)  # small inputs that count, for their weights are large
    for way in ("equalized", "sorted"):
        assert hidden[way] < 0.9 * hidden["as they are"]
        assert hidden[way] == pytest.approx(alike["as they are"], rel=0.1)


def test_channels_are_ordered_by_size():
    assert ordering.channel_order(torch.tensor([[1.0, 4.0, -2.0], [-1.0, 0.0, 2.0]])).tolist() == [0, 2, 1]
    assert layer(torch.ones(128), torch.ones(128)).kind == "ffn.net.2"


def test_the_command_prints_both_tables(capsys):
    assert main(["bench", "ordering", "--steps", "2", "--size", "32", "--num-frames", "5", "--every-block", "8"]) == 0
    printed = capsys.readouterr().out
    assert "No outliers planted" in printed and "Outlier channels x32 planted" in printed
    lines = [line for line in printed.splitlines() if line.startswith(("| attn", "| ffn", "| all"))]
    assert len(lines) == 2 * 11, "four and four projections, up and down, and all"
    plain, equalized = (float(cell) for cell in lines[-1].split("|")[2:4])
    assert equalized < plain, "outliers are planted there"
