"""Linears whose weights somebody reads as numbers past their `forward`: packed codes would be taken for them."""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

from .adapters import innermost, reason_around

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # torch's own, with a fast path
SAVED = "ModulesToSaveWrapper"  # PEFT's
READS = re.compile(r"\bself\.(\w+(?:\.\w+)*)\.weight\b(?!\.(?:device|shape|size)\b)")
ELSEWHERE = re.compile(r"_*(init|reset|fuse|unfuse|load|save|from_|set_|enable|disable|post_init)\w*")  # not while running


def unreadable(model: nn.Module) -> dict[str, str]:
    """Names of the linears that must stay as they are, and why. The first reason that is found counts."""
    found: dict[str, str] = {}
    for name, reason in _found(model):
        found.setdefault(name, reason)
    return found


def _found(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if (reason := reason_around(module)) is not None:
            base = innermost(module)[1]
            yield from ((inner, reason) for inner, part in module.named_modules(prefix=name) if part is base)
        if isinstance(module, READERS):
            reason = f"{type(module).__name__} reads its weight itself, past the layer"
            yield from ((inner, reason) for inner, _ in module.named_modules(prefix=name))
        if type(module).__name__ == SAVED:
            reason = "PEFT trains a copy of it (modules_to_save)"
            yield from ((inner, reason) for inner, _ in module.named_modules(prefix=name))
        if isinstance(module, nn.Linear):
            yield from ((name, reason) for reason in _own_reasons(module))
        kind: Any = type(module)
        for path in _reads(kind):
            yield f"{name}.{path}" if name else path, f"{type(module).__name__} reads its weight itself, past the layer"


def _own_reasons(linear: nn.Linear) -> Iterator[str]:
    if "weight" not in linear._parameters:
        yield "its weight is made anew for each forward (weight_norm, spectral_norm or pruning)"
    hooked = hasattr(linear, "_hf_hook") or hasattr(linear, "_diffusers_hook")
    plain = type(linear).forward.__get__(linear)  # ComfyUI's bypass LoRAs, put back, leave it in the dictionary
    if not hooked and vars(linear).get("forward", plain) != plain:
        yield "its forward has been replaced, and may read its weight itself"


@cache
def _reads(cls: Any) -> tuple[str, ...]:
    """Paths from a module of this class to layers whose `.weight` its methods read while it runs, by their source."""
    if cls.__module__.startswith(("torch.", "peft.", "accelerate.")) or "sedialect" in cls.__module__:
        return ()
    found: dict[str, None] = {}
    for name, function in vars(cls).items():
        if inspect.isfunction(function) and not ELSEWHERE.fullmatch(name):
            found |= dict.fromkeys(READS.findall(_source(function)))
    return tuple(found)


def _source(function: object) -> str:
    try:
        return inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):  # made at run time, or delivered without source
        return ""
