"""What tests of `sedialect bench speed` measure with: small linears, an arm by its name, trials on the CPU, results."""

from pathlib import Path

import torch
from torch import nn

from sedialect.bench.speed import arms
from sedialect.bench.speed.results import Part, Row
from sedialect.bench.speed.timing import Clock
from sedialect.bench.speed.trials import Trials

CPU = torch.device("cpu")


def linears(count: int = 1, width: int = 64) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(width, width, dtype=torch.bfloat16).requires_grad_(False) for _ in range(count)]


def arm(name: str) -> arms.Arm:
    return arms.choose_arms([name])[-1]


def trials(folder: Path | None = None, seconds: float = 60) -> Trials:
    return Trials(Part("layers", {"device": "test"}, folder=folder), Clock(seconds), CPU)


def part(*rows: Row, device: str = "H200") -> Part:
    return Part("layers", {"device": device}, list(rows))
