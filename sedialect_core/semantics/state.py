"""What is remembered between steps, as tensors of fixed shapes that are changed in place.

They are attributes of plain objects, not buffers of modules: offloading, casting and saving pass them by. And they are each
thread's own: two threads that run one model see two states. Of runs that take turns in one thread, `runs.py` has the states.
"""

import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from .attention import spread
from .grouping import NO_GROUP, Windows
from .saliency import salient_count
from .shard import Shard


@dataclass(frozen=True)
class Extents:
    """The sizes that the state depends on."""

    calls: int
    """Forwards a step: 2 where guidance calls the model once with and once without the prompt."""
    samples: int
    video_tokens: int
    own_tokens: int
    """Of those, the ones that this process has."""
    device: torch.device


class RunState(threading.local):
    """What belongs to one run. Copies and pickles begin afresh."""

    def fresh(self) -> dict[str, Any]:
        """The attributes of a run that begins."""
        return vars(type(self)(*self.made_from()))

    def made_from(self) -> tuple[Any, ...]:
        """The arguments that it was made from."""
        return ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.made_from()


class BlockState(RunState):
    """What the attention of one transformer block showed when it was last profiled, for each call of a step.

    received  float32 [calls, samples, V]  attention that each video token receives
    salient   int64 [calls, samples, k]    the k most attended; before the first profile, k evenly spread ones
    claims    int32 [calls, samples, V]    the anchor that each token may join, -1 for none
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio  # of the video tokens that are salient; 0 where attention does not choose them
        self.received = torch.empty(0)
        self.salient = torch.empty(0, dtype=torch.int64)
        self.claims = torch.empty(0, dtype=torch.int32)
        self.samples_seen = 0  # of this forward: some models attend sample by sample

    def made_from(self) -> tuple[Any, ...]:
        return (self.ratio,)

    def allocate(self, extents: Extents) -> None:
        """Make the tensors, as `reset` leaves them."""
        shape = (extents.calls, extents.samples, extents.video_tokens)
        count = salient_count(self.ratio, extents.video_tokens)
        self.received = torch.empty(shape, dtype=torch.float32, device=extents.device)
        self.salient = torch.empty(*shape[:2], count, dtype=torch.int64, device=extents.device)
        self.claims = torch.empty(shape, dtype=torch.int32, device=extents.device)
        self.reset()

    def reset(self) -> None:
        """Forget: a new run begins."""
        self.received.zero_()
        self.claims.fill_(NO_GROUP)
        self.salient.copy_(spread(self.received.shape[2], self.salient.shape[2], self.salient.device))


class GroupState(RunState):
    """The groups of one input, and what each took, for each call of a step.

    group   int32 [calls, samples, own tokens]     number b * A + a of the group, -1 for none
    choice  uint8 [calls, samples * A, K/B]        what a group may take in a block, as of `ops.encode`
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks  # K/B
        self.group = torch.empty(0, dtype=torch.int32)
        self.choice = torch.empty(0, dtype=torch.uint8)

    def made_from(self) -> tuple[Any, ...]:
        return (self.blocks,)

    def allocate(self, extents: Extents, anchors: int) -> None:
        """Make the tensors, as `reset` leaves them."""
        shape = (extents.calls, extents.samples, extents.own_tokens)
        self.group = torch.empty(shape, dtype=torch.int32, device=extents.device)
        sizes = (extents.calls, extents.samples * anchors, self.blocks)
        self.choice = torch.empty(sizes, dtype=torch.uint8, device=extents.device)
        self.reset()

    def reset(self) -> None:
        """Forget: a new run begins."""
        self.group.fill_(NO_GROUP)
        self.choice.fill_(0xFF)


@dataclass
class Flags(RunState):
    """What the hook on the model tells the layers and attentions of the forward that begins.

    No default is an attribute of the class: of a `threading.local`, torch 2.11 compiles that in place of the object's own.
    """

    profile: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.bool))
    """Attention is noted in this step. On the CPU."""
    assign: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.bool))
    """Groups are formed in this step, the one after a profiled one. On the CPU."""
    call: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    """Number of the forward in this step, int64 [1]. On the CPU."""
    call_there: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    """The same where the model runs."""
    protected: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.bool))
    """This step is a protected one, bool [1], where the model runs: kernels read it."""
    protected_now: bool = field(default_factory=bool)
    """The same on the host, where attention runs in fewer bits: a compiled graph is made for each of both."""
    video_tokens: int = field(default_factory=int)
    """Of the grid of this forward; 0 where it is not told."""
    own_tokens: int = field(default_factory=int)
    """Of those, the ones that this process has."""
    shard: Shard | None = field(default_factory=lambda: None)
    """The part of them that those are, where the sequence is split over processes."""
    windows: Windows = field(default_factory=lambda: Windows(torch.empty(0).long(), torch.empty(0, 0).long()))

    def know_tokens(self, video_tokens: int, shard: Shard | None) -> None:
        """Say how many tokens the grid of this forward has, and which part of them is here."""
        self.video_tokens, self.shard = video_tokens, shard
        self.own_tokens = video_tokens if shard is None else shard.own(video_tokens)

    def move(self, device: torch.device) -> None:
        """Have what layers read on this device."""
        if self.protected.device != device:
            self.call_there, self.protected = self.call_there.to(device), self.protected.to(device)
