"""What a plan says about tokens, put into a quantized model; and a model's pipeline, whose scheduler knows the steps."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ...kernels.lasting import lasting
from ..config import SeDialectConfig
from ..errors import ConfigError, ModelError
from ..inspection import family_of
from ..linear import Guide, SeDialectLinear
from ..plan.attention import with_attention
from ..plan.layers import LayerPlan, Plan
from ..plan.rules import guided
from ..plan.tokens import attention_modules, is_guided, needs_profile
from ..quantize.checks import check_attention, is_compiled
from ..quantize.products import settle_products
from ..semantics.attending import Attending, stayed
from ..semantics.guides import guide_for, is_told, watched_block
from ..semantics.hook import StepHook, fixed_layout
from ..semantics.probe import Treatment, remove, treat_module, watch_torch_and_diffusers
from ..settings.table import LIVE, UNQUANTIZED

HOOK, HANDLES, ATTENDING = "_sedialect_steps", "_sedialect_hooks", "_sedialect_attending"  # attributes of a model


@lasting()
def attach(model: nn.Module, plan: Plan) -> None:
    """Give the model's layers their guides, and have its attention watched, or run in fewer bits, as the plan says. Whatever
    was attached goes."""
    detach(model)
    hook = StepHook(plan.config, fixed_layout(plan.token_layout), _parameters(model))
    handles = []
    if is_guided(plan.config):
        handles.append(model.register_forward_pre_hook(hook, with_kwargs=True))
        setattr(model, HOOK, hook)
    treatments = _treatments(model, plan, hook)
    if treatments:
        watch_torch_and_diffusers()
    for name, treatment in treatments.items():
        handles += treat_module(model.get_submodule(name), treatment)
    if is_guided(plan.config):
        _guide(model, plan, hook)
    if handles:
        setattr(model, HANDLES, handles)
    if attending := {name: one.attending for name, one in treatments.items() if one.attending is not None}:
        setattr(model, ATTENDING, attending)


def _treatments(model: nn.Module, plan: Plan, hook: StepHook) -> dict[str, Treatment]:
    """What is done with the attention of the model, by the names of its modules."""
    found: dict[str, Treatment] = {}
    if needs_profile(plan.config):
        for block, name in attention_modules(plan.layers, plan.token_layout).items():
            found[name] = Treatment(watched_block(block, plan, hook))
    pair_mask = family_of(model).pair_mask
    for entry in plan.attentions:
        if entry.runs != UNQUANTIZED:
            found.setdefault(entry.name, Treatment()).attending = Attending(entry.runs, hook.flags, pair_mask)
    return found


def _guide(model: nn.Module, plan: Plan, hook: StepHook) -> None:
    guides: dict[object, Guide] = {}
    for entry, layer in _guided_layers(model, plan):
        key = (
            entry.shared_input or entry.name,
            layer.block_size,
            layer.rotation,
            entry.equalized,
            entry.salient,
            entry.grouped,
        )
        if key not in guides:
            guides[key] = guide_for(entry, layer, plan, hook)
        layer.guide = guides[key]


def detach(model: nn.Module) -> None:
    """Take guides and hooks off a model."""
    remove(model.__dict__.pop(HANDLES, ()))
    model.__dict__.pop(HOOK, None)
    model.__dict__.pop(ATTENDING, None)
    for module in model.modules():
        if isinstance(module, SeDialectLinear):
            module.guide = None


def reguide(model: nn.Module, **settings: Any) -> Plan:
    """Change what a quantized model does with its tokens, or which units multiply; its weights stay as they are.

    Args:
        settings: those of `SeDialectConfig` that only matter while the model runs: `salient_ratio`, `attention`, …

    Returns:
        The new plan.

    Raises:
        ConfigError: another setting, or a value that is not possible, here or at all.
        ModelError: the model is not quantized, or compiled: compiled graphs would not see the change.
    """
    state = getattr(model, "_sedialect", None)
    if state is None:
        raise ModelError(f"{type(model).__name__} is not quantized by sedialect; call enable_sedialect() first")
    if is_compiled(model):
        raise ModelError(f"{type(model).__name__} is compiled; change its settings before torch.compile")
    for name in settings:
        if name not in LIVE:
            raise ConfigError(f"{name} cannot be changed in a quantized model; there are {', '.join(LIVE)}")
    config: SeDialectConfig = state.plan.config.override(**settings)
    layers = tuple(replace(layer, salient="", grouped=False) for layer in state.plan.layers)
    check_attention(config)
    plan = with_attention(guided(replace(state.plan, config=config, layers=layers, notes=())), model)
    plan = settle_products(model, plan)
    pipelines = pipelines_of(model)
    attach(model, plan)
    state.plan = plan
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.change(model, plan, settings)
    for pipeline in pipelines:
        follow(pipeline, model)
    return plan


def attention_seen(model: nn.Module) -> tuple[str, ...]:
    """What there is to say of a model's attention besides its plan: what the last run showed, and which backend is set."""
    attending = [one for one in model.__dict__.get(ATTENDING, {}).values() if isinstance(one, Attending)]
    if not attending:
        return ()
    said = stayed(attending)
    processors = (getattr(module, "processor", None) for module in model.modules())
    names = {getattr(one, "_attention_backend", None) for one in processors} - {None}
    if names:
        chosen = ", ".join(sorted(str(getattr(name, "value", name)) for name in names))
        said += (f"backend {chosen}, which was set, runs the attention that stays in 16 bit, and none of the rest",)
    return said


def follow(pipeline: Any, model: nn.Module) -> None:
    """Tell a model that this pipeline's scheduler counts its steps, beside those that it follows already."""
    hook = getattr(model, HOOK, None)
    if isinstance(hook, StepHook):
        hook.follow(pipeline)


def pipelines_of(model: nn.Module) -> list[Any]:
    """The pipelines that the model follows."""
    hook = getattr(model, HOOK, None)
    refs = hook.pipelines if isinstance(hook, StepHook) else []
    return [pipeline for ref in refs if (pipeline := ref()) is not None]


def follow_all(pipeline: Any, parts: Iterable[Any]) -> None:
    """Let every guided model among a pipeline's parts follow it."""
    for part in parts:
        if isinstance(part, nn.Module):
            follow(pipeline, part)


def _guided_layers(model: nn.Module, plan: Plan) -> Iterator[tuple[LayerPlan, SeDialectLinear]]:
    """The layers that have anything to be told."""
    for entry in plan.quantized:
        layer = model.get_submodule(entry.name)
        if isinstance(layer, SeDialectLinear) and layer.precision == "w4a4" and is_told(entry, plan.config):
            yield entry, layer


def _parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of the forward's parameters, in order."""
    return tuple(inspect.signature(type(model).forward).parameters)[1:]
