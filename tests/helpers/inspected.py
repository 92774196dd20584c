"""Tiny models of all classes, each inspected and run once: its sites, and what every linear got."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from model_outputs import tensors
from open_sora_models import OPEN_SORA
from tiny_cross_attention import KANDINSKY_TILED_GRID
from tiny_inputs import AUDIO, BATCH, GRID, IMAGE, TEXT, volume
from tiny_models import TINY, VARIANTS
from tiny_wan import WAN_TEXT
from torch import Tensor, nn

from sedialect.sedialect_core.inspection import (
    LinearSite,
    find_linears,
)

ALL = {**TINY, **VARIANTS, **OPEN_SORA}
VIDEO = volume(GRID)


def plain_linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


@dataclass
class Trace:
    """One forward of a tiny model: its sites, and the inputs every linear got, call by call."""

    model: nn.Module
    sites: dict[str, LinearSite]
    outputs: list[Tensor] = field(default_factory=list)
    calls: dict[str, list[Tensor]] = field(default_factory=dict)


def run(model: nn.Module, inputs: dict[str, Any]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The outputs, and the inputs of every linear by name."""
    calls: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls.setdefault(name, []).append(args[0])

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in plain_linears(model).items()]
    with torch.no_grad():
        outputs = tensors(model(**inputs))
    for handle in handles:
        handle.remove()
    return outputs, calls


@cache
def traced(name: str) -> Trace:
    model, inputs = ALL[name]()
    outputs, calls = run(model, inputs)
    return Trace(model, {site.name: site for site in find_linears(model)}, outputs, calls)


@dataclass(frozen=True)
class Rows:
    """Tokens a sample that each stream has in a tiny model; a tuple where linears of one stream differ."""

    batch: int = BATCH
    video: int | tuple[int, ...] = VIDEO
    text: int | tuple[int, ...] = TEXT
    joint: int | tuple[int, ...] = VIDEO + TEXT
    image: int | tuple[int, ...] = IMAGE


TILED = volume(KANDINSKY_TILED_GRID)
ROWS = {
    "WanTransformer3DModel (image)": Rows(text=WAN_TEXT),
    "WanAnimateTransformer3DModel": Rows(text=WAN_TEXT, image=(IMAGE, 9)),  # 3 frames of 3 face tokens
    "WanAnimate2Transformer3DModel": Rows(batch=1),
    "AnyFlowFARTransformer3DModel": Rows(video=2 + 16),  # a compressed frame, two whole ones
    "HeliosTransformer3DModel": Rows(video=(96, 96 + 32 + 8 + 2)),  # cross-attention takes the current tokens only
    "ConsisIDTransformer3DModel": Rows(image=3),
    "HunyuanVideo15Transformer3DModel": Rows(text=TEXT + 4 + IMAGE),
    "HunyuanVideoFramepackTransformer3DModel": Rows(video=24 + 11, text=TEXT + IMAGE, joint=24 + 11 + TEXT + IMAGE),
    "MotifVideoTransformer3DModel": Rows(text=(TEXT + IMAGE, TEXT), joint=(VIDEO + TEXT + IMAGE, 2 * VIDEO)),
    "Cosmos3OmniTransformer": Rows(batch=1),
    "LatteTransformer3DModel": Rows(text=3 * TEXT),  # every frame has a copy of the text
    "MiniMaxH3Transformer3DModel": Rows(joint=VIDEO + TEXT + AUDIO),
    "Kandinsky5Transformer3DModel (nabla)": Rows(video=TILED),
    "Kandinsky6SRTransformer3DModel": Rows(video=TILED),
}
NEVER_CALLED = {
    "SanaWMLTX2RefinerTransformer3DModel": r".+\.(audio_\w+|video_to_audio_attn)\..+",  # runs the video half only
    "SanaWMTransformer3DModel": r"blocks\.1\.attn\.(beta|gate)_proj",  # softmax attention has no use for them
    "WanTransformer3DModel (fused)": r".+\.(attn1\.to_[qkv]|attn2\.to_[kv])",  # kept beside the fused ones
}


def is_quantizable(site: LinearSite) -> bool:
    """Whether it is an attention or feed-forward layer of a block."""
    return site.block is not None and site.role in ("attention", "feed_forward")
