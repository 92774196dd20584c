"""Telling sampling steps apart by the timesteps that a transformer is given."""

from dataclasses import dataclass

import torch


@dataclass
class TimestepClock:
    """Counts the sampling steps of one model by its timesteps alone: one step, whatever forwards guidance makes of it."""

    number: int = -1
    """Of this step, from 0."""
    timestep: float | None = None

    def advance(self, timestep: object) -> bool:
        """Count one forward; whether it begins a step. Without a timestep, every forward does."""
        value = float(timestep.float().max()) if isinstance(timestep, torch.Tensor) else None
        begins = value is None or value != self.timestep
        self.number, self.timestep = self.number + begins, value
        return begins
