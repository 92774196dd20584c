"""Whole transformers at random weights: seconds of a step and the memory it takes.

They are built on the GPU block by block, so the quantized ones never lie there in 16 bit. Random weights make no video:
nothing here is about quality.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from .arms import Arm
from .block_kinds import Blocks, make_model, wan, wan_config
from .blocks import stored_bytes
from .results import NOT_MEASURED
from .shapes import WAN_480P, WAN_TEXT, Video
from .timing import collect, time_long_calls, timed
from .trials import COMPILED, EAGER, Numbers, Trials, backend, fresh_compiler

TEXT_WIDTH, CHANNELS = 4096, 16


@dataclass(frozen=True)
class WholeModel:
    """A Wan-shaped transformer: its block, how many of them, and the video it denoises."""

    name: str
    blocks: Blocks
    count: int
    video: Video
    small: Blocks
    """What is enabled from CPU memory, to see what that takes on the GPU."""


MODELS = (
    WholeModel(
        "wan-14b",
        wan("wan-14b", WAN_480P, WAN_TEXT, wan_config(5120, 13824)),
        40,
        WAN_480P,
        wan("wan-1.3b", WAN_480P, WAN_TEXT, wan_config(1536, 8960)),
    ),
)
_TINY = Video(64, 64, 9)
_TINY_WAN = wan("tiny-wan", _TINY, WAN_TEXT, wan_config(64, 128, 32))
QUICK_MODELS = (WholeModel("tiny-wan", _TINY_WAN, 3, _TINY, replace(_TINY_WAN, name="small")),)


def model_of(quick: bool) -> WholeModel:
    """The one large model whose block stands for it in other benches; `quick`: a tiny one, which says nothing of it."""
    (whole,) = QUICK_MODELS if quick else MODELS
    return whole


def measure_models(trials: Trials, models: Iterable[WholeModel], arms: tuple[Arm, ...], to_compile: set[str]) -> None:
    """Each model with every arm: compiled block by block, as it is where that is not asked for or fails."""
    for model in models:
        for arm in arms:
            mode = COMPILED if arm.name in to_compile and not arm.tunes_itself else EAGER
            row = trials.run(model.name, arm.name, mode, partial(measure, model, arm, mode, trials.device))
            if mode == COMPILED and not row.numbers and not row.note.startswith(NOT_MEASURED):
                trials.run(model.name, arm.name, EAGER, partial(measure, model, arm, EAGER, trials.device))


def measure(model: WholeModel, arm: Arm, mode: str, device: torch.device) -> Numbers:
    """Step time, peak memory of a step with the weights in it, and how long quantizing took."""
    fresh_compiler()  # it may keep the model before
    collect(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    whole, quantizing = build(model, arm, device)
    collect(device)
    weights = stored_bytes(whole) - base
    if mode == COMPILED:
        whole.compile_repeated_blocks(dynamic=False, backend=backend(device))
    inputs = [model_inputs(model, device, seed) for seed in (1, 2)]
    timing, memory = time_long_calls(lambda x: whole(**x), inputs, device)
    return timing.numbers() | {"weight bytes": weights, "quantizing, s": quantizing} | memory


def build(model: WholeModel, arm: Arm, device: torch.device) -> tuple[Any, float]:
    """The transformer as the arm has it, and seconds that turning its linears into the arm's took."""
    whole: Any = None
    seconds = 0.0
    for _ in range(model.count):
        part: Any = make_model(model.blocks, device)
        seconds += timed(partial(arm.model, part, model.blocks.rows), device)[1]
        if whole is None:
            whole = part
        else:
            whole.blocks.append(part.blocks[0])
    return whole, seconds


def model_inputs(model: WholeModel, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    """Arguments of a forward."""
    torch.manual_seed(seed)
    frames, height, width = model.video.grid
    kind: Any = {"device": device, "dtype": torch.bfloat16}
    return {
        "hidden_states": torch.randn(1, CHANNELS, frames, 2 * height, 2 * width, **kind),
        "timestep": torch.full((1,), 500, device=device),
        "encoder_hidden_states": torch.randn(1, WAN_TEXT, TEXT_WIDTH, **kind),
    }
