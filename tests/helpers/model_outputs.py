"""What a model gives for a set of inputs, as a flat list of tensors that two models can be compared by."""

from typing import Any

import torch
from torch import nn


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in a nest of mappings and sequences, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def outputs(model: nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The outputs of one forward without gradients.

    The weights are copied first: CPU libraries choose code by the address where weights begin, and a mapped file begins them
    anywhere.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    with torch.no_grad():
        return tensors(model(**inputs))
