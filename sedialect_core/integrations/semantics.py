"""What a plan says about tokens, put into a quantized model; and a model's pipeline, whose scheduler knows the steps."""

import inspect
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ..config import SeDialectConfig
from ..errors import ConfigError, ModelError
from ..linear import Guide, SeDialectLinear
from ..plan.layers import LayerPlan, Plan
from ..plan.rules import guided
from ..plan.tokens import attention_modules, is_guided, needs_profile
from ..quantize.products import settle_products
from ..semantics.guides import guide_for, is_told, watched_block
from ..semantics.hook import StepHook, fixed_layout
from ..semantics.probe import remove, watch_module, watch_torch_and_diffusers
from ..settings.table import LIVE

HOOK, HANDLES = "_sedialect_steps", "_sedialect_hooks"  # attributes of a model


def attach(model: nn.Module, plan: Plan) -> None:
    """Give the model's layers their guides, and have its attention watched, as the plan says. Whatever was attached goes."""
    detach(model)
    config = plan.config
    if not is_guided(config):
        return
    hook = StepHook(config, fixed_layout(plan.token_layout), _parameters(model))
    handles = [model.register_forward_pre_hook(hook, with_kwargs=True)]
    if needs_profile(config):
        watch_torch_and_diffusers()
        for block, name in attention_modules(plan.layers, plan.token_layout).items():
            handles += watch_module(model.get_submodule(name), watched_block(block, plan, hook))
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
    setattr(model, HOOK, hook)
    setattr(model, HANDLES, handles)


def detach(model: nn.Module) -> None:
    """Take guides and hooks off a model."""
    remove(model.__dict__.pop(HANDLES, ()))
    model.__dict__.pop(HOOK, None)
    for module in model.modules():
        if isinstance(module, SeDialectLinear):
            module.guide = None


def reguide(model: nn.Module, **settings: Any) -> Plan:
    """Change what a quantized model does with its tokens, or which units multiply; its weights stay as they are.

    Args:
        settings: those of `SeDialectConfig` that only matter while the model runs: `salient_ratio`, `semantic`, …

    Returns:
        The new plan.

    Raises:
        ConfigError: another setting, or a value that is not possible, here or at all.
        ModelError: the model is not quantized, or compiled: compiled graphs would not see the change.
    """
    state = getattr(model, "_sedialect", None)
    if state is None:
        raise ModelError(f"{type(model).__name__} is not quantized by sedialect; call enable_sedialect() first")
    if hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules()):
        raise ModelError(f"{type(model).__name__} is compiled; change its settings before torch.compile")
    for name in settings:
        if name not in LIVE:
            raise ConfigError(f"{name} cannot be changed in a quantized model; there are {', '.join(LIVE)}")
    config: SeDialectConfig = state.plan.config.override(**settings)
    layers = tuple(replace(layer, salient="", grouped=False) for layer in state.plan.layers)
    plan = guided(replace(state.plan, config=config, layers=layers, notes=()))
    plan = settle_products(model, plan)
    pipeline = schedule_pipeline(model)
    attach(model, plan)
    state.plan = plan
    if pipeline is not None:
        follow(pipeline, model)
    return plan


def follow(pipeline: Any, model: nn.Module) -> None:
    """Tell a model which pipeline's scheduler counts its steps."""
    hook = getattr(model, HOOK, None)
    if isinstance(hook, StepHook):
        hook.counter.schedule.pipeline = weakref.ref(pipeline)


def schedule_pipeline(model: nn.Module) -> Any:
    """The pipeline that the model follows, or None."""
    hook = getattr(model, HOOK, None)
    found = hook.counter.schedule.pipeline if isinstance(hook, StepHook) else None
    return found() if found is not None else None


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
