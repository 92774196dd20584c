"""Looking at what the linears of a 16-bit model read, while a pipeline runs; and at their weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...kernels import reference
from ...kernels.tables import DialectTables
from ...kernels.transform import UNCHANGED, InputTransform, transform_rows, transform_weight
from ..config import SeDialectConfig
from ..errors import ModelError
from ..formatbook.blocks import BlockSample
from ..inspection.timesteps import TimestepClock
from ..plan.layers import LayerPlan
from ..plan.rules import make_plan
from ..quantize.weights import exponents_by_weights, groups_of

ROWS = 64  # of one input that are looked at: enough, for every layer, step and prompt brings as many
WEIGHT_ROWS = 256  # of one weight

OnRows = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class Target:
    """A linear that the plan would quantize, by the name of its component and its own, and whether its inputs are, too.

    What is shown of it is equalized and rotated by `transform`, as the quantized layer would.
    """

    name: str
    linear: nn.Linear
    activations: bool
    transform: InputTransform = UNCHANGED

    def weight_rows(self, count: int, offset: float = 0.0) -> torch.Tensor:
        """Rows of the weight, as of `spread_rows`, equalized and rotated where the layer is."""
        rows = spread_rows(self.linear.weight.detach(), count, offset)
        return transform_weight(rows, self.transform)


def targets_of(models: Mapping[str, nn.Module], config: SeDialectConfig) -> list[Target]:
    """The linears that `config` would quantize, equalized by their weights as without a calibration.

    Raises:
        ModelError: a model has none, is quantized already, or none takes 4-bit activations.
    """
    found = []
    for component, model in models.items():
        for group in groups_of(make_plan(model, config).quantized):
            linears = {layer.name: _in_memory(model, component, layer) for layer in group}
            exponents = exponents_by_weights(group, _weights_of(linears))
            for layer in group:
                transform = InputTransform(exponents, layer.rotation)
                linear = linears[layer.name]
                found.append(Target(f"{component}.{layer.name}", linear, layer.precision == "w4a4", transform))
    if not any(target.activations for target in found):
        raise ModelError(f"precision {config.precision!r} has no 4-bit activations to fit a formatbook to; use 'w4a4'")
    return found


def _in_memory(model: nn.Module, component: str, layer: LayerPlan) -> nn.Linear:
    linear = model.get_submodule(layer.name)
    assert isinstance(linear, nn.Linear)
    if linear.weight.device.type == "meta":
        raise ModelError(f"{component}.{layer.name}.weight is not in memory (device meta); fit without offloading")
    return linear


def _weights_of(linears: Mapping[str, nn.Linear]) -> Callable[[LayerPlan], torch.Tensor]:
    return lambda layer: linears[layer.name].weight.detach()


@contextmanager
def watching(
    models: Mapping[str, nn.Module], targets: list[Target], every: int, on_rows: OnRows, rows: int | None = ROWS
) -> Iterator[Mapping[str, "Steps"]]:
    """Call `on_rows(name, rows [r, K])` with rows of every 4-bit input, at every `every`-th sampling step.

    Both branches of classifier-free guidance are seen, whether they come in one forward or in two. The rows are spread
    evenly over the input, so that they are the same in each run. Gives each component's steps, which count themselves.

    Args:
        rows: of one input, at most; None for all.
    """
    handles = []
    try:
        steps = {component: Steps(every) for component in models}
        for component, model in models.items():
            handles.append(model.register_forward_pre_hook(steps[component], with_kwargs=True))
        for target in targets:
            if target.activations:
                hook = _Hook(target, steps[target.name.partition(".")[0]], on_rows, rows)
                handles.append(target.linear.register_forward_pre_hook(hook, with_kwargs=True))
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def spread_rows(rows: torch.Tensor, count: int, offset: float = 0.0) -> torch.Tensor:
    """At most `count` of the rows [M, K], evenly spread; `offset` moves them by that part of the distance between two."""
    total = len(rows)
    if total <= count:
        return rows
    return rows[((torch.arange(count, device=rows.device) + offset) * (total / count)).long().clamp_(max=total - 1)]


def add_activation(sample: BlockSample, rows: torch.Tensor, tables: DialectTables, block_size: int) -> None:
    """Show rows [r, K] of one layer's input to the sample."""
    rows = rows.float()
    _add(sample, rows, reference.activation_scale(rows), tables, block_size, reference.ACTIVATION_DELTA)


def add_weight(sample: BlockSample, rows: torch.Tensor, tables: DialectTables, block_size: int) -> None:
    """Show rows [r, K] of a weight to the sample, under the row scales that the encoder finds with the start's `tables`."""
    rows = rows.float()
    scale = reference.encode_weight_rows(rows, tables, block_size).scale
    _add(sample, rows, scale, tables, block_size, reference.STORED_DELTA)


def _add(
    sample: BlockSample, rows: torch.Tensor, scale: torch.Tensor, tables: DialectTables, block_size: int, max_delta: int
) -> None:
    """A block's error counts by its true size, 4^-delta s^2, as a part of the energy of the rows that it comes with: the sum
    over them is their relative error, to which every layer, step and prompt contributes alike. Counting absolute errors, or
    every block alike, gave larger relative errors on held-out prompts (docs/formatbooks.md)."""
    energy = rows.double().square().sum()
    if not bool(energy > 0):  # zeros, or rows that are not finite
        return
    magnitude = (rows.abs() / scale.unsqueeze(1)).view(len(rows), -1, block_size)
    assigned = reference.assign(magnitude, tables, "max", max_delta)
    unit = scale.double().unsqueeze(1) * torch.pow(2.0, -assigned.delta.double())
    sample.add(assigned.q.flatten(0, 1), (unit.square() / energy).flatten())


class Steps:
    """A transformer's forward pre-hook that counts sampling steps, every `every`-th of which is looked at."""

    def __init__(self, every: int) -> None:
        self.every, self.clock = every, TimestepClock()

    @property
    def number(self) -> int:
        """Of this step, from 0."""
        return self.clock.number

    @property
    def chosen(self) -> bool:
        """Whether this step is looked at."""
        return self.number % self.every == 0

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.clock.advance(kwargs.get("timestep", args[1] if len(args) > 1 else None))  # ComfyUI passes it by its place


class _Hook:
    """A linear's forward pre-hook."""

    def __init__(self, target: Target, steps: Steps, on_rows: OnRows, rows: int | None) -> None:
        self.name, self.transform, self.steps, self.on_rows, self.rows = target.name, target.transform, steps, on_rows, rows

    def __call__(self, linear: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.steps.chosen:
            x = args[0] if args else kwargs["input"]
            rows = x.detach().reshape(-1, x.shape[-1])
            rows = rows if self.rows is None else spread_rows(rows, self.rows)
            self.on_rows(self.name, transform_rows(rows, self.transform))
