"""What a network is told of its tokens, forward by forward.

`transformer_options`, which ComfyUI hands to every forward, say which sigma it is at and which conditionings it carries;
attention is seen, and run in fewer bits, through the one place that ComfyUI has for it, in front of whatever another node
has put there. Forwards of different conditionings, windows and sizes have rooms of their own, so that it does not matter
which of them are batched.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ...sedialect_core.errors import ModelError
from ...sedialect_core.inspection import TokenLayout
from ...sedialect_core.inspection.placement import Placement
from ...sedialect_core.plan.layers import Plan
from ...sedialect_core.semantics.attended import AttendedTokens
from ...sedialect_core.semantics.attending import Attending, stayed
from ...sedialect_core.semantics.grouping import Windows, windows_of
from ...sedialect_core.semantics.probe import Seen, Watched
from ...sedialect_core.semantics.state import BlockState, Extents, Flags, GroupState
from ...sedialect_core.semantics.steps import due
from .attention import attend, split_heads, whole_mask
from .steps import Step, step_of

OVERRIDE = "optimized_attention_override"  # the entry of transformer_options that attention is called through
ROOMS = 64  # the least recently used goes; context windows that move have new ones at every step


@dataclass
class Room:
    """What the forwards of one conditioning, window and size have shown in a run.

    blocks    state of each attention that is watched, by block
    groups    state of each input whose tokens are grouped, in the order of the guides
    profiled  the step in which attention was last seen; -1 for none
    grouping  whether groups are to be formed from it in the next forward
    """

    blocks: dict[str, BlockState]
    groups: list[GroupState]
    windows: Windows
    profiled: int = -1
    grouping: bool = False


@dataclass
class Place:
    """Where in a network the forward is, told by hooks on its layers: models that share the network share them, too."""

    block: str | None = None
    """Whose keys have just been made."""
    hooked: set[str] = field(default_factory=set)
    """Layers that tell."""

    def follow(self, network: torch.nn.Module, block: str, layer: str) -> None:
        """Learn from the layer that makes the keys of a block's self-attention that the next attention is this block's."""

        def enter(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self.block = block

        if layer not in self.hooked:
            self.hooked.add(layer)
            network.get_submodule(layer).register_forward_pre_hook(enter)


@dataclass
class Map:
    """Saliency of the video tokens of a run, float32 [T, H, W], and what its numbers are."""

    values: torch.Tensor
    says: str


@dataclass
class EnterBlock:
    """What `Tokens.enter_block` gives. No closure: copies of a model would share that."""

    tokens: "Tokens"
    name: str

    def __call__(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.tokens.entered = self.name


@dataclass
class Tokens:
    """What one network is told of its tokens; it stands for the library's step hook. `attach` makes it."""

    plan: Plan
    layout: TokenLayout
    flags: Flags = field(default_factory=Flags)
    blocks: dict[str, BlockState] = field(default_factory=dict)
    groups: list[GroupState] = field(default_factory=list)
    watched: dict[str, Watched] = field(default_factory=dict)
    attending: dict[str, Attending] = field(default_factory=dict)
    """Of the blocks whose attention runs in fewer bits."""
    place: Place = field(default_factory=Place)
    attended: list[tuple[str, AttendedTokens]] = field(default_factory=list)
    """What guides read of what attention showed, with its block."""
    rooms: dict[Any, Room] = field(default_factory=dict)
    samples: int = 0
    """Of this forward."""
    ran: bool = False
    """Whether this forward has reached a guided layer; caches leave forwards out."""
    counting: bool = False
    """Whether the tokens chosen in this forward are counted."""
    seen: set[str] = field(default_factory=set)
    """Blocks whose attention was seen in this forward."""
    map: Map | None = None
    """Of the last run."""
    unseen: str = ""
    """What of the attention was not seen, in a sentence."""
    _sigmas: torch.Tensor | None = None  # kept, so that no other tensor can have its identity
    _values: tuple[float, ...] = ()
    _noisiest: float = 0.0
    _grid: tuple[int, int, int] | None = None
    _pictured: tuple[int, int, int] | None = None  # grid of what the picture is made of: context windows differ in theirs
    _counts: torch.Tensor | None = None
    _counted: int = -1  # the step whose tokens are counted
    _received: list[torch.Tensor] | None = None  # by the positive conditioning; taken in the thread that profiled it

    def restart(self) -> None:
        """Forget: a new sampler call begins."""
        self.rooms.clear()
        self._sigmas, self._received, self._counts, self._counted = None, None, None, -1

    def finish(self) -> None:
        """Keep the picture of the call that has ended, and let its state go."""
        self.map = self._map() or self.map
        self.restart()

    def attention_seen(self) -> tuple[str, ...]:
        """What the last run showed of the attention that is to run in fewer bits."""
        return stayed(self.attending.values())

    @contextmanager
    def forward(
        self, shape: tuple[int, ...], device: torch.device, options: Mapping[str, Any], sampling: Any
    ) -> Iterator[dict[str, Any]]:
        """Around a forward of latents [B, C, T, H, W]; gives the options to run it with.

        Args:
            sampling: the model's `model_sampling`, which knows the sigma of pure noise.

        Raises:
            ModelError: steps are to be protected, and nobody says which step this is.
        """
        with torch.inference_mode(False), torch.no_grad():  # state must outlive this forward's mode
            step = self._step(options, sampling)
            room = self._enter(shape, device, options, step)
            self._tell(step, room)
        told = dict(options)
        if self.flags.profile or self.attending:
            told[OVERRIDE] = self._override(options.get(OVERRIDE))
        try:
            yield told
            self._look_back(step.number, room, options)
        finally:
            self.samples, self.ran, self.counting, self.place.block = 0, False, False, None
            self.flags.profile.fill_(False)
            self.flags.assign.fill_(False)
            self.seen.clear()

    def _step(self, options: Mapping[str, Any], sampling: Any) -> Step:
        sigmas, sigma = options.get("sample_sigmas"), options.get("sigmas")
        if sigmas is None or sigma is None:
            if any(self.plan.config.protected_steps):
                raise ModelError("protected steps need a sampler that tells its sigmas; this one does not: set them to 0")
            return Step(0, 1, False, False)
        if sigmas is not self._sigmas:
            values = tuple(sigmas.tolist())
            if self._sigmas is None or values != self._values:  # on a second GPU each forward has a copy of its own
                self.restart()
                self._values, self._noisiest = values, float(sampling.sigma_max)
            self._sigmas = sigmas
        return step_of(float(sigma.max()), self._values, self._noisiest)

    def _enter(self, shape: tuple[int, ...], device: torch.device, options: Mapping[str, Any], step: Step) -> Room | None:
        """Learn the grid, and put what was seen in forwards of this kind where the guides read it."""
        self.flags.move(device)
        self.samples, layout = shape[0], self.layout
        if layout.axes == "CTHW" and len(shape) == 5:
            padded = [size + -size % patch for size, patch in zip(shape[2:], layout.patch, strict=True)]
            layout = layout.with_grid(layout.grid_of((*shape[:2], *padded)))
        self._grid = layout.grid
        self.flags.know_tokens(layout.video_tokens if layout.grid else 0, None)
        chooses = self.plan.config.salient_ratio and not self.watched
        if self._grid is not None and chooses and self._is_due(step, self._counted):
            self._counts, self._counted = torch.zeros(self.flags.video_tokens, device=device), step.number
            self._pictured = self._grid
        self.counting = self._counted == step.number
        if not self.watched or layout.grid is None:
            return None
        window = options.get("context_window")
        kind = (tuple(options.get("uuids", ())), tuple(getattr(window, "index_list", ())), self.samples, self._grid)
        room = self.rooms.pop(kind, None) or self._room(layout, device)
        self.rooms[kind] = room
        if len(self.rooms) > ROOMS:
            self.rooms.pop(next(iter(self.rooms)))
        for name, watched in self.watched.items():
            watched.state = room.blocks[name]
        groups = iter(room.groups)
        for name, attention in self.attended:
            attention.block = room.blocks[name]
            attention.groups = next(groups) if attention.groups is not None else None
        self.flags.windows = room.windows
        return room

    def _room(self, layout: TokenLayout, device: torch.device) -> Room:
        config = self.plan.config
        extents = Extents(1, self.samples, layout.video_tokens, layout.video_tokens, device)
        room = Room({}, [], self.flags.windows)
        if config.semantic:
            room.windows = windows_of(layout, config.semantic_window, config.semantic_spacing).to(device)
        for name, block in self.blocks.items():
            room.blocks[name] = BlockState(block.ratio)
            room.blocks[name].allocate(extents)
        for group in self.groups:
            room.groups.append(GroupState(group.blocks))
            room.groups[-1].allocate(extents, len(room.windows.anchors))
        return room

    def _is_due(self, step: Step, last: int) -> bool:
        """Whether it is time to look again, having looked in step `last`, or never for -1."""
        config = self.plan.config
        return due(step.number, last, config.refresh_every, config.refresh_at, step.total)

    def _tell(self, step: Step, room: Room | None) -> None:
        protected = step.is_protected(*self.plan.config.protected_steps)
        self.flags.protected.fill_(protected)
        self.flags.protected_now = protected and bool(self.attending)
        self.flags.profile.fill_(room is not None and self._is_due(step, room.profiled))
        self.flags.assign.fill_(room is not None and room.grouping)

    def _look_back(self, step: int, room: Room | None, options: Mapping[str, Any]) -> None:
        """After a forward that went well."""
        if room is None or not self.ran:
            return
        if self.flags.assign:
            room.grouping = False
        if not self.flags.profile:
            return
        if lost := [name for name in self.watched if name not in self.seen]:
            self._miss(lost)
        if self.seen:
            room.profiled, room.grouping = step, bool(self.groups)
            if 0 in options.get("cond_or_uncond", (0,)):
                self._received, self._pictured = [block.received for block in room.blocks.values()], self._grid

    def _miss(self, lost: list[str]) -> None:
        if not self.unseen:
            self.unseen = (
                f"the attention of {lost[0]} ({len(lost)} blocks in all) was not seen, so its tokens are chosen evenly and "
                "not grouped; set salient_by to norm and semantic to off, or leave out the node that replaces the attention"
            )
            warnings.warn(self.unseen, stacklevel=2)

    def enter_block(self, name: str) -> "EnterBlock":
        """A hook for the linear that makes the keys of a block's self-attention: the next attention is this block's."""
        return EnterBlock(self, name)

    def _override(self, previous: Callable[..., Any] | None) -> Callable[..., Any]:
        """An attention override that looks, runs what it can in fewer bits, and leaves the rest to who would run it."""
        watched = self.watched if self.flags.profile else {}

        def attention(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            name, self.place.block = self.place.block, None
            if name in watched and self._see(watched[name], *args, **kwargs):
                self.seen.add(name)
            output = attend(self.attending[name], *args, **kwargs) if name in self.attending else None
            if output is not None:
                return output
            return function(*args, **kwargs) if previous is None else previous(function, *args, **kwargs)

        return attention

    def _see(
        self,
        watched: Watched,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        heads: int,
        mask: torch.Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        *others: Any,
        scale: float | None = None,
        **more: Any,
    ) -> bool:
        """Note a call of `optimized_attention`; whether it is the self-attention of this network's video tokens."""
        if not skip_reshape:
            query, key = split_heads(heads, query, key)
        tokens, video = query.shape[2], self.flags.video_tokens
        whole = tokens == video if watched.placement.where == "all" else tokens >= video
        if not whole or key.shape[2] != tokens or query.shape[0] != self.samples:
            return False
        watched.state.samples_seen = 0
        watched.see(Seen(query, key, whole_mask(mask), scale))
        return True

    def count(self, rows: torch.Tensor, length: int, placement: Placement | None) -> None:
        """Count chosen rows, int [E] of sequences of this length, for the picture."""
        video, counts = self.flags.video_tokens, self._counts
        alone = placement is None or placement.where in ("all", "either")
        if counts is None or counts.numel() != video or length < video or (alone and length != video):
            return
        last = placement is not None and placement.where == "last"
        place = rows.long() % length - (length - video if last else 0)
        inside = (place >= 0) & (place < video)
        counts.index_add_(0, place.clamp(0, video - 1), inside.float())

    def _map(self) -> Map | None:
        received, by = self._received, self.plan.config.salient_by
        if received is not None:
            values, kind = torch.stack(received).mean((0, 1, 2)), "peak" if by == "peak-attention" else "mean"
            says = f"attention received, the {kind} over heads and queries, averaged over {len(received)} blocks"
        elif self._counts is not None and bool(self._counts.any()):
            values, says = self._counts / self._counts.max(), f"how often a layer gave a token a second term, by {by}"
        else:
            return None
        assert self._pictured is not None
        places = torch.meshgrid(*(torch.arange(size) for size in self._pictured), indexing="ij")
        index = self.layout.with_grid(self._pictured).token_index(*places)
        return Map(values.float().cpu()[index], says)
