"""Second terms in a model whose tokens, or whose layers' inputs, are spread over processes: all make the same choice."""

import json
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any, cast

import torch

from ...kernels.guidance import RowGuidance
from ...kernels.transform import UNCHANGED, InputTransform
from ..config import SeDialectConfig
from ..errors import ModelError
from ..inspection.placement import Placement, placement_of
from ..linear import Guide, SeDialectLinear
from ..plan.layers import LayerPlan, Plan
from ..semantics.guides import TokenGuide, guide_for
from ..semantics.shard import Shard
from ..semantics.state import BlockState, Flags, GroupState
from ..settings.table import BY_ATTENTION, UNQUANTIZED


def check_served(config: SeDialectConfig) -> None:
    """Refuse settings that need to see a model's attention or to count its steps: no hook of ours runs in an engine's class.

    Raises:
        ModelError: there is such a setting.
    """
    if config.semantic:
        raise ModelError(
            f"semantic=True groups tokens by attention, which engines do not show; {served_with('semantic', False)}"
        )
    if config.salient_ratio and config.salient_by in BY_ATTENTION:
        raise ModelError(
            f"salient_by={config.salient_by!r} needs attention, which engines do not show; "
            f"{served_with('salient_by', 'norm')}"
        )
    if any(config.protected_steps):
        raise ModelError(
            f"protected_steps={config.protected_steps} needs the number of steps, which engines do not tell; "
            f"{served_with('protected_steps', [0, 0])}"
        )
    if config.attention != UNQUANTIZED:
        raise ModelError(
            f"attention={config.attention!r} changes attention, which engines compute in their own way; "
            f"{served_with('attention', UNQUANTIZED)}"
        )


def served_with(name: str, value: object) -> str:
    """How a server is started with another value of a setting."""
    return f"serve it with --diffusion-quantization-config '{json.dumps({'method': 'sedialect', name: value})}'"


@dataclass
class Told:
    """What stands for a model's step hook: there are no steps here."""

    flags: Flags = field(default_factory=Flags)
    blocks: dict[str, BlockState] = field(default_factory=dict)
    groups: list[GroupState] = field(default_factory=list)


@dataclass
class SlicedGuide(TokenGuide):
    """A guide of a layer that has some columns of its input: a token's score is the sum over all processes."""

    columns: Shard | None = None

    def _score(self, video: torch.Tensor, transform: InputTransform) -> torch.Tensor:
        score = super()._score(video, transform)
        if self.columns is None:
            return score
        return self.columns.add_up(score.square() if self.by == "norm" else score)


@dataclass
class SplitGuide:
    """A guide of a layer that has some of the tokens."""

    guide: Guide
    flags: Flags
    tokens: Shard

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        """Guidance for x [..., N, K]."""
        if self.flags.shard is not self.tokens:  # each thread has its own flags
            self.flags.shard = self.tokens
        return self.guide(x, transform)


def guide_of(
    entry: LayerPlan, layer: SeDialectLinear, plan: Plan, tokens: Shard | None = None, columns: Shard | None = None
) -> Guide:
    """The guide of a layer of an engine.

    Args:
        tokens: the part of the sequence that this process has, where it is split.
        columns: the processes among which the input's channels are split, where they are.

    Raises:
        ModelError: which rows are text is not known.
    """
    place = placement_of(entry.stream, plan.token_layout)
    if entry.salient != "text" and isinstance(place, Placement) and place.others:
        raise ModelError(
            f"{entry.name} reads text and video in one sequence, and where the text stands is not known in an engine; "
            f"{served_with('salient_ratio', 0)}"
        )
    told = Told()
    guide = guide_for(entry, layer, plan, told)
    if not isinstance(guide, TokenGuide):
        return guide
    guide.among = None  # no grid is told, and all rows are the video's
    if columns is not None:
        own: dict[str, Any] = {one.name: getattr(guide, one.name) for one in fields(guide)}
        guide = SlicedGuide(**own, columns=columns)
    return guide if tokens is None else SplitGuide(guide, told.flags, tokens)


def shard_of_group(group: Any) -> Shard | None:
    """A group of processes as vLLM and vLLM-Omni have them; None where it is this process alone."""
    known = cast(SimpleNamespace, group)
    if known.world_size == 1:
        return None
    return Shard(known.device_group.group_name, known.rank_in_group, known.world_size)
