"""LoRAs on encoded weights: added to a layer's output in 16 bit, never rounded into its codes.

ComfyUI hands a layer's patches over as tuples (strength, patch, strength of the model, offset, function). A plain LoRA
becomes two thin products beside the layer. Whatever else there is (DoRA, LoKr, full differences, merges) is worked out on
the decoded weight, and the difference that it makes is multiplied: dense, and slower, but right.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ...sedialect_core.errors import ModelError

Patch = tuple[float, Any, float, tuple[int, int, int] | None, Callable[..., Any] | None]
Dense = Callable[[list[Patch], torch.Tensor], torch.Tensor]
"""Patches and a float weight to the patched weight; ComfyUI's own arithmetic."""


class LowRank(NamedTuple):
    """y[..., start : start + N] += factor * (x @ down.T) @ up.T, with down [r, K] and up [N, r]."""

    up: torch.Tensor
    down: torch.Tensor
    factor: float
    start: int


def low_rank(patch: Patch) -> LowRank | None:
    """The patch as two thin matrices, or None if it is anything but a plain LoRA on rows of the weight."""
    strength, adapter, model_strength, offset, function = patch
    if getattr(adapter, "name", None) != "lora" or model_strength != 1.0 or function is not None:
        return None
    up, down, alpha, middle, dora_scale, reshape, *_ = (*adapter.weights, None, None)
    if middle is not None or dora_scale is not None or reshape is not None or (offset is not None and offset[0] != 0):
        return None
    factor = strength * (1.0 if alpha is None else float(alpha) / down.shape[0])
    return LowRank(up.flatten(1), down.flatten(1), factor, offset[1] if offset is not None else 0)


def dense_layers(patches: Mapping[str, Sequence[Patch]], names: Collection[str]) -> int:
    """How many of these weights have a patch that costs them a dense product."""
    return sum(any(low_rank(patch) is None for patch in patches.get(name, ())) for name in names)


def add_patches(
    y: torch.Tensor, x: torch.Tensor, patches: Sequence[Patch], weight: Callable[[], torch.Tensor], dense: Dense
) -> torch.Tensor:
    """y [..., N] of input x [..., K] with the patches' effect added, in place.

    Args:
        weight: gives the decoded weight [N, K] in x.dtype on its device; asked only where a patch is not low-rank.
    """
    thin = [low_rank(patch) for patch in patches]
    if all(part is not None for part in thin):
        for part in thin:
            assert part is not None
            _add_low_rank(y, x, part)
        return y
    original = weight()  # in order and together: some kinds of patches look at what the ones before them made
    changed = dense(list(patches), original.clone())
    return y.add_(functional.linear(x, changed.sub_(original)))


def _add_low_rank(y: torch.Tensor, x: torch.Tensor, part: LowRank) -> None:
    if part.down.shape[1] != x.shape[-1] or part.start + part.up.shape[0] > y.shape[-1]:
        raise ModelError(
            f"a LoRA for a layer of {part.start + part.up.shape[0]} x {part.down.shape[1]} numbers is connected to one of "
            f"{y.shape[-1]} x {x.shape[-1]}: it was made for another model; take it off, or choose one for this model"
        )
    down = part.down.to(x.device, x.dtype, non_blocking=True)
    up = part.up.to(x.device, y.dtype, non_blocking=True)
    inner = functional.linear(x, down).flatten(0, -2).to(y.dtype)
    rows = y.view(-1, y.shape[-1]).narrow(1, part.start, up.shape[0])
    rows.addmm_(inner, up.t(), alpha=part.factor)  # into y: a sum of its own would be as large as y
