"""Weights that arrive one at a time, in any order and from several threads, encoded by groups."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..plan.layers import LayerPlan, Plan
from ..quantize.weights import EncodedLayer, WeightEncoder, groups_of


class GroupedWeights:
    """Holds the weights of layers that read one input until all are there, for their exponents are chosen together.

    So a few 16-bit weights at most are held; a layer that shares its input with none, or is not equalized, waits for none.
    """

    def __init__(self, plan: Plan, encoder: WeightEncoder) -> None:
        self.encoder = encoder
        groups = [
            part
            for group in groups_of(plan.quantized)
            for part in ([group] if any(layer.equalized for layer in group) else [(layer,) for layer in group])
        ]
        self._groups = {layer.name: group for group in groups for layer in group}
        self._held: dict[str, torch.Tensor] = {}
        self._done: dict[str, LayerPlan] = {}
        self._lock = threading.Lock()

    def add(self, name: str, weight: torch.Tensor) -> Iterator[EncodedLayer]:
        """Take the weight of the layer called `name`; give the layers of its group if it was the last of them.

        Raises:
            EncodeError: a weight holds NaN or Inf.
        """
        group = self._groups[name]
        with self._lock:
            self._held[name] = weight
            if any(layer.name not in self._held for layer in group):
                return
            weights = {layer.name: self._held.pop(layer.name) for layer in group}
        for found in self.encoder.encode(group, lambda layer: weights[layer.name]):
            self._done[found.plan.name] = found.plan
            yield found

    def carried_out(self, plan: Plan) -> Plan:
        """The plan, with what became of each layer."""
        return replace(plan, layers=tuple(self._done.get(layer.name, layer) for layer in plan.layers))
