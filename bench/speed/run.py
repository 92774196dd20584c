"""The bench as a whole: which parts, in which order, and where their results go."""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...sedialect_core.errors import InputError
from .arms import Arm, choose_arms
from .attentions import ATTENTIONS, QUICK_ATTENTIONS, measure_attentions
from .block_kinds import BLOCKS, QUICK_BLOCKS
from .blocks import measure_blocks
from .enabling import measure_enabling
from .floors import measure_kernels
from .layers import measure_layers
from .machine import machine
from .models import MODELS, QUICK_MODELS, measure_models
from .pieces import measure_pieces
from .results import Part
from .shapes import LAYERS, QUICK_LAYERS
from .timing import Clock
from .trials import Trials

KERNEL_LAYERS = ("wan-14b out", "wan-14b feed-forward up", "wan-14b feed-forward down", "wan-1.3b out")
# In the order of measuring, with their shares of the seconds that are left. What costs little stands before what compiles.
SHARES = {"kernels": 1.5, "attention": 1.0, "layers": 4.0, "enabling": 1.0, "blocks": 3.5, "pieces": 1.5, "models": 4.0}
Case = TypeVar("Case")


@dataclass(frozen=True)
class Choice:
    """What to measure. None for a part's names means all of them; a part that is not in `names` is left out."""

    names: dict[str, Sequence[str] | None]
    arms: Sequence[str] | None = None
    quick: bool = False
    compile: bool = True
    seconds: float = 280.0


def measure_speed(choice: Choice, device: torch.device, folder: Path, where: dict[str, Any]) -> dict[str, Part]:
    """Measure the chosen parts; each row is in `folder` as soon as it is measured.

    Args:
        where: machine, versions and date; the GPU and the peers' versions are added.

    Raises:
        InputError: a name is unknown, or the folder cannot be written.
    """
    arms = choose_arms(choice.arms)
    to_compile = {arm.name for arm in arms if not choice.quick or arm.name == "w4a4"} if choice.compile else set()
    _choose(choice)  # an unknown name is an error before anything is measured
    clock, where = Clock(choice.seconds), where | machine(device)
    names = [name for name in SHARES if name in choice.names]
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        gc.freeze()  # what is loaded already need not be looked through at every collection
    parts: dict[str, Part] = {}
    for number, name in enumerate(names):
        part = parts[name] = Part(name, where, folder=folder)
        part.save(folder)
        share = SHARES[name] / sum(SHARES[other] for other in names[number:])
        trials = Trials(part, Clock(clock.left * share), device)
        _measure(name, _choose(choice)[name], trials, arms, to_compile, choice.quick)
    return parts


def _measure(name: str, cases: Any, trials: Trials, arms: tuple[Arm, ...], to_compile: set[str], quick: bool) -> None:
    match name:
        case "kernels":
            measure_kernels(trials, cases, quick)
        case "attention":
            measure_attentions(trials, cases, bool(to_compile))
        case "layers":
            measure_layers(trials, cases, tuple(arm for arm in arms if arm.has_layers), to_compile)
        case "blocks":
            measure_blocks(trials, cases, arms, to_compile)
        case "pieces":
            measure_pieces(trials, cases, arms, to_compile)
        case "models":
            measure_models(trials, cases, arms, to_compile)
        case "enabling":
            measure_enabling(trials, cases)


def _choose(choice: Choice) -> dict[str, tuple[Any, ...]]:
    """The cases of each part. Layers are chosen by their model."""
    layers, blocks, models = (QUICK_LAYERS, QUICK_BLOCKS, QUICK_MODELS) if choice.quick else (LAYERS, BLOCKS, MODELS)
    attentions = QUICK_ATTENTIONS if choice.quick else ATTENTIONS
    kernels = layers if choice.quick else tuple(layer for layer in layers if str(layer) in KERNEL_LAYERS)
    known: dict[str, dict[str, list[Any]]] = {
        "kernels": _by_name((str(layer), layer) for layer in kernels),
        "attention": _by_name((attention.model, attention) for attention in attentions),
        "layers": _by_name((layer.model, layer) for layer in layers),
        "blocks": _by_name((kind.name, kind) for kind in blocks),
        "pieces": _by_name((kind.name, kind) for kind in blocks),
        "models": _by_name((model.name, model) for model in models),
        "enabling": _by_name((model.name, model) for model in models),
    }
    return {part: _named(part, known[part], names) for part, names in choice.names.items()}


def _by_name(pairs: Iterable[tuple[str, Case]]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for name, case in pairs:
        groups.setdefault(name, []).append(case)
    return groups


def _named(part: str, known: dict[str, list[Case]], names: Sequence[str] | None) -> tuple[Case, ...]:
    for name in names or ():
        if name not in known:
            raise InputError(f"--{part} has no {name!r}; there are {', '.join(known)}")
    return tuple(case for name, group in known.items() if not names or name in names for case in group)
