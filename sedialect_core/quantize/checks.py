"""States of a diffusers model in which swapping its layers would break it, silently or later; each refused with a remedy."""

from collections.abc import Callable, Iterable

from torch import nn

from ...kernels import flash3
from ..config import SeDialectConfig
from ..errors import ModelError
from ..linear import has_quantized_layers
from .unfinished import unfinished

Check = Callable[[nn.Module], tuple[str, str] | None]
"""What is wrong with a model and what to do; None where it is sound."""


def check_ready(name: str, model: nn.Module) -> None:
    """Refuse to quantize a model that is compiled, offloaded by groups, cast by layers, or quantized already, be it half.

    Raises:
        ModelError: naming the component, the state and what to do.
    """
    _refuse(name, model, CHECKS)


def check_untouched(name: str, model: nn.Module) -> None:
    """Refuse a model that another thread quantizes, or has quantized, since `check_ready` looked at it.

    Raises:
        ModelError: as of `check_ready`.
    """
    _refuse(name, model, (unfinished, _quantized))


def check_attends(name: str, model: nn.Module) -> None:
    """Refuse to change the attention of a compiled model, whose graphs would not see the change, or of half a model.

    Raises:
        ModelError: that is so.
    """
    _refuse(name, model, (unfinished, _compiled))


def check_attention(config: SeDialectConfig) -> None:
    """Refuse attention in FP8 where the kernel for it is not installed.

    Raises:
        ModelError: that is so; the message has the line that installs it.
    """
    if config.attention == "fp8":
        found, why = flash3.kernel()
        if found is None:
            raise ModelError(f"attention is 'fp8', and {why}")


def is_compiled(model: nn.Module) -> bool:
    """Whether graphs were made of the model or of a part of it."""
    return hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules())


def check_restorable(name: str, model: nn.Module) -> None:
    """Refuse to put layers back into a model that is offloaded: they would miss its hooks, or end without weights.

    Raises:
        ModelError: naming the component, the state and what to do.
    """
    grouped = any("group_offloading" in _hook_names(module) for module in model.modules())
    if grouped or any(parameter.device.type == "meta" for parameter in model.parameters()):
        kind = "by groups" if grouped else "sequentially"
        raise ModelError(
            f"{name} is offloaded {kind}; call disable_sedialect() before offloading, or load the pipeline again"
        )


def _refuse(name: str, model: nn.Module, checks: Iterable[Check]) -> None:
    """Refuse a model for the first of the checks that finds something."""
    for reason, remedy in filter(None, (check(model) for check in checks)):
        raise ModelError(f"{name} {reason}; {remedy}")


def _quantized(model: nn.Module) -> tuple[str, str] | None:
    if has_quantized_layers(model):
        return "is quantized by sedialect already", "call pipe.disable_sedialect() or load it again"
    if getattr(model, "is_quantized", False):
        method = getattr(model, "quantization_method", "another quantizer")
        return f"is quantized already ({getattr(method, 'value', method)})", "load its 16-bit weights"
    return None


def _compiled(model: nn.Module) -> tuple[str, str] | None:
    return ("is compiled", "call enable_sedialect() before torch.compile") if is_compiled(model) else None


def _hooked(model: nn.Module) -> tuple[str, str] | None:
    hooks = {hook for module in model.modules() for hook in _hook_names(module)}
    if "group_offloading" in hooks:
        return "is offloaded by groups, and new layers would miss its hooks", "call enable_sedialect() first, then offload"
    if "layerwise_casting" in hooks:
        return "stores its weights in a smaller type (layerwise casting)", "call enable_sedialect() instead of casting"
    return None


def _hook_names(module: nn.Module) -> tuple[str, ...]:
    registry = getattr(module, "_diffusers_hook", None)
    return tuple(registry.hooks) if registry is not None else ()


CHECKS = (unfinished, _quantized, _compiled, _hooked)
