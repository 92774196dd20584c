"""Which attention runs in fewer bits, and why the others do not: from names, and from the number of a module's heads."""

import re
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from ...kernels.attention_support import head_size_refusal
from ..inspection.linears import plain_name
from ..inspection.placement import REARRANGED
from ..settings.table import UNQUANTIZED
from .layers import AttentionPlan, LayerPlan, Plan
from .tokens import KEYS, PARTS, VIDEO_KEYS

QUERIES = re.compile(r"(^|_)(q|qkv|query)(_|$)|^linear1$")
HEADS = ("heads", "num_heads", "n_heads", "num_attention_heads")
JOINED = {"qkv": 3, "kv": 2}  # what a linear makes at once, by a word in its name
LINEAR = "linear attention: there is no softmax"


def with_attention(plan: Plan, model: nn.Module) -> Plan:
    """The plan with what its settings mean for each module that attends; none are listed where all stay in 16 bit.

    Args:
        model: that the plan is of, whose modules may know how many heads they have.
    """
    kind = plan.config.attention
    if kind == UNQUANTIZED:
        return replace(plan, attentions=())
    modules: dict[str, list[LayerPlan]] = {}
    for layer in plan.layers:
        name = plain_name(layer.name)
        if layer.block is not None and layer.role in ("attention", "feed_forward"):
            modules.setdefault(PARTS.sub("", name.rpartition(".")[0]), []).append(layer)
    found = (_decide(name, layers, model, kind) for name, layers in modules.items())
    return replace(plan, attentions=tuple(one for one in found if one is not None))


def _decide(name: str, layers: list[LayerPlan], model: nn.Module, kind: str) -> AttentionPlan | None:
    """Of one module; None where it makes no keys, and so does not attend."""
    keys = [layer for layer in layers if KEYS.search(_leaf(layer))]
    if not keys or keys[0].block is None:
        return None
    queries = {layer.stream for layer in layers if QUERIES.search(_leaf(layer))}
    reason = _obstacle(keys, queries)
    if not reason:
        size = _head_size(name, keys, model)
        reason = (head_size_refusal(kind, size) if size else None) or ""
    runs = UNQUANTIZED if reason else kind
    return AttentionPlan(name, keys[0].block, runs, reason or "long self-attention of the video tokens", keys[0].name)


def _obstacle(keys: list[LayerPlan], queries: set[str]) -> str:
    """Why it is no self-attention of the video tokens; empty if it is."""
    streams = [layer.stream for layer in keys]
    own = [stream for stream in streams if stream in VIDEO_KEYS]
    if any(layer.linear for layer in keys):
        return LINEAR
    if not own:
        stream = streams[0]
        asked = bool(queries) and stream not in queries
        return REARRANGED.get(stream, f"{'cross-attention to' if asked else 'attention of'} {stream} tokens")
    if queries and not queries.intersection(VIDEO_KEYS):
        return f"cross-attention from {' and '.join(sorted(queries))} to {own[0]} tokens"
    return ""


def _head_size(name: str, keys: Iterable[LayerPlan], model: nn.Module) -> int | None:
    """Channels of a head, where the module says how many heads it has."""
    module = model.get_submodule(name)
    heads = next((value for value in (getattr(module, word, None) for word in HEADS) if isinstance(value, int)), None)
    layer = next((layer for layer in keys if layer.stream in VIDEO_KEYS and layer.role == "attention"), None)
    if not heads or layer is None:
        return None
    parts = next((count for word, count in JOINED.items() if word in _leaf(layer).split("_")), 1)
    return layer.out_features // parts // heads


def _leaf(layer: LayerPlan) -> str:
    return plain_name(layer.name).rpartition(".")[2]
