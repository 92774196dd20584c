"""Which matrix units multiply the layers of a quantized model: what is asked for, and what its codes allow.

INT8 units round blocks whose numbers are small beside their row's scale (`kernels/integers.py`). A layer that would lose
too much by that runs on units that are exact. That is found out once for every device: a model may be moved later.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ...kernels import capabilities
from ..errors import ConfigError
from ..linear import SeDialectLinear
from ..plan.layers import LayerPlan, Plan
from .units import compare_units
from .weights import groups_of

MOST_LOSS = 0.02  # of the squared error of its code: what rounding to integers may add to a layer


def check_products(device: torch.device, products: str) -> None:
    """Refuse units that a device lacks, before anything is done.

    Raises:
        ConfigError: it lacks them; the message says why, and what to choose.
    """
    if (problem := capabilities.products_refusal(device, products)) is not None:
        raise ConfigError(problem)


def settle_products(model: nn.Module, plan: Plan, device: torch.device | None = None) -> Plan:
    """Give the layers of a quantized model their products; returns the plan with the layers that INT8 would round too much.

    Args:
        device: where the model will run; None: where it lies or, of a model on the CPU, torch's current GPU.

    Raises:
        ConfigError: the device that the model lies on lacks the units that are asked for. No layer has been changed then.
    """
    layers = {entry.name: model.get_submodule(entry.name) for entry in plan.quantized}
    ours = {name: layer for name, layer in layers.items() if isinstance(layer, SeDialectLinear)}
    for place in {layer.weight.device for layer in ours.values()}:
        check_products(place, plan.config.products)
        compare_units(place if device is None else device, plan.config.products)

    def loss_of(entry: LayerPlan) -> float:
        return ours[entry.name].rounding_loss if entry.name in ours else 0.0

    plan = with_losses(plan, loss_of)
    for entry in plan.quantized:
        if entry.name in ours:
            ours[entry.name].products = plan.products_of(entry)
    return plan


def with_losses(plan: Plan, loss_of: Callable[[LayerPlan], float]) -> Plan:
    """The plan with what INT8 would add to the error of each layer's code, where that is too much. Layers of one input share
    its operands, so the worst of them decides for all.

    Args:
        loss_of: as `EncodedTensor.rounding_loss` has it; asked where INT8 may be used.
    """
    lost: dict[str, float] = {}
    if plan.config.products in ("auto", "int8"):
        for group in groups_of(layer for layer in plan.quantized if layer.precision != "w4a16"):
            worst = max(map(loss_of, group))
            lost |= dict.fromkeys((layer.name for layer in group), worst if worst > MOST_LOSS else 0.0)
    return replace(plan, layers=tuple(replace(one, integer_loss=lost.get(one.name, 0.0)) for one in plan.layers))
