"""Which rows get a second term in an engine. Needs no engine."""

from types import SimpleNamespace

import pytest
import torch

from sedialect import SeDialectConfig, SeDialectLinear, TokenLayout
from sedialect.sedialect_core.engines.row_guides import SlicedGuide, check_served, guide_of, shard_of_group
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.plan.layers import LayerPlan, Plan
from sedialect.sedialect_core.semantics.shard import Shard


class Others(Shard):
    """Two processes, of which the other's scores are known."""

    theirs: torch.Tensor

    def add_up(self, part):
        return part + self.theirs


def planned(config, stream="video", order="video"):
    entry = LayerPlan("ffn", "feed_forward", 64, 32, "w4a4", 16, "", "blocks.0", stream, salient=config.salient_by)
    return entry, Plan("Model", "Family", config, (entry,), TokenLayout(order, (1, 2, 2)))


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"semantic": True}, '"semantic": false'),
        ({"salient_by": "attention"}, '"salient_by": "norm"'),
        ({"protected_steps": (1, 0)}, r'"protected_steps": \[0, 0\]'),
        ({"attention": "8bit"}, '"attention": "16bit"'),
    ],
)
def test_settings_that_need_attention_or_steps_are_refused_with_the_option_that_serves(settings, remedy):
    with pytest.raises(ModelError, match=f"{next(iter(settings))}=.*--diffusion-quantization-config '.*{remedy}}}'"):
        check_served(SeDialectConfig(**settings))


def test_settings_of_tokens_that_are_not_used_are_no_obstacle():
    check_served(SeDialectConfig(salient_by="attention", salient_ratio=0.0))
    check_served(SeDialectConfig())


def test_tokens_are_chosen_among_all_rows():
    entry, plan = planned(SeDialectConfig())
    guide = guide_of(entry, SeDialectLinear(64, 32), plan)
    x = torch.randn(2, 8, 64)
    expected = x.norm(dim=2).topk(2, dim=1).indices + torch.tensor([[0], [8]])
    assert sorted(guide(x).salient.tolist()) == sorted(expected.flatten().tolist())


def test_text_in_the_sequence_is_refused():
    entry, plan = planned(SeDialectConfig(), "joint", "text_video")
    with pytest.raises(ModelError, match='ffn reads text and video in one sequence.*"salient_ratio": 0'):
        guide_of(entry, SeDialectLinear(64, 32), plan)


@pytest.mark.parametrize("by", ["norm", "error"])
def test_processes_that_have_some_channels_choose_by_the_sum_over_all(by):
    config = SeDialectConfig(salient_by=by)
    entry, plan = planned(config)
    torch.manual_seed(5)
    x = torch.randn(1, 32, 64)
    x[:, ::2, :32] *= 3  # the halves of the channels have other tokens that stand out
    x[:, 1::2, 32:] *= 3.5
    alone = guide_of(entry, SeDialectLinear(64, 32), plan)
    halves = x.chunk(2, dim=2)
    scores = []
    for half in halves:
        guide = guide_of(entry, SeDialectLinear(32, 32), plan)
        score = guide._score(half, SeDialectLinear(32, 32).transform)
        scores.append(score.square() if by == "norm" else score)
    for half, other in zip(halves, reversed(scores), strict=True):
        shard = Others("group", 0, 2)
        shard.theirs = other
        guide = guide_of(entry, SeDialectLinear(32, 32), plan, columns=shard)
        assert isinstance(guide, SlicedGuide)
        chosen = guide(half).salient.sort().values
        assert torch.equal(chosen, alone(x).salient.sort().values)
        assert not torch.equal(chosen, guide_of(entry, SeDialectLinear(32, 32), plan)(half).salient.sort().values)


def test_a_group_of_one_process_is_no_group():
    group = SimpleNamespace(group_name="tp")
    assert shard_of_group(SimpleNamespace(world_size=1, rank_in_group=0, device_group=group)) is None
    assert shard_of_group(SimpleNamespace(world_size=2, rank_in_group=1, device_group=group)) == Shard("tp", 1, 2)
