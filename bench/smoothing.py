"""A scale a channel between what a layer reads and its weight, for peers: SmoothQuant's migration (arXiv 2211.10438).

Activations are divided and weights multiplied by powers of two, so that nothing but rounding changes. By root mean squares:
s_k = (rms x_k / rms w_k)^0.5, which also served best where channels were like each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..sedialect_core.plan.layers import LayerPlan

Sizes = Mapping[str, torch.Tensor]
"""Root mean squares of the channels that each layer reads, float32 [K], by the layer's name."""


@contextmanager
def measuring_sizes(
    models: Mapping[str, nn.Module], layers: Mapping[str, Sequence[LayerPlan]]
) -> Iterator[dict[str, Sizes]]:
    """Sizes of what the layers read while the block runs, by component; they are there when it ends."""
    sums: dict[tuple[str, str], torch.Tensor] = {}
    counts: dict[tuple[str, str], int] = {}
    handles = []
    for component, model in models.items():
        for layer in layers[component]:
            key = component, layer.name

            def add(_: nn.Module, args: tuple[torch.Tensor, ...], key: tuple[str, str] = key) -> None:
                rows = args[0].detach().float().flatten(0, -2)
                total = rows.square().sum(0)
                sums[key] = sums[key] + total if key in sums else total
                counts[key] = counts.get(key, 0) + len(rows)

            handles.append(model.get_submodule(layer.name).register_forward_pre_hook(add))
    found: dict[str, Sizes] = {}
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for component in models:
        found[component] = {
            name: (total / counts[owner, name]).sqrt() for (owner, name), total in sums.items() if owner == component
        }


def smoothing_of(model: nn.Module, layers: Sequence[LayerPlan], sizes: Sizes) -> dict[str, torch.Tensor]:
    """The scale of each layer whose activations are rounded, powers of two [K]; one for all that share an input."""
    groups: dict[str, list[LayerPlan]] = {}
    for layer in layers:
        if layer.precision != "w4a16" and layer.name in sizes:
            groups.setdefault(layer.shared_input or layer.name, []).append(layer)
    found = {}
    for group in groups.values():
        weights = torch.cat([_weight(model, layer.name) for layer in group])
        scale = power_of_two_scale(sizes[group[0].name].to(weights.device), weights.square().mean(0).sqrt())
        found.update({layer.name: scale for layer in group})
    return found


def power_of_two_scale(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(inputs / weights)^0.5 over its geometric mean, each to the nearest power of two, [K]; 1 where one of them is 0."""
    known = (inputs > 0) & (weights > 0)
    exponent = torch.where(known, inputs / weights, 1.0).log2() / 2
    mean = exponent[known].mean() if bool(known.any()) else 0.0
    return torch.where(known, torch.exp2((exponent - mean).round()), 1.0)


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach().float()
