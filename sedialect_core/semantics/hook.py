"""The hook before each forward of a model: it counts steps, knows the grid, and tells layers and attentions what to do.

It is never compiled: `torch.compile` runs it as it is and compiles what follows. A plain hook of torch's rather than one of
diffusers', whose replaced `forward` a copied model would share with its original.
"""

import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor

from ...kernels import derivatives
from ...kernels.lasting import lasting
from ..config import SeDialectConfig
from ..errors import ModelError
from ..inspection import TokenLayout
from ..plan.tokens import counts_steps, needs_profile
from ..settings.table import UNQUANTIZED
from . import probe
from .grouping import windows_of
from .runs import Runs, prompts_of
from .shard import is_of_xdit, shard_of
from .state import BlockState, Extents, Flags, GroupState, RunState
from .steps import StepCounter, due, is_protected

TIMESTEPS = ("timestep", "timesteps", "t", "vision_timesteps")
LATENTS = ("hidden_states", "x", "img", "vision_tokens")
CALLS = 2  # forwards a step to begin with: with and without the prompt


@dataclass
class Progress(RunState):
    """How far a run's attention has been looked at."""

    extents: Extents | None = None
    seen_layout: TokenLayout | None = None
    """Of the last forward, with its grid."""
    profiles: bool = False
    """Whether attention is looked at in this step."""
    profiled: bool = False
    """Whether it was in the step before."""
    looked: int = -1
    """The step in which it was last looked at in this run, -1 for none."""


@dataclass
class StepHook:
    """A forward pre-hook, to be registered with `with_kwargs=True`.

    blocks  state of each attention that is watched, by the block's name
    groups  state of each input whose tokens are grouped
    """

    config: SeDialectConfig
    layout: TokenLayout
    parameters: tuple[str, ...]
    """Of the model's forward, in order."""
    flags: Flags = field(default_factory=Flags)
    counter: StepCounter = field(default_factory=StepCounter)
    blocks: dict[str, BlockState] = field(default_factory=dict)
    groups: list[GroupState] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    runs: Runs = field(default_factory=Runs)
    pipelines: list["weakref.ref[Any]"] = field(default_factory=list)
    """Those that hold the model."""
    warned: bool = False

    @property
    def seen_layout(self) -> TokenLayout | None:
        """Of the last forward, with its grid."""
        return self.progress.seen_layout

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model know no pipeline."""
        return {**self.__dict__, "pipelines": []}

    def follow(self, pipeline: Any) -> None:
        """Count by this pipeline's scheduler, too: a second one does not take the first one's steps away."""
        others = [ref for ref in self.pipelines if (other := ref()) is not None and other is not pipeline]
        self.pipelines = [*others, weakref.ref(pipeline)]
        self.counter.schedule.pipeline = self.pipelines[-1]

    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward.

        Raises:
            ModelError: steps have to be told and the forward has no timestep; windows are larger than the grid; or the last
                steps are to be protected and nobody knows which those are.
        """
        probe.RUNNING.treatment = None  # a forward that was broken off may have left it behind
        arguments = dict(zip(self.parameters, args, strict=False)) | kwargs
        if not counts_steps(self.config):  # the input alone says what is done for its tokens
            layout = self.progress.seen_layout = self.layout.for_inputs(arguments)
            self.flags.know_tokens(0 if layout.grid is None else layout.video_tokens, shard_of(module))
            return
        if derivatives.mapped():
            raise ModelError(
                "attention, groups and protected steps are remembered between steps, and transforms of torch.func allow no "
                "memory; use salient_by='norm', semantic=False and protected_steps=(0, 0) under them, or torch.autograd"
            )
        latents = _first_latents(arguments)
        if isinstance(latents[0], FakeTensor):
            raise ModelError(
                "attention, groups and protected steps are remembered between steps, and a graph that is exported ahead of "
                "time has no memory; use salient_by='norm', semantic=False and protected_steps=(0, 0) for torch.export"
            )
        if self.blocks:  # a model that came from another process, or a backend that is new
            probe.watch_torch_and_diffusers()
        timestep = _timestep(arguments)
        with lasting():
            self._enter_run(timestep, arguments)
        begins = self.counter.advance(timestep)
        with lasting():
            self.flags.move(latents[0].device)
            self._know_grid(module, arguments, latents)
            if begins:
                self.reset()
            self._tell()

    def _enter_run(self, timestep: torch.Tensor, arguments: Mapping[str, Any]) -> None:
        """Have the state of the run in place that this forward belongs to."""
        states: list[RunState] = [self.flags, self.counter, self.progress, *self.blocks.values(), *self.groups]
        pipelines = [pipeline for ref in self.pipelines if (pipeline := ref()) is not None]
        prompts = prompts_of(arguments, (*TIMESTEPS, *LATENTS))
        pipeline = self.runs.enter(states, pipelines, timestep, self.counter, prompts)
        self.counter.schedule.pipeline = None if pipeline is None else weakref.ref(pipeline)

    def reset(self) -> None:
        """Forget what was seen."""
        states: list[BlockState | GroupState] = [*self.blocks.values(), *self.groups]
        for state in states:
            if state_is_made(state):
                state.reset()

    def _know_grid(self, module: nn.Module, arguments: Mapping[str, Any], latents: list[torch.Tensor]) -> None:
        layout = self.layout.for_inputs(arguments)
        self.flags.shard = shard_of(module)
        if self.flags.shard is not None and needs_profile(self.config):
            _check_watched(module, layout)
        if layout.grid is None:
            return
        self.flags.know_tokens(layout.video_tokens, self.flags.shard)
        samples = len(latents) if len(latents) > 1 else latents[0].shape[0]
        if isinstance(arguments.get(LATENTS[0]), list):
            samples = len(latents)
        calls = max(CALLS, self.counter.call + 1, self.progress.extents.calls if self.progress.extents is not None else 0)
        extents = Extents(calls, samples, layout.video_tokens, self.flags.own_tokens, latents[0].device)
        if layout != self.progress.seen_layout and self.groups:
            windows = windows_of(layout, self.config.semantic_window, self.config.semantic_spacing)
            self.flags.windows = windows.to(extents.device)
        self.progress.seen_layout = layout
        if extents != self.progress.extents:
            self.progress.extents = extents
            for block in self.blocks.values():
                block.allocate(extents)
            for group in self.groups:
                group.allocate(extents, len(self.flags.windows.anchors))

    def _tell(self) -> None:
        """Set the flags of this forward."""
        counter, flags = self.counter, self.flags
        flags.call.fill_(counter.call)
        flags.call_there.copy_(flags.call)
        if counter.call == 0:
            self.progress.profiled = self.progress.profiles and counter.step > 0
            self.progress.profiles = bool(self.blocks) and self._is_due()
        flags.profile.fill_(self.progress.profiles)
        flags.assign.fill_(bool(self.groups) and self.progress.profiled)
        protected = self._is_protected()
        flags.protected.fill_(protected)
        flags.protected_now = protected and self.config.attention != UNQUANTIZED
        if self.progress.profiled and not self.warned:
            self._check_seen()

    def _is_due(self) -> bool:
        """Whether attention is to be looked at in the step that begins."""
        every, parts, counter = self.config.refresh_every, self.config.refresh_at, self.counter
        if parts and counter.total is None:
            raise ModelError(
                f"refresh_at is {parts}, but how many steps there are is known only in a diffusers pipeline whose scheduler "
                "holds the model's timesteps; use refresh_every here"
            )
        now = counter.position if parts else counter.step
        if counter.step == 0:
            self.progress.looked = -1
        if not due(now, self.progress.looked, every, parts, counter.total or 0):
            return False
        self.progress.looked = now
        return True

    def _is_protected(self) -> bool:
        first, last = self.config.protected_steps
        position, total = self.counter.position, self.counter.total
        if last and total is None:
            raise ModelError(
                f"protected_steps is {self.config.protected_steps}, but how many steps there are is known only in a "
                f"diffusers pipeline whose scheduler holds the model's timesteps; use ({first}, 0) here"
            )
        return is_protected(position, total, first, last)

    def _check_seen(self) -> None:
        """Warn once if attention passed by unseen: choices would rest on nothing."""
        call = self.counter.call
        unseen = [name for name, block in self.blocks.items() if not bool(block.received[call].any())]
        if unseen:
            self.warned = True
            warnings.warn(
                f"the attention of {unseen[0]} ({len(unseen)} blocks in all) was not seen, so its tokens are chosen evenly "
                "and not grouped; show a model's own attention function to watch_function(), or use salient_by='norm'",
                stacklevel=2,
            )


