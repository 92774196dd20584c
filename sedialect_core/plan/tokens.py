"""What is done for which layer's tokens, and why not more: pure data, from names and settings alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..config import SeDialectConfig
from ..errors import ModelError
from ..inspection import TokenLayout
from ..inspection.linears import plain_name
from ..inspection.placement import Placement, attention_placement, grid_is_told, placement_of
from ..settings.table import BY_ATTENTION
from .layers import LayerPlan

KEYS = re.compile(r"(^|_)(k|kv|qkv|key)(_|$)|^linear1$")  # a linear that makes the keys of an attention, by its own name
PARTS = re.compile(r"\.(img|txt)_attn$")  # modules that only hold the layers of one stream: their block attends

VIDEO_KEYS = ("video", "joint", "other")  # streams that may hold them


@dataclass(frozen=True)
class Decision:
    """For one layer.

    salient  how its salient tokens are chosen: `salient_by`, "text" where all rows are text, "" where none are
    grouped  whether its tokens are grouped
    reason   why something that the settings ask for is not done; empty where all of it is
    """

    salient: str = ""
    grouped: bool = False
    reason: str = ""


def decide(layer: LayerPlan, layout: TokenLayout, config: SeDialectConfig, attentions: dict[str, str]) -> Decision:
    """The decision for one layer; `attentions` as of `attention_modules`."""
    if layer.precision != "w4a4" or layer.block is None or layer.role not in ("attention", "feed_forward"):
        return Decision()
    place = placement_of(layer.stream, layout)
    if isinstance(place, Placement) and place.where == "none":
        return Decision("text" if config.salient_ratio else "")
    salient, why = _salient(layer, place, layout, config, attentions)
    obstacle = _obstacle(layer, place, layout, attentions) if config.semantic else ""
    reasons = (f"second terms are off: {why}" if why else "", f"groups are off: {obstacle}" if obstacle else "")
    return Decision(salient, config.semantic and not obstacle, "; ".join(filter(None, reasons)))


def needs_profile(config: SeDialectConfig) -> bool:
    """Whether these settings need to see attention."""
    return config.semantic or (config.salient_ratio > 0 and config.salient_by in BY_ATTENTION)


def counts_steps(config: SeDialectConfig) -> bool:
    """Whether these settings need to know at which step of sampling a forward is."""
    return needs_profile(config) or any(config.protected_steps)


def is_guided(config: SeDialectConfig) -> bool:
    """Whether these settings tell layers anything about their rows."""
    return config.salient_ratio > 0 or config.semantic or any(config.protected_steps)


def check_layout(model: str, layout: TokenLayout, config: SeDialectConfig) -> None:
    """Refuse groups for a model whose tokens nobody can place.

    Raises:
        ModelError: that is so.
    """
    if config.semantic and layout.order == "unknown":
        raise ModelError(
            f"semantic=True needs to know where the video tokens of {model} stand; pass token_layout=TokenLayout(...) to "
            "quantize_model, or leave semantic off"
        )


def attention_modules(layers: Iterable[LayerPlan], layout: TokenLayout) -> dict[str, str]:
    """The softmax self-attention of the video tokens of each block: block -> dotted name of the module that computes it.

    Blocks without one, or where the video's keys cannot be told from others, are left out.
    """
    return {block: PARTS.sub("", name.rpartition(".")[0]) for block, name in key_linears(layers, layout).items()}


def key_linears(layers: Iterable[LayerPlan], layout: TokenLayout) -> dict[str, str]:
    """The same, but the dotted name of the keys' linear itself, without what peft puts around it."""
    found: dict[str, str] = {}
    if not grid_is_told(layout) or not isinstance(attention_placement(layout), Placement):
        return found
    for layer in layers:
        name = plain_name(layer.name)
        looked_at = layer.stream in VIDEO_KEYS and layer.role in ("attention", "feed_forward") and not layer.linear
        if layer.block is not None and looked_at and KEYS.search(name.rpartition(".")[2]):
            found.setdefault(layer.block, name)
    return found


def _salient(
    layer: LayerPlan, place: Placement | str, layout: TokenLayout, config: SeDialectConfig, attentions: dict[str, str]
) -> tuple[str, str]:
    """How salient tokens are chosen, "" for not at all, and why not."""
    if not config.salient_ratio or (config.salient_layers == "feed_forward" and layer.role != "feed_forward"):
        return "", ""
    if config.salient_by in BY_ATTENTION:
        obstacle = _obstacle(layer, place, layout, attentions)
        return ("", obstacle) if obstacle else (config.salient_by, "")
    if isinstance(place, Placement) and place.others and not grid_is_told(layout):
        return "", "the token grid cannot be read from the model's inputs, so text and video are not told apart"
    return config.salient_by, ""


def _obstacle(layer: LayerPlan, place: Placement | str, layout: TokenLayout, attentions: dict[str, str]) -> str:
    """Why what attention shows cannot be used for this layer; empty if it can."""
    if isinstance(place, str):
        return place
    if not grid_is_told(layout):
        return "the token grid cannot be read from the model's inputs"
    if layer.block not in attentions:
        return "its block has no softmax self-attention of the video tokens that could be looked at"
    return ""
