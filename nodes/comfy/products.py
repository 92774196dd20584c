"""Which matrix units multiply the encoded weights of a MODEL."""

from collections.abc import Callable
from typing import Any

import torch

from ...sedialect_core.plan.layers import LayerPlan, Plan
from ...sedialect_core.quantize.products import with_losses
from ...sedialect_core.quantize.units import compare_units
from . import layout


def settle_products(plan: Plan, device: torch.device, weight_of: Callable[[LayerPlan], Any]) -> Plan:
    """Tell the encoded weights which units multiply them; returns the plan with what INT8 would round too much.

    Args:
        device: where the MODEL will run.
    """
    compare_units(device, plan.config.products)
    plan = with_losses(plan, lambda layer: layout.rounding_loss(weight_of(layer)))
    for layer in plan.quantized:
        layout.set_products(weight_of(layer), plan.products_of(layer))
    return plan
