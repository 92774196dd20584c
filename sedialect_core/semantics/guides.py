"""What a layer is told about its rows: salient tokens, groups, and whether the step is protected.

Guides run in every forward, compiled or not. They read tensors, the shape of their input and settings that never change;
compiled graphs therefore hold for all steps. Layers that read the same input have one guide.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from ...kernels.guidance import RowGuidance
from ...kernels.tables import DialectTables
from ...kernels.transform import UNCHANGED, InputTransform, scale_columns
from ..config import SeDialectConfig
from ..errors import ModelError
from ..formatbook import Formatbook
from ..inspection.placement import Placement, attention_placement, placement_of
from ..linear import Guide
from ..plan.layers import LayerPlan, Plan
from ..settings.table import BY_ATTENTION, CHOSEN_BY_PROFILE
from .attended import AttendedTokens
from .probe import Watched
from .saliency import Encoding, chance, encoding_error, row_norm, salient_count, top_tokens
from .shard import Shard, packed
from .state import BlockState, Flags, GroupState

SPLIT = ("video", "joint", "either", "other")  # streams whose sequences are split where a model's are


@dataclass
class TextGuide:
    """All rows are text: each gets its second term."""

    flags: Flags
    salient: bool
    protects: bool

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        """Guidance for x [..., K]."""
        rows = x.numel() // x.shape[-1]
        salient = torch.arange(rows, dtype=torch.int32, device=x.device) if self.salient else None
        return RowGuidance(salient, protected=self.flags.protected if self.protects else None)


@dataclass
class TokenGuide:
    """Rows of video tokens, alone or with text.

    placement  where the video tokens stand; None: it is not known, and there are no groups
    among      where the tokens stand that are chosen from; None: they are not told apart, and all rows are chosen from alike
    ratio, by  settings `salient_ratio` and `salient_by`
    protects   whether there are protected steps
    attention  what the attention of the layer's block shows, where anything is made of it
    split      whether the input is one of those that are split over processes
    """

    flags: Flags
    formatbook: Formatbook
    encoding: Encoding
    placement: Placement | None
    among: Placement | None
    ratio: float = 0.0
    by: str = "norm"
    protects: bool = False
    attention: AttendedTokens | None = None
    split: bool = False

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        """Guidance for x [..., N, K]; leading axes are samples.

        Raises:
            ModelError: the sequence does not fit the grid.
        """
        x = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x.view(1, 1, -1)
        length = x.shape[1]
        salient = self._salient(x, self._candidates(length), transform) if self.ratio else None
        group, choice = None, None
        if self.attention is not None and self.attention.groups is not None:
            span = self._span(self.placement, length)
            group, choice = self.attention.shared(x, self._tables(x), self.encoding.block_size, transform, *span)
        return RowGuidance(salient, group, choice, self.flags.protected if self.protects else None)

    def _span(self, placement: Placement | None, length: int) -> tuple[int, int]:
        return (0, length) if placement is None else placement.span(length, self.flags.own_tokens)

    def _candidates(self, length: int) -> Placement | None:
        """Where the tokens stand that are chosen from.

        All rows, where nothing but the input decides and it does not fit the grid, or a forward does not tell its grid.
        """
        told = self.by in BY_ATTENTION or (self.among is not None and self.among.fits(length, self.flags.own_tokens))
        return self.among if told else None

    def _salient(self, x: torch.Tensor, among: Placement | None, transform: InputTransform) -> torch.Tensor:
        """Rows of the flattened input, int32 [E]: the chosen video tokens of each sample, and all its text; -1 in place of
        those that another process has."""
        samples, length, _ = x.shape
        start, stop = self._span(among, length)
        rows = torch.arange(samples * length, device=x.device).view(samples, length)
        rest = torch.cat([rows[:, :start], rows[:, stop:]], dim=1) if among is not None and among.others else rows[:, :0]
        if stop == start:
            return rest.flatten().int()
        video, shard = x[:, start:stop], self.flags.shard if self.split else None
        if shard is None:
            chosen = self._chosen(video, transform) + rows[:, start : start + 1]
            return torch.cat([chosen, rest], dim=1).flatten().int()
        total = shard.total(length) if among is None else self.flags.video_tokens
        return torch.cat([rest.flatten().int(), self._chosen_here(video, transform, shard, total, rows[:, start:stop])])

    def _chosen(self, video: torch.Tensor, transform: InputTransform) -> torch.Tensor:
        """Places among the video tokens, int64 [samples, k]."""
        if self.by in CHOSEN_BY_PROFILE and self.attention is not None:
            return self.attention.chosen(video.device)
        return top_tokens(self._score(video, transform), salient_count(self.ratio, video.shape[1]))

    def _chosen_here(
        self, video: torch.Tensor, transform: InputTransform, shard: Shard, total: int, rows: torch.Tensor
    ) -> torch.Tensor:
        """Of the `total` video tokens of all processes the chosen ones that are here, whose rows are `rows`, int64
        [samples, n]; and -1 up to as many as could be here, int32 [samples * min(k, n)]."""
        count = salient_count(self.ratio, total)
        if self.by in CHOSEN_BY_PROFILE and self.attention is not None:
            places = self.attention.chosen(video.device)
        else:
            places = top_tokens(shard.gather(self._score(video, transform).detach(), total), count)
        return packed(shard.mine(places, total), rows, video.shape[0] * min(count, video.shape[1]))

    def _score(self, video: torch.Tensor, transform: InputTransform) -> torch.Tensor:
        if self.by in ("error", "attention-error"):
            error = encoding_error(video, self._tables(video), self.encoding, transform)
            if self.by == "error" or self.attention is None:
                return error
            received = self.attention.received(video.device)
            shard = self.flags.shard
            return error * (received if shard is None else shard.part(received))
        # Outlier channels say little about what encoding loses of a token, once they are equalized.
        return row_norm(scale_columns(video, transform.equalizer, -1)) if self.by == "norm" else chance(video)

    def _tables(self, x: torch.Tensor) -> DialectTables:
        return self.formatbook.tables(x.device)


def is_told(entry: LayerPlan, config: SeDialectConfig) -> bool:
    """Whether a layer of 4-bit activations is told anything about its rows."""
    protects = any(config.protected_steps) and entry.block is not None
    return bool(entry.salient) or entry.grouped or protects


class GuidedLayer(Protocol):
    """What of an encoded layer, which nobody changes, a guide is made from."""

    @property
    def formatbook(self) -> Formatbook: ...
    @property
    def block_size(self) -> int: ...
    @property
    def candidates(self) -> str: ...
    @property
    def in_features(self) -> int: ...


class Told(Protocol):
    """Where guides read what a forward is told: the step hook of a model, or what stands for it elsewhere."""

    flags: Flags
    blocks: dict[str, BlockState]
    groups: list[GroupState]


def watched_block(block: str, plan: Plan, hook: Told) -> Watched:
    """What looks at a block's attention, as the plan says; the state that it fills is the hook's of this block."""
    config, placement = plan.config, attention_placement(plan.token_layout)
    assert isinstance(placement, Placement)
    chooses = config.salient_by in CHOSEN_BY_PROFILE
    state = hook.blocks[block] = BlockState(config.salient_ratio if chooses else 0.0)
    peak, megabytes = config.salient_by == "peak-attention", float(config.profile_megabytes)
    return Watched(hook.flags, placement, config.semantic_quantile, peak, megabytes, state)


def guide_for(entry: LayerPlan, layer: GuidedLayer, plan: Plan, hook: Told) -> Guide:
    """The guide of a layer, by the plan's entry for it."""
    config = plan.config
    protects = any(config.protected_steps)
    if entry.salient == "text" or not (entry.salient or entry.grouped):
        return TextGuide(hook.flags, bool(entry.salient), protects)
    place = placement_of(entry.stream, plan.token_layout)
    placement = place if isinstance(place, Placement) else None
    # Without a profile, tokens of past frames are chosen like those being made, and the grid is not needed.
    history = placement is not None and placement.where == "last" and not placement.others
    guide = TokenGuide(
        hook.flags,
        layer.formatbook,
        Encoding(layer.block_size, layer.candidates),
        placement,
        None if history and entry.salient not in BY_ATTENTION else placement,
        config.salient_ratio if entry.salient else 0.0,
        entry.salient or config.salient_by,
        protects,
        split=entry.stream in SPLIT,
    )
    if entry.block in hook.blocks:
        guide.attention = _attended(entry, layer, config, hook)
    return guide


def _attended(entry: LayerPlan, layer: GuidedLayer, config: SeDialectConfig, hook: Told) -> AttendedTokens:
    """What is made of the attention of the layer's block."""
    attention = AttendedTokens(hook.flags, hook.blocks[entry.block or ""])
    if entry.grouped:
        attention.groups = GroupState(layer.in_features // layer.block_size)
        attention.similarity, attention.megabytes = config.semantic_similarity, float(config.profile_megabytes)
        if config.semantic_sharing == "sub-formatbook":
            attention.books = sub_formatbooks(layer)
        hook.groups.append(attention.groups)
    return attention


def sub_formatbooks(layer: GuidedLayer) -> torch.Tensor:
    """Shapes of each of the book's sub-formatbooks as bits, uint8 [P].

    Raises:
        ModelError: the book has none.
    """
    books = layer.formatbook.sub_formatbooks
    if not books:
        raise ModelError(
            f"formatbook {layer.formatbook.name!r} has no sub-formatbooks, which semantic=True shares; use 'sedialect-32' "
            "or semantic_sharing='dialect'"
        )
    return torch.tensor([sum(1 << shape for shape in shapes) for shapes in books], dtype=torch.uint8)
