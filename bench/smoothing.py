"""A scale a channel between what a layer reads and its weight, for peers: SmoothQuant's migration (arXiv 2211.10438).

Activations are divided and weights multiplied by powers of two, so that nothing but rounding changes. By root mean squares:
s_k = (rms x_k / rms w_k)^0.5, which also served best where channels were like each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..sedialect_core.calibration.capture import Target, watching
from ..sedialect_core.plan.layers import LayerPlan
from ..sedialect_core.quantize.equalization import column_norms
from ..sedialect_core.quantize.weights import groups_of

Sizes = Mapping[str, torch.Tensor]
"""Root mean squares of the channels that each layer reads, float32 [K], by the layer's name."""


@contextmanager
def measuring_sizes(
    models: Mapping[str, nn.Module], layers: Mapping[str, Sequence[LayerPlan]]
) -> Iterator[Mapping[str, Sizes]]:
    """Sizes of what the layers read while the block runs, by component; they are there when it ends."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, rows: torch.Tensor) -> None:
        total = rows.float().square().sum(0)
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + len(rows)

    found: dict[str, dict[str, torch.Tensor]] = {}
    with watching(models, targets_in(models, layers), 1, add, rows=None):
        yield found
    for target, total in sums.items():
        component, _, name = target.partition(".")
        found.setdefault(component, {})[name] = (total / counts[target]).sqrt()


def targets_in(models: Mapping[str, nn.Module], layers: Mapping[str, Sequence[LayerPlan]]) -> list[Target]:
    """These layers, by component, as what `watching` shows."""
    return [
        Target(f"{component}.{layer.name}", linear_of(model, layer.name), activations=True)
        for component, model in models.items()
        for layer in layers[component]
    ]


def smoothing_of(model: nn.Module, layers: Sequence[LayerPlan], sizes: Sizes) -> dict[str, torch.Tensor]:
    """The scale of each layer whose activations are rounded, powers of two [K]; one for all that share an input."""
    found = {}
    for group in groups_of(layer for layer in layers if layer.precision != "w4a16" and layer.name in sizes):
        norms = column_norms(linear_of(model, layer.name).weight.detach() for layer in group)
        scale = power_of_two_scale(sizes[group[0].name].to(norms.device), norms.float())
        found.update({layer.name: scale for layer in group})
    return found


def power_of_two_scale(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(inputs / weights)^0.5 over its geometric mean, each to the nearest power of two, [K]; 1 where one of them is 0."""
    known = (inputs > 0) & (weights > 0)
    exponent = torch.where(known, inputs / weights, 1.0).log2() / 2
    mean = exponent[known].mean() if bool(known.any()) else 0.0
    return torch.where(known, torch.exp2((exponent - mean).round()), 1.0)


def linear_of(model: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear
