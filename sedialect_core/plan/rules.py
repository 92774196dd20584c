"""The rules by which a plan is made, from a model and its settings or from what a checkpoint says."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from ..config import SeDialectConfig
from ..errors import ModelError
from ..inspection import LinearSite, TokenLayout, family_of, find_linears, is_text_model, layout_of
from ..inspection.unreadable import unreadable
from ..settings.table import UNQUANTIZED
from .attention import with_attention
from .ignored import idle_patterns
from .layers import LayerPlan, Plan
from .text_models import text_layers, text_plan, weights_only
from .tokens import attention_modules, check_layout, decide, is_guided

ROTATED_ROLES = ("attention", "feed_forward")  # and equalized ones; modulation sees one row a sample
LinearTypes = tuple[type[nn.Module], ...]
ROLE_REASONS = {
    "embedder": "embedder: few weights, and every later layer sees its error",
    "head": "output head: its error goes straight into the video",
    "norm": "part of a norm",
    "other": "outside the transformer blocks",
}


def make_plan(
    model: nn.Module,
    config: SeDialectConfig,
    token_layout: TokenLayout | None = None,
    *,
    linear_types: LinearTypes = (nn.Linear,),
) -> Plan:
    """Decide for every linear layer of `model`, without changing it. Of text models, weights alone are quantized.

    Args:
        token_layout: where video and text tokens stand, for a model that inspection does not know.
        linear_types: exact types of what counts as a linear, as of `find_linears`.

    Raises:
        ModelError: no layer can be quantized; the message holds the commonest reason. Or groups are wanted, and where the
            video tokens stand is unknown.
    """
    if is_text_model(model):
        return text_plan(model, weights_only(config))
    sites = find_linears(model, linear_types=linear_types)
    kept, read = _kept_in_fp32(model), unreadable(model)
    layers = tuple(_decide(site, config, kept, read.get(site.name)) for site in sites)
    name = type(model).__name__
    notes = tuple(idle_patterns(config, layers))
    plan = Plan(name, family_of(model).name, config, layers, token_layout or layout_of(model), notes)
    plan = with_attention(plan, model)
    if not plan.quantized and not any(one.runs != UNQUANTIZED for one in plan.attentions):
        if config.attention_alone:
            raise ModelError(f"{name} has no attention that could run in {config.attention!r}: {_why_none(plan)}")
        raise ModelError(f"{name} has no layer to quantize: {_commonest_reason(layers)}")
    return guided(plan)


def check_quantizes(plan: Plan) -> None:
    """Refuse to store a model of which nothing is quantized.

    Raises:
        ModelError: that is so.
    """
    if not plan.quantized:
        raise ModelError(
            f"precision is {UNQUANTIZED!r}, which quantizes no layer of {plan.model}, so there is nothing to store; load "
            f"the model as it is, and call enable_sedialect(precision={UNQUANTIZED!r}, attention={plan.config.attention!r})"
        )


def guided(plan: Plan) -> Plan:
    """The plan with what its settings mean for tokens; notes say where they mean nothing, and why.

    Raises:
        ModelError: groups are wanted, and where the video tokens stand is unknown.
    """
    check_layout(plan.model, plan.token_layout, plan.config)
    if not is_guided(plan.config):
        return plan
    attentions = attention_modules(plan.layers, plan.token_layout)
    decisions = [decide(layer, plan.token_layout, plan.config, attentions) for layer in plan.layers]
    pairs = zip(plan.layers, decisions, strict=True)
    layers = tuple(replace(layer, salient=decision.salient, grouped=decision.grouped) for layer, decision in pairs)
    reasons = Counter(decision.reason for decision in decisions if decision.reason)
    return replace(plan, layers=layers, notes=(*plan.notes, *(f"{count} layers: {why}" for why, count in reasons.items())))


def recorded_plan(
    model: nn.Module,
    config: SeDialectConfig,
    block_size: int,
    precisions: Mapping[str, str],
    rotations: Mapping[str, int] | None = None,
    equalized: Mapping[str, str] | None = None,
    *,
    linear_types: LinearTypes = (nn.Linear,),
) -> Plan:
    """The plan that a checkpoint was written by: its own list of layers decides, whatever the rules say today. No pattern
    of its settings is tried: whoever wrote the file may have made them endless.

    Args:
        model: as it is before its layers are replaced.
        precisions: of each quantized layer, by name.
        rotations: of each rotated layer, by name.
        equalized: by which statistics each equalized layer is, by name.
    """
    plain = replace(config, skip=(), layer_precisions=())
    decided: Iterable[LayerPlan]
    if is_text_model(model):
        decided = text_layers(model, plain)
    else:
        sites = find_linears(model, linear_types=linear_types)
        decided = (_decide(site, plain, _kept_in_fp32(model)) for site in sites)
    rotated, by = rotations or {}, equalized or {}
    done = (replace(one, rotation=rotated.get(one.name, 0), equalized=by.get(one.name, "")) for one in decided)
    layers = tuple(_recorded(layer, block_size, precisions.get(layer.name)) for layer in done)
    plan = Plan(type(model).__name__, family_of(model).name, config, layers, layout_of(model))
    return guided(with_attention(plan, model))


def _recorded(today: LayerPlan, block_size: int, precision: str | None) -> LayerPlan:
    if precision == today.precision:
        return today
    size = block_size if precision is not None else None
    return replace(today, precision=precision, block_size=size, reason="as the checkpoint has it")


def _decide(site: LinearSite, config: SeDialectConfig, kept: tuple[str, ...], read: str | None = None) -> LayerPlan:
    """What is done to one linear; `read` says who reads its weight past its forward, if anybody does."""
    precision, reason = _precision(site, config, kept)
    if precision is not None and read is not None:
        precision, reason = None, read
    if precision is not None and site.in_features % config.block_size:
        precision, reason = None, f"{site.in_features} inputs are not a multiple of the block size {config.block_size}"
    block_size = config.block_size if precision is not None else None
    rotation = config.rotation if precision is not None and site.role in ROTATED_ROLES else 0
    equalized = "weights" if config.equalize and precision is not None and site.role in ROTATED_ROLES else ""
    if rotation and site.in_features % rotation:
        rotation, reason = 0, f"{reason}; not rotated: {site.in_features} inputs are not a multiple of {rotation}"
    return LayerPlan(
        site.name,
        site.role,
        site.in_features,
        site.out_features,
        precision,
        block_size,
        reason,
        site.block,
        site.stream,
        site.shared_input,
        rotation,
        equalized,
        linear=site.linear,
    )


def _precision(site: LinearSite, config: SeDialectConfig, kept: tuple[str, ...]) -> tuple[str | None, str]:
    """A layer's precision, or None, with the reason."""
    pattern = config.skips(site.name)
    if pattern is not None:
        return None, f"skipped by the pattern {pattern!r}"
    part = next((part for part in site.name.split(".") if part in kept), None)
    if part is not None:
        return None, f"the model keeps {part!r} in float32"
    precision = config.precision_of(site.name)
    if precision == UNQUANTIZED and site.role in (*ROTATED_ROLES, "modulation"):
        return None, "16 bit by the settings"
    if site.role == "modulation":
        if config.modulation == "keep":
            return None, "modulation, kept by the settings"
        return config.modulation, "modulation: one row a sample, so its activations cost nothing"
    if site.role in ROLE_REASONS:
        return None, ROLE_REASONS[site.role]
    return precision, f"{site.role.replace('_', ' ')} of a transformer block"


def _kept_in_fp32(model: nn.Module) -> tuple[str, ...]:
    """Path components that diffusers keeps in float32 for this class."""
    return tuple(getattr(model, "_keep_in_fp32_modules", None) or ())


def _why_none(plan: Plan) -> str:
    """What attention there is, and why it stays as it is."""
    told = [f"{count} of {name}: {reason}" for (name, _, reason), count in plan.attention_groups().items()]
    return "; ".join(told) or "none of its modules is known to attend"


def _commonest_reason(layers: tuple[LayerPlan, ...]) -> str:
    if not layers:
        return "it holds no torch.nn.Linear; pass the transformer itself, not a wrapper of it, and quantize it only once"
    counts: Mapping[str, int] = {layer.reason: sum(other.reason == layer.reason for other in layers) for layer in layers}
    reason = max(counts, key=lambda key: counts[key])
    return f"{counts[reason]} of {len(layers)} linears are left alone for: {reason}"
