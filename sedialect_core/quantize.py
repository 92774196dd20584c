"""Carries out a plan, one layer in memory at a time."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from tqdm import tqdm

from .codec import DTYPES
from .config import SeDialectConfig
from .errors import ModelError
from .formatbook.matching import find_book
from .inspection import TokenLayout
from .linear import SeDialectLinear
from .plan import Plan, make_plan


def quantize_layers(
    module: nn.Module,
    config: SeDialectConfig | None = None,
    token_layout: TokenLayout | None = None,
    *,
    progress: bool = False,
    keep: Callable[[str, nn.Linear], None] | None = None,
) -> Plan:
    """Plan, and rewrite the layers in place, one in memory at a time; `sedialect.quantize_model` is the public face.

    Args:
        keep: called with each name and original layer before it is let go.

    Raises:
        ModelError: nothing can be quantized, or weights are not in memory or not finite. Nothing has been changed then.
        FormatbookError: there is no such formatbook. Nothing has been changed then.
    """
    plan = make_plan(module, config or SeDialectConfig(), token_layout)
    _check_weights(module, plan)
    book, name, notes = find_book(module, plan.config.formatbook, plan.config.block_size)
    plan = replace(plan, config=plan.config.override(formatbook=name), notes=notes)
    with tqdm(
        total=sum(layer.weights for layer in plan.quantized),
        desc=f"Quantizing {plan.model}",
        unit="w",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for layer in plan.quantized:
            linear = module.get_submodule(layer.name)
            assert isinstance(linear, nn.Linear)
            if keep is not None:
                keep(layer.name, linear)
            new = SeDialectLinear.from_linear(
                linear,
                name=f"{layer.name}.weight",
                precision=layer.precision,
                block_size=layer.block_size,
                formatbook=book,
                candidates=plan.config.candidates,
                rotation=layer.rotation,
            )
            set_submodule(module, layer.name, new)
            del linear
            bar.update(layer.weights)
    return plan


def set_submodule(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    module.get_submodule(parent)._modules[child] = new


def _check_weights(module: nn.Module, plan: Plan) -> None:
    """Look at every weight before the first is touched: an error must leave the model as it was."""
    for layer in plan.quantized:
        weight = module.get_submodule(layer.name).weight
        assert isinstance(weight, torch.Tensor)
        if weight.device.type == "meta":
            raise ModelError(
                f"{layer.name}.weight is not in memory (device meta), as under sequential or disk offloading; "
                "quantize first, then enable offloading"
            )
        if weight.dtype not in DTYPES:
            raise ModelError(
                f"{layer.name}.weight is {weight.dtype}; quantize from float32, float16 or bfloat16 weights, before "
                "layerwise casting or another quantizer"
            )
        if not bool(weight.isfinite().all()):
            raise ModelError(f"{layer.name}.weight holds NaN or Inf; load a sound checkpoint or add the layer to `skip`")
