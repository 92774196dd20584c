"""The marks by which diffusers, and we, know that a model is quantized: set and taken off in one place."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

from torch import nn

from ..errors import ModelError
from ..linear import SeDialectLinear
from ..plan.layers import LayerPlan, Plan
from ..plan.report import model_bytes
from ..quantize.readers import readers
from ..shared_input import share_inputs
from .semantics import attach, detach

REFUSED = {
    "fuse_qkv_projections": "would join packed codes as if they were weights; call it before enable_sedialect()",
}
CONFIG_KEYS = ("quantization_config", "_pre_quantization_dtype")


@dataclass
class Enabled:
    """What is remembered about a quantized model."""

    plan: Plan
    bytes_before: int
    keeps_originals: bool = False
    loaded: bool = False  # from a file, or quantized while loading: there never was a 16-bit model in memory


def mark_quantized(model: nn.Module, state: Enabled, quantizer: Any) -> None:
    """Make diffusers and transformers treat `model` as quantized: casting raises, fusing is refused, and saving writes a
    checkpoint.

    Args:
        quantizer: the model's quantizer; None where the model is neither of diffusers nor of transformers.
    """
    marks: dict[str, Any] = {"_sedialect": state, "is_quantized": True}
    marks |= {method: partial(_refuse, method) for method in REFUSED if hasattr(model, method)}
    if quantizer is not None:
        marks |= {"hf_quantizer": quantizer, "quantization_method": quantizer.quantization_config.quant_method}
        quantizer.register(model)
    for name, value in marks.items():
        setattr(model, name, value)
    share_inputs(readers(_layers(model, state.plan)))
    attach(model, state.plan)
    for _, layer in _layers(model, state.plan):
        layer.prepare()


def mark_attending(model: nn.Module, state: Enabled) -> None:
    """Have attention run as the plan says, in a model whose layers stay as they are: it is cast and saved like any other."""
    model._sedialect = replace(state, keeps_originals=True)  # type: ignore[assignment]
    attach(model, state.plan)


def _layers(model: nn.Module, plan: Plan) -> Iterator[tuple[LayerPlan, SeDialectLinear]]:
    for entry in plan.quantized:
        layer = model.get_submodule(entry.name)
        if isinstance(layer, SeDialectLinear):
            yield entry, layer


def mark_plain(model: nn.Module) -> None:
    """Take the marks off again, those in the model's config included: what is saved now is a 16-bit model."""
    detach(model)
    quantizer: Any = model.__dict__.get("hf_quantizer")
    if hasattr(quantizer, "unregister"):
        quantizer.unregister(model)
    for name in ("_sedialect", "is_quantized", "quantization_method", "hf_quantizer", *REFUSED):
        model.__dict__.pop(name, None)
    config = getattr(model, "_internal_dict", None)
    if config is not None:  # diffusers' own dictionary is frozen, so a new one takes its place
        model._internal_dict = type(config)({k: v for k, v in config.items() if k not in CONFIG_KEYS})


def bytes_unquantized(model: nn.Module) -> int:
    """What a quantized model would take with its layers in the dtype that they compute in."""
    layers = [module for module in model.modules() if isinstance(module, SeDialectLinear)]
    packed = sum(p.numel() for layer in layers for p in layer.parameters() if p is not layer.bias)
    plain = sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers)
    return model_bytes(model) - packed + plain


def _refuse(method: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise ModelError(f"{method} {REFUSED[method]}")
