"""Loss curves: collected without making the GPU wait, written to the log now and then."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

Log = Callable[[str], None]


class Progress:
    """Averages the losses of a stage over stretches of steps into `curve` and logs each stretch."""

    def __init__(self, name: str, steps: int, log: Log, stretches: int = 50) -> None:
        self.name, self.steps, self.log = name, steps, log
        self.every = max(1, steps // stretches)
        self.curve: list[tuple[int, float]] = []
        self.recent: list[Tensor] = []
        self.start = time.time()

    def add(self, step: int, loss: Tensor) -> None:
        """Take the loss of one step; reading its value, for which the GPU has to finish, is put off."""
        self.recent.append(loss)
        if step % self.every and step != self.steps:
            return
        self.curve.append((step, torch.stack(self.recent).mean().item()))
        self.recent = []
        seconds = time.time() - self.start
        self.log(f"{self.name} step {step}/{self.steps} loss {self.curve[-1][1]:.4f} {seconds:.0f} s")
