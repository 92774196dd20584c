"""An exponential moving average of weights, which is what gets shipped instead of the last step's weights."""

import torch
from torch import nn


class Average:
    """Averages the parameters of a module; early on with a shorter memory, so that the start is forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.values = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.values, [p.detach() for p in module.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)
