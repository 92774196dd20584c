"""Merges with other models in front of SeDialect Quantize: part of the weights that are encoded.

Beside encoded weights, as LoRAs are, each would keep the other model's weight and cost a dense product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import torch

from ...sedialect_core.plan.layers import Plan
from .adapters import Patch


@dataclass(frozen=True)
class Merged:
    """A layer's weight that is merged when it is asked for, so that never two of them lie in memory."""

    weight: Any
    patches: Sequence[Patch]
    key: str

    @property
    def dtype(self) -> torch.dtype:
        """What it is merged to."""
        dtype: torch.dtype = self.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where its codes go."""
        device: torch.device = self.weight.device
        return device

    def to(self, device: torch.device) -> torch.Tensor:
        """The merged weight [N, K]."""
        own = self.weight.to(device).to(torch.float32, copy=True)
        merged: torch.Tensor = comfy.lora.calculate_weight(list(self.patches), own, self.key)
        return merged.to(self.dtype)


def put_merges(patcher: Any, weights: dict[str, Any], plan: Plan) -> tuple[Plan, set[str]]:
    """Put merged weights in the place of those that another model is merged into; the plan, which says so, and the keys of
    ComfyUI's patches that are done with. Whatever else is on such a layer is merged with it, in its order."""
    done = set()
    for layer in plan.quantized:
        name = f"{layer.name}.weight"
        key = f"diffusion_model.{name}"
        patches = patcher.patches.get(key, ())
        if any(isinstance(patch[1], list) for patch in patches):  # ComfyUI's own word for another model's weight
            weights[name] = Merged(weights[name], patches, key)
            done.add(key)
    note = f"another model is merged into {len(done)} layers before they are encoded"
    return (replace(plan, notes=(*plan.notes, note)) if done else plan), done
