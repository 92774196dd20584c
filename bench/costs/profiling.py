"""What looking at attention, and acting on it, adds to a step: one block of a large model at a video's length."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.environment import machine_line
from ...sedialect_core.integrations.models import quantize_model
from ..speed.block_kinds import make_model
from ..speed.models import WholeModel, model_inputs, model_of
from ..speed.timing import peak_memory, timed

ROUNDS = 6
WATCHED: dict[str, Any] = {"semantic": True, "salient_by": "attention", "salient_ratio": 0.1}
STEPS = ("attention is profiled", "groups are formed", "neither")  # of one round, in this order
FIRST_TIME = 999


@dataclass(frozen=True)
class Cost:
    """Milliseconds of a forward, and bytes on the GPU beyond what was there before; no bytes on a CPU."""

    name: str
    ms: float
    bytes: float | None


def measure_profiling(device: torch.device, quick: bool = False) -> list[Cost]:
    """A forward of one block with 4-bit activations alone; then with salient tokens and groups, by what the step does.

    Args:
        quick: a tiny block, which says nothing of the cost.
    """
    whole = model_of(quick)
    plain, watched = (_model(whole, device, settings) for settings in ({}, WATCHED))
    clock = _Clock(whole, device)
    alone = clock.costs(plain, ["w4a4 alone"])
    return [*alone, *clock.costs(watched, [f"w4a4 with both; {step}" for step in STEPS])]


def render(costs: list[Cost], where: dict[str, Any]) -> str:
    """A Markdown table, with what it was measured on; ratios are to the last step, in which nothing is looked at."""
    ordinary = costs[-1].ms
    lines = ["| step | ms | of an ordinary step | memory beyond, MB |", "|---|---|---|---|"]
    for cost in costs:
        memory = "-" if cost.bytes is None else f"{cost.bytes / 1e6:.0f}"
        lines.append(f"| {cost.name} | {cost.ms:.2f} | {cost.ms / ordinary:.2f} | {memory} |")
    return "\n".join([*lines, "", machine_line(where, ["torch"])])


def _model(whole: WholeModel, device: torch.device, settings: dict[str, Any]) -> nn.Module:
    model = make_model(whole.blocks, device)
    quantize_model(model, SeDialectConfig(**settings, refresh_every=len(STEPS)))
    return model


class _Clock:
    """Times forwards of one video at timesteps that fall, so that steps follow each other as in a run."""

    def __init__(self, whole: WholeModel, device: torch.device) -> None:
        self.device = device
        self.inputs = model_inputs(whole, device, 1)

    def costs(self, model: nn.Module, names: list[str]) -> list[Cost]:
        """One of each name: forwards take turns, and the first round only warms up."""
        spent: dict[str, list[float]] = {name: [] for name in names}
        memory: dict[str, float | None] = {}
        for turn in range(ROUNDS + 2):
            for number, name in enumerate(names):
                forward = self._forward(model, FIRST_TIME - turn * len(names) - number)
                if turn == ROUNDS + 1:
                    memory[name] = peak_memory(forward, self.device).get("peak bytes beyond")
                else:
                    spent[name].append(self._time(forward))
        return [Cost(name, median(spent[name][1:]), memory[name]) for name in names]

    @torch.no_grad()
    def _time(self, forward: Callable[[], Any]) -> float:
        return 1e3 * timed(forward, self.device)[1]

    def _forward(self, model: nn.Module, timestep: int) -> Callable[[], Any]:
        inputs = self.inputs | {"timestep": torch.full((1,), timestep, device=self.device)}
        return lambda: model(**inputs)