def state_is_made(state: BlockState | GroupState) -> bool:
    """Whether its tensors have their sizes yet."""
    return (state.received if isinstance(state, BlockState) else state.group).numel() > 0


def fixed_layout(layout: TokenLayout) -> TokenLayout:
    """The layout without its grid, unless that is all there is to know it from."""
    return layout if layout.axes == "unknown" else replace(layout, grid=None)


def _timestep(arguments: Mapping[str, Any]) -> torch.Tensor:
    for name in TIMESTEPS:
        value = arguments.get(name)
        if value is not None:
            return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    raise ModelError(
        f"a forward has none of {', '.join(TIMESTEPS)}, so steps cannot be told; switch semantic, protected_steps and "
        "salient_by='attention' off"
    )


def _first_latents(arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    """The latents of a forward, as a list: some models take a list of samples."""
    named = [arguments[name] for name in LATENTS if arguments.get(name) is not None]
    for value in (*named, *arguments.values()):
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
            return list(value)
    raise ModelError("a forward has no tensor among its arguments")


def _check_watched(model: nn.Module, layout: TokenLayout) -> None:
    """Refuse to look at an attention that does not show which of the split sequence's tokens it sees.

    Raises:
        ModelError: that is so.
    """
    kind = type(model).__name__
    if is_of_xdit(model):
        raise ModelError(
            f"{kind} of xDiT attends to all tokens with a part of its heads, where attention cannot be looked at; use "
            "salient_by='norm' and semantic=False"
        )
    if layout.order.startswith("history"):
        raise ModelError(
            f"a sequence of {kind} holds past frames, and split over processes it does not tell where attention is to be "
            "looked at; use salient_by='norm' and semantic=False"
        )
