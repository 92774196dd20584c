"""What calibrating takes: one block of a large model at a video's length, by the very path that a pipeline takes.

The blocks of such a model are alike and are done one after another, so a model's time is reckoned from one block's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from ...sedialect_core.calibration.cache import CalibrationCache
from ...sedialect_core.calibration.gathering import Run, gather, inputs_of
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.environment import machine_line
from ...sedialect_core.quantize.apply import quantize_layers
from ..speed.block_kinds import make_model
from ..speed.models import WholeModel, model_inputs, model_of
from ..speed.timing import peak_memory, timed

FORWARDS = 4, 8  # two runs, so that what comes once can be told from what comes with each forward
SAMPLED = {"prompts": 8, "steps": 20, "branches": 2, "every": 2}  # of a calibration that is asked for nothing else


@dataclass(frozen=True)
class Stage:
    """Seconds of one part of the work on a block, and the most bytes on the GPU meanwhile; no bytes on a CPU."""

    name: str
    seconds: float
    bytes: float | None


def measure_calibrating(device: torch.device, quick: bool = False) -> list[Stage]:
    """A forward as it is; one whose inputs are summed up as moments; then both ways of encoding the block's weights.

    Args:
        quick: a tiny block, which says nothing of the cost.
    """
    whole = model_of(quick)
    model: Any = make_model(whole.blocks, device)
    inputs = [model_inputs(whole, device, seed) for seed in range(FORWARDS[1])]

    @torch.no_grad()
    def forward(number: int) -> None:
        model(**inputs[number])

    forward(0)  # the first one chooses the kernels of all products
    spent = [_stage("forward", device, partial(forward, number)) for number in range(FORWARDS[0])]
    ordinary = Stage("a forward", median(stage.seconds for stage in spent), spent[0].bytes)
    runs, caches = [], []
    for count in (FORWARDS[0], *FORWARDS):  # the first of all chooses the kernels of the moments
        caches.append(CalibrationCache({}, (None, None, None), tuple(inputs_of("block", model, SeDialectConfig()))))
        run = Run({"block": model}, range(count), forward, every=1)
        runs.append(_stage("gathering", device, partial(gather, run, caches[-1], device, progress=False)))
    each = (runs[2].seconds - runs[1].seconds) / (FORWARDS[1] - FORWARDS[0])
    summed = Stage("the same, inputs summed up", each, runs[2].bytes)
    kept = Stage("moving the moments to main memory", runs[1].seconds - FORWARDS[0] * each, None)
    _plainly(whole, device)  # the first time compiles kernels
    plain = _plainly(whole, device)
    statistics = caches[-1].component("block")
    calibrated = _stage("encoding with the moments", device, lambda: quantize_layers(model, calibration=statistics))
    return [ordinary, summed, kept, plain, calibrated]


def _plainly(whole: WholeModel, device: torch.device) -> Stage:
    fresh = make_model(whole.blocks, device)
    return _stage("encoding plainly", device, lambda: quantize_layers(fresh))


def render(stages: list[Stage], where: dict[str, Any], quick: bool = False) -> str:
    """A Markdown table, what follows for the whole model, and what it was measured on."""
    whole = model_of(quick)
    lines = [f"| one block of {whole.name} | s | peak memory, GB |", "|---|---|---|"]
    for stage in stages:
        memory = "-" if stage.bytes is None else f"{stage.bytes / 1e9:.1f}"
        lines.append(f"| {stage.name} | {stage.seconds:.2f} | {memory} |")
    return "\n".join([*lines, "", _whole_model(whole, stages), "", machine_line(where, ["torch"])])


def _whole_model(whole: WholeModel, stages: list[Stage]) -> str:
    """Minutes of all blocks, by what one took."""
    forward, summed, kept, plain, calibrated = (stage.seconds * whole.count / 60 for stage in stages)
    all_forwards = SAMPLED["prompts"] * SAMPLED["steps"] * SAMPLED["branches"]
    watched = all_forwards // SAMPLED["every"]
    return (
        f"Reckoned for {whole.count} blocks: encoding {calibrated:.1f} minutes ({plain:.1f} plainly); sampling "
        f"{SAMPLED['prompts']} prompts in {SAMPLED['steps']} steps and {SAMPLED['branches']} branches "
        f"{all_forwards * forward:.0f} minutes, and summing up at every {SAMPLED['every']}nd step "
        f"{watched * (summed - forward) + kept:.0f} minutes more."
    )


def _stage(name: str, device: torch.device, job: Callable[[], Any]) -> Stage:
    spent: list[float] = []
    memory = peak_memory(lambda: spent.append(timed(job, device)[1]), device)
    return Stage(name, spent[0], memory.get("peak bytes"))
