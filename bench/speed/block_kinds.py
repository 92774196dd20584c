"""The blocks that are measured: diffusers' classes at the widths of Wan 2.1 and HunyuanVideo, and their inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .shapes import HUNYUAN_544P, HUNYUAN_TEXT, WAN_480P, WAN_TEXT, Video


@dataclass(frozen=True)
class Blocks:
    """One kind of block: how a model of one block is made, where the block is, and what it reads.

    `inputs(device, seed)` gives hidden states and the other arguments, all bfloat16.
    """

    name: str
    build: Callable[[], nn.Module]
    block: str
    inputs: Callable[[torch.device, int], tuple[Any, ...]]
    rows: dict[str, int]
    heads: int
    head_size: int
    sequence: int
    """Tokens that attend to each other."""


def wan_config(width: int, hidden: int, head_size: int = 128) -> dict[str, Any]:
    """Arguments of diffusers' WanTransformer3DModel; the rest is Wan 2.1's, which are its defaults."""
    return {"num_attention_heads": width // head_size, "attention_head_dim": head_size, "ffn_dim": hidden, "num_layers": 1}


def wan(name: str, video: Video, text: int, config: dict[str, Any]) -> Blocks:
    """A block of Wan 2.1: self-attention, cross-attention to the text, feed-forward."""
    heads, head_size = config["num_attention_heads"], config["attention_head_dim"]
    width = heads * head_size

    def build() -> nn.Module:
        from diffusers import WanTransformer3DModel

        return WanTransformer3DModel(**config)

    def inputs(device: torch.device, seed: int) -> tuple[Any, ...]:
        torch.manual_seed(seed)
        hidden, states = _random(video.tokens, width, device), _random(text, width, device)
        modulation = torch.randn(1, 6, width, device=device)
        angles = [turn.view(1, -1, 1, head_size) for turn in _angles(video.tokens, head_size, device)]
        return hidden, states, modulation, tuple(angles)

    return Blocks(name, build, "blocks.0", inputs, {"video": video.tokens}, heads, head_size, video.tokens)


def hunyuan(name: str, block: str, video: Video, text: int, config: dict[str, Any]) -> Blocks:
    """A block of HunyuanVideo: video and text in two streams, or in one, with one attention over both."""
    heads, head_size = config["num_attention_heads"], config["attention_head_dim"]
    width, sequence = heads * head_size, video.tokens + text

    def build() -> nn.Module:
        from diffusers import HunyuanVideoTransformer3DModel

        return HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, num_refiner_layers=1, **config)

    def inputs(device: torch.device, seed: int) -> tuple[Any, ...]:
        torch.manual_seed(seed)
        hidden, states = _random(video.tokens, width, device), _random(text, width, device)
        step = torch.randn(1, width, device=device, dtype=torch.bfloat16)
        return hidden, states, step, None, _angles(video.tokens, head_size, device)

    rows = {"video": video.tokens, "joint": sequence}
    return Blocks(name, build, block, inputs, rows, heads, head_size, sequence)


HUNYUAN_CONFIG = {"num_attention_heads": 24, "attention_head_dim": 128}
BLOCKS = (
    wan("wan-14b", WAN_480P, WAN_TEXT, wan_config(5120, 13824)),
    hunyuan("hunyuan-dual", "transformer_blocks.0", HUNYUAN_544P, HUNYUAN_TEXT, HUNYUAN_CONFIG),
    hunyuan("hunyuan-single", "single_transformer_blocks.0", HUNYUAN_544P, HUNYUAN_TEXT, HUNYUAN_CONFIG),
    wan("wan-1.3b", WAN_480P, WAN_TEXT, wan_config(1536, 8960)),
)
_TINY_VIDEO = Video(64, 64, 9)
_TINY_HUNYUAN = {"num_attention_heads": 2, "attention_head_dim": 32, "rope_axes_dim": (8, 12, 12)}
QUICK_BLOCKS = (
    wan("tiny-wan", _TINY_VIDEO, 16, wan_config(64, 128, 32)),
    hunyuan("tiny-dual", "transformer_blocks.0", _TINY_VIDEO, 16, _TINY_HUNYUAN),
    hunyuan("tiny-single", "single_transformer_blocks.0", _TINY_VIDEO, 16, _TINY_HUNYUAN),
)


def make_model(kind: Blocks, device: torch.device) -> nn.Module:
    """The model of one block, always with the same random weights; in bfloat16 but for what diffusers keeps in float32."""
    torch.manual_seed(0)
    with device:
        model = kind.build().eval().requires_grad_(False)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _random(rows: int, width: int, device: torch.device) -> torch.Tensor:
    return torch.randn(1, rows, width, device=device, dtype=torch.bfloat16)


def _angles(tokens: int, head_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary positions, [tokens, head_size], as real as random ones."""
    turn = torch.rand(tokens, head_size // 2, device=device).mul_(6.28).repeat_interleave(2, dim=-1)
    return turn.cos(), turn.sin()
