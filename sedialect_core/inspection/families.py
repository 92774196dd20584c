"""Which family a model belongs to, and its token layout.

Classes are recognised by name along the MRO, never imported: a model of diffusers, of a fork or of ComfyUI is the
same to us as long as its blocks are. Where the class name says nothing, tell-tale module names may.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import ModelError
from .diffusers_families import DIFFUSERS_FAMILIES
from .generic import generic_family
from .original_families import ORIGINAL_FAMILIES
from .rules import Family
from .text_models import is_text_model, text_family
from .tokens import Grid, TokenLayout

FAMILIES: tuple[Family, ...] = (*DIFFUSERS_FAMILIES, *ORIGINAL_FAMILIES)

_PATCH_NAMES = ("patch_size", "latent_patch_size")


def family_of(model: nn.Module) -> Family:
    """The model's family: by class name, else by tell-tale module names, else one made of generic rules; of text models, one
    made of theirs."""
    if is_text_model(model):
        return text_family(model)
    modules = {name for name, _ in model.named_modules()}
    present = [family for family in FAMILIES if modules.intersection(family.lists)]
    for cls in type(model).__mro__:
        for family in present:
            if cls.__name__ in family.class_names:
                return family
    for family in present:
        if family.telltales and all(_any_matches(pattern, modules) for pattern in family.telltales):
            return family
    return generic_family(model)


def layout_of(model: nn.Module) -> TokenLayout:
    """The token layout of this very model: its family's, with the patch size of its configuration."""
    family = family_of(model)
    layout = replace(family.layout, patch=_patch_of(model, family.layout.patch))
    if family.tiled_if is not None:
        name, value = family.tiled_if
        if _setting(model, name) != value:
            layout = replace(layout, tile=0)
    return layout


def _any_matches(pattern: str, names: set[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


def _setting(model: nn.Module, name: str) -> Any:
    """An entry of `model.config`, a mapping or plain object, else an attribute of the model; None without either."""
    config = getattr(model, "config", None)
    if isinstance(config, Mapping) and name in config:
        return config[name]
    return getattr(config, name, None) if hasattr(config, name) else getattr(model, name, None)


def _patch_of(model: nn.Module, default: Grid) -> Grid:
    """(t, h, w) of the configured patch; one number, or two, leave the depth to `patch_size_t`."""
    size = next((value for value in (_setting(model, name) for name in _PATCH_NAMES) if value is not None), None)
    if size is None:
        return default
    steps = [int(size)] * 2 if isinstance(size, int) else [int(step) for step in size]
    if len(steps) == 2:
        steps.insert(0, int(_setting(model, "patch_size_t") or default[0]))
    if len(steps) != 3:
        raise ModelError(f"{type(model).__name__} has patch size {size!r}; one number or (t, h, w) was expected")
    return steps[0], steps[1], steps[2]
