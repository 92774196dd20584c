"""Which step of a run a forward belongs to. Known from its timestep, and from the pipeline's scheduler where there is one.

Schedulers are only read: pipelines copy them, closures and all, so that a wrapped `step` would step the wrong one.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .state import RunState


def due(step: int, last: int, every: int, parts: Sequence[float] = (), total: int = 0) -> bool:
    """Whether it is time to look at attention again, having looked in step `last`, or never in this run for -1.

    Args:
        every: so many steps, 0 for the first alone; or at `parts` of the `total` steps, 0..1, whatever `every` says.
    """
    if parts:
        return any(last < min(int(part * total), total - 1) <= step for part in parts)
    return last < 0 or (every > 0 and step // every > last // every)


def is_protected(step: int, total: int | None, first: int, last: int) -> bool:
    """Whether a step is among the `first` or the `last` of a run; of the last nothing is known where `total` is None."""
    return step < first or (total is not None and last > 0 and step >= total - last)


@dataclass
class Schedule:
    """The scheduler of a pipeline, read anew at every step: pipelines exchange it, and set its timesteps for each run."""

    pipeline: "weakref.ref[Any] | None" = None

    def read(self) -> "Reading | None":
        """Timesteps of the run and the position in them; None without a pipeline, or before its first run."""
        pipeline = self.pipeline() if self.pipeline is not None else None
        scheduler = getattr(pipeline, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1:
            return None
        step = getattr(scheduler, "step_index", None)
        begin = getattr(scheduler, "begin_index", None)
        return Reading(timesteps, begin or 0 if step is None else int(step))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model know no pipeline."""
        return {"pipeline": None}


@dataclass(frozen=True)
class Reading:
    """What a scheduler said: its timesteps [S], and the index of the current one, 0 where it counts none."""

    timesteps: torch.Tensor
    index: int


@dataclass
class StepCounter(RunState):
    """Counts steps, and the forwards in each, of one model.

    A new step begins when timestep or scheduler index change: guidance in two calls leaves both as they are. A new run
    begins when the scheduler has new timesteps, when its index falls, or when the timestep turns round; where all of that
    fails (a run broken off in its first step, of a model without a pipeline) `restart` begins one.
    """

    schedule: Schedule = field(default_factory=Schedule)
    step: int = -1
    """Of this run and this model, from 0."""
    call: int = 0
    """Of this step, from 0."""
    position: int = 0
    """Of this step in the whole schedule, which two experts share."""
    total: int | None = None
    """Steps in the schedule, where it is known."""
    _time: float = float("nan")
    _index: int = 0
    _direction: int = 0
    _timesteps: torch.Tensor | None = None  # kept, so that no other tensor can have its identity
    _values: tuple[float, ...] = ()

    def moves(self, time: float) -> int:
        """How a forward at `time` follows the last one: 0 in its step, 1 in a later one, -1 turning back.

        After a run's first step, towards less noise counts as onward.
        """
        if time == self._time or self._time != self._time:
            return 0
        turn = (time > self._time) - (time < self._time)
        return 1 if turn == (self._direction or -1) else -1

    def at_rest(self) -> "StepCounter":
        """A counter that stands where this one does, and knows no scheduler."""
        new = StepCounter()
        new._time, new._direction = self._time, self._direction
        return new

    def restart(self) -> None:
        """The next forward begins a run."""
        self.step, self.call, self._time, self._direction = -1, 0, float("nan"), 0

    def advance(self, timestep: torch.Tensor) -> bool:
        """Count one forward; whether it begins a run.

        Args:
            timestep: of any shape: conditioned frames or tokens may be held at 0, so the largest counts.
        """
        time = float(timestep.detach().max())
        reading = self.schedule.read()
        if reading is not None and reading.timesteps is not self._timesteps:
            self._timesteps, self._values = reading.timesteps, tuple(reading.timesteps.double().tolist())
            self.restart()
        trusted = reading is not None and self._holds(time, timestep.dtype, reading.index)
        index = reading.index if trusted and reading is not None else 0
        turn = 0 if self._time != self._time else (time > self._time) - (time < self._time)
        if index < self._index or turn * self._direction < 0:
            self.restart()
            turn = 0
        if time != self._time or index != self._index:
            self.step, self.call = self.step + 1, 0
            self._direction = self._direction or turn
        else:
            self.call += 1
        self._time, self._index = time, index
        self.total = len(self._values) if trusted else None
        self.position = index or self._found(time, timestep.dtype) if trusted else self.step
        return self.step == 0 and self.call == 0

    def _holds(self, time: float, dtype: torch.dtype, index: int) -> bool:
        return holds(self._values, time, dtype, index)

    def _found(self, time: float, dtype: torch.dtype) -> int:
        """Place of a timestep in the schedule, for schedulers that do not count."""
        return next(i for i, value in enumerate(self._values) if _rounded(value, dtype) == time)

    def fresh(self) -> dict[str, Any]:
        return vars(StepCounter(Schedule(self.schedule.pipeline)))


def holds(values: Sequence[float], time: float, dtype: torch.dtype, index: int) -> bool:
    """Whether a scheduler of these timesteps is the one that `time` is of; it stands at `index`, 0 where it counts none."""
    if index:
        return index < len(values) and _rounded(values[index], dtype) == time
    return any(_rounded(value, dtype) == time for value in values)


def _rounded(value: float, dtype: torch.dtype) -> float:
    """A timestep as the pipeline hands it on: cast to the model's dtype, or to whole numbers."""
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))
