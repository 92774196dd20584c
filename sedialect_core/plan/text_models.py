"""The plan of a text encoder: its blocks' linears as 4-bit weights, activations in 16 bit, everything else as it is."""

import re
from collections.abc import Iterator

from torch import nn

from ..config import SeDialectConfig
from ..errors import ModelError
from ..inspection import LinearSite, TokenLayout, find_linears
from ..inspection.text_models import TEXT_FAMILY, looked_up, text_family
from ..inspection.unreadable import unreadable
from ..settings.table import UNQUANTIZED
from .layers import LayerPlan, Plan

WEIGHTS_ONLY = "w4a16"
TEXT_REASONS = {
    "embedder": "embedder or projector outside the blocks: few weights, and every later layer sees its error",
    "head": "output head, pooler or projection: its error goes straight into what the video model reads, or is not used",
    "other": "gate or router: few weights that steer much",
}
UNKNOWN = TokenLayout("unknown", patch=(1, 1, 1), axes="unknown")
COUNTED = 0.01  # of all weights: parameters of other kinds that are larger than this part are named in the plan


def weights_only(config: SeDialectConfig) -> SeDialectConfig:
    """The settings for a text encoder: those of the transformer, less what concerns activations, tokens and steps."""
    if config.attention_alone:
        config = config.override(layer_precisions=())
    return config.override(
        precision=WEIGHTS_ONLY,
        attention=UNQUANTIZED,
        salient_ratio=0.0,
        semantic=False,
        protected_steps=(0, 0),
        rotation=0,
    )


def text_plan(model: nn.Module, config: SeDialectConfig, linear_types: tuple[type[nn.Module], ...] = (nn.Linear,)) -> Plan:
    """Decide for every linear layer of a text encoder, without changing it.

    Args:
        model: of the transformers library, or of another program that names layers alike.
        linear_types: exact types of what counts as a linear, as of `find_linears`.

    Raises:
        ModelError: no layer can be quantized.
    """
    layers = text_layers(model, config, linear_types)
    name = type(model).__name__
    if not any(layer.precision for layer in layers):
        reasons = "; ".join(dict.fromkeys(layer.reason for layer in layers)) or "it holds no torch.nn.Linear"
        raise ModelError(f"{name} has no layer to quantize: {reasons}; leave it out of text_encoder")
    return Plan(name, TEXT_FAMILY, config, layers, UNKNOWN, tuple(_others(model)))


def text_layers(
    model: nn.Module, config: SeDialectConfig, linear_types: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> tuple[LayerPlan, ...]:
    """What is done to each linear of a text model."""
    kept, read, tables = _kept_in_fp32(model), unreadable(model), looked_up(model)
    found = []
    for site in find_linears(model, linear_types=linear_types, family=text_family(model)):
        weight = model.get_submodule(site.name).weight
        reason = _stays(site, config, kept, tables.get(id(weight)), read.get(site.name))
        precision = None if reason else WEIGHTS_ONLY
        plan = LayerPlan(
            site.name,
            site.role,
            site.in_features,
            site.out_features,
            precision,
            config.block_size if precision else None,
            reason or f"{site.role.replace('_', ' ')} of a block",
            site.block,
            site.stream,
            site.shared_input,
            equalized="weights" if config.equalize and precision else "",
        )
        found.append(plan)
    return tuple(found)


def _stays(
    site: LinearSite, config: SeDialectConfig, kept: tuple[str, ...], table: str | None, read: str | None
) -> str | None:
    """Why a linear stays in 16 bit; None where it is quantized."""
    pattern = config.skips(site.name)
    if pattern is not None:
        return f"skipped by the pattern {pattern!r}"
    if table is not None:
        return f"shares its weight with the embedding {table}"
    part = next((part for part in kept if re.search(rf"(^|\.){re.escape(part)}(\.|$)", site.name)), None)
    if part is not None:
        return f"transformers keeps {part!r} in float32 where the model runs in float16, and reads its dtype"
    if site.role in TEXT_REASONS:
        return TEXT_REASONS[site.role]
    if config.precision_of(site.name) == UNQUANTIZED:
        return "16 bit by the settings"
    if read is not None:
        return read
    if site.in_features % config.block_size:
        return f"{site.in_features} inputs are not a multiple of the block size {config.block_size}"
    return None


def _kept_in_fp32(model: nn.Module) -> tuple[str, ...]:
    """Parts of names that transformers keeps in float32, in this model or in one inside it."""
    found: dict[str, None] = {}
    for module in model.modules():
        for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            found |= dict.fromkeys(getattr(module, name, None) or ())
    return tuple(found)


def _others(model: nn.Module) -> Iterator[str]:
    """What else is large, and stays: tables that are looked up, and weights in no layer that we know."""
    total = sum(parameter.numel() for parameter in model.parameters())
    linears = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    tables = looked_up(model)
    for name, parameter in model.named_parameters():
        if parameter.numel() < COUNTED * total or id(parameter) in linears - tables.keys():
            continue
        shape = " x ".join(map(str, parameter.shape))
        kind = "an embedding, whose rows are looked up" if id(parameter) in tables else "not the weight of a linear layer"
        yield f"{name} ({shape}) stays in 16 bit: {kind}"
