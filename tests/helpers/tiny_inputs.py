"""The sizes of all tiny models, the inputs that their forwards share, and how a model gets its random weights.

The sizes are chosen to tell streams apart: the numbers of video tokens, text tokens, image tokens, audio tokens
and samples differ from each other, and no two axes of a token grid are equal. Hidden sizes are multiples of 32,
so any block size fits every linear inside a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

BATCH = 2
GRID = (3, 2, 4)  # video tokens along T, H, W
TEXT = 7  # text tokens a sample
IMAGE = 5  # image condition tokens a sample
AUDIO = 9  # audio tokens a sample
HEADS = 2
HEAD_DIM = 32
WIDTH = HEADS * HEAD_DIM
TEXT_WIDTH = 32
CHANNELS = 4
TinyModel = tuple[nn.Module, dict[str, Any]]
Factory = Callable[[], TinyModel]


def volume(grid: tuple[int, int, int]) -> int:
    """How many tokens a T x H x W grid holds."""
    return math.prod(grid)


def latents(
    channels: int = CHANNELS, *, grid: tuple[int, int, int] = GRID, patch: tuple[int, int, int] = (1, 2, 2)
) -> Tensor:
    """Latents [B, C, T, H, W] that become `grid` tokens under `patch`."""
    return torch.randn(BATCH, channels, *(size * step for size, step in zip(grid, patch, strict=True)))


def text(width: int = TEXT_WIDTH, tokens: int = TEXT) -> Tensor:
    """Text states [B, tokens, width]."""
    return torch.randn(BATCH, tokens, width)


def steps(value: float = 500.0) -> Tensor:
    """One timestep a sample, [B]."""
    return torch.full((BATCH,), value)


def build(class_name: str, /, **config: Any) -> nn.Module:
    """The model with seeded random weights; parameters that a class starts at zero are made random as well.

    A zero gate or a zero output projection would hide what lies behind it: outputs would not depend on blocks.
    """
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, class_name)(**config).eval()
    for parameter in model.parameters():
        if parameter.is_floating_point() and not parameter.any():
            nn.init.normal_(parameter.data, std=0.02)
    return model.requires_grad_(False)
