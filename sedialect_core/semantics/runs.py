"""Which run a forward belongs to, where several take turns on one model: in one thread, for each thread has its own state.

What tells runs apart, surest first: the scheduler whose timesteps the forward's was taken from; the schedulers that stand at
this very timestep; the tensors of the prompt, which a run hands over again at every step.
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ModelError
from .state import RunState
from .steps import Schedule, StepCounter, holds

KEPT = 8  # runs of a thread; the least recently used is forgotten


@dataclass
class Run:
    """A run that may go on: whose scheduler, which prompts, and its state while another one runs."""

    scheduler: Any = None  # a weak reference, or None for a run of no known scheduler
    prompts: list[Any] = field(default_factory=list)  # weak references
    states: list[dict[str, Any]] | None = None  # of each `RunState`, while the run waits
    counter: StepCounter | None = None  # as it stood when the run began to wait

    def knows(self, prompts: Sequence[torch.Tensor]) -> bool:
        """Whether it has been handed one of these tensors before."""
        return any(known() is prompt for known in self.prompts for prompt in prompts)

    def waits_for(self, time: float) -> bool:
        """Whether a forward at `time` may be its next."""
        return self.counter is not None and self.counter.moves(time) >= 0

    def learn(self, prompts: Sequence[torch.Tensor]) -> None:
        """Remember these, and forget those that are gone."""
        self.prompts = [known for known in self.prompts if known() is not None]
        self.prompts += [weakref.ref(prompt) for prompt in prompts if not self.knows([prompt])]


class Runs(threading.local):
    """The runs of one model in this thread, the least recent first; the last one's state is in place."""

    def __init__(self) -> None:
        self.kept: list[Run] = []
        self.values: dict[int, tuple[torch.Tensor, tuple[float, ...]]] = {}  # timesteps of schedulers, by identity

    def __reduce__(self) -> tuple[Any, ...]:
        return Runs, ()

    def enter(
        self,
        states: Sequence[RunState],
        pipelines: Sequence[Any],
        time: torch.Tensor,
        counter: StepCounter,
        prompts: list[torch.Tensor],
    ) -> Any:
        """Put the state of the run in place that this forward belongs to.

        Args:
            states: what belongs to a run; `counter` is one of them.
            pipelines: those that hold the model.
            time: the forward's timestep.
            prompts: other tensors of the forward.

        Returns:
            The pipeline whose scheduler counts the steps, or None.

        Raises:
            ModelError: two runs stand at this step, and nothing tells them apart.
        """
        schedulers = {id(pipe.scheduler): pipe for pipe in pipelines if getattr(pipe, "scheduler", None) is not None}
        several = len(schedulers) > 1
        pipeline = self._pipeline_of(list(schedulers.values()), time, prompts) if several else None
        run = self._by_prompts(time, counter, prompts) if pipeline is None else self._of(pipeline.scheduler)
        self._switch(states, counter, run, prompts)
        return pipeline if several else next(iter(schedulers.values()), None)

    def _pipeline_of(self, pipelines: list[Any], time: torch.Tensor, prompts: list[torch.Tensor]) -> Any:
        """The pipeline whose run this forward is one of, or None where no scheduler has its timestep."""
        at_it = []
        for pipeline in pipelines:
            reading = Schedule(weakref.ref(pipeline)).read()
            if reading is None:
                continue
            if reading.timesteps.untyped_storage().data_ptr() == time.untyped_storage().data_ptr():
                return pipeline  # the very tensor that the pipeline goes through
            if holds(self._values(reading.timesteps), float(time.detach().max()), time.dtype, reading.index):
                at_it.append(pipeline)
        if len(at_it) < 2:
            return at_it[0] if at_it else None
        known = [pipeline for pipeline in at_it if (run := self._find(pipeline.scheduler)) and run.knows(prompts)]
        if len(known) == 1:
            return known[0]
        beginning = [pipeline for pipeline in at_it if self._find(pipeline.scheduler) is None]
        if not known and len(beginning) == 1:
            return beginning[0]
        raise ModelError(
            f"{len(at_it)} pipelines share this model and stand at the same step, and nothing tells their forwards apart; "
            "give each its own prompt tensors, or its own thread"
        )

    def _values(self, timesteps: torch.Tensor) -> tuple[float, ...]:
        found = self.values.get(id(timesteps))
        if found is None or found[0] is not timesteps:
            if len(self.values) >= KEPT:
                self.values.clear()
            found = self.values[id(timesteps)] = (timesteps, tuple(timesteps.double().tolist()))
        return found[1]

    def _find(self, scheduler: Any) -> Run | None:
        return next((run for run in self.kept if run.scheduler is not None and run.scheduler() is scheduler), None)

    def _of(self, scheduler: Any) -> Run:
        return self._find(scheduler) or Run(weakref.ref(scheduler))

    def _by_prompts(self, time: torch.Tensor, counter: StepCounter, prompts: list[torch.Tensor]) -> Run:
        """Of the runs that no scheduler tells apart, the one that this forward belongs to.

        A run that knows the prompt goes on; one that waits, where the timestep leads on from its last. Other forwards at
        the current timestep are calls of the current step. An unknown prompt goes with the current run, unless the timestep
        turns back while the prompt of that run is still there: then another begins.
        """
        current = self.kept[-1] if self.kept and self.kept[-1].scheduler is None else None
        now = float(time.detach().max())
        if current is not None and current.knows(prompts):
            return current
        waiting = [run for run in self.kept if run.scheduler is None and run is not current and run.knows(prompts)]
        onward = [run for run in waiting if run.waits_for(now)]
        if onward:
            return onward[-1]
        moved = counter.moves(now)
        if current is not None and moved == 0:
            return current
        if waiting:
            return waiting[-1]
        goes_on = current is not None and (moved > 0 or not prompts or not _can_go_on(current))
        return current if current is not None and goes_on else Run()

    def _switch(self, states: Sequence[RunState], counter: StepCounter, run: Run, prompts: list[torch.Tensor]) -> None:
        before = self.kept[-1] if self.kept else None
        if before is not None and run is not before:
            before.states, before.counter = [dict(vars(state)) for state in states], counter.at_rest()
            for state, values in zip(states, run.states or [state.fresh() for state in states], strict=True):
                vars(state).clear()
                vars(state).update(values)
        run.states = run.counter = None
        run.learn(prompts)
        alive = [kept for kept in self.kept if kept is not run and _can_go_on(kept)]
        self.kept = [*alive[1 - KEPT :], run]


def _can_go_on(run: Run) -> bool:
    if run.scheduler is not None:
        return run.scheduler() is not None
    return any(known() is not None for known in run.prompts)


def prompts_of(arguments: Mapping[str, Any], besides: Sequence[str]) -> list[torch.Tensor]:
    """The tensors of a forward that may be its prompt's: all but latents and timesteps."""
    return [value for name, value in arguments.items() if name not in besides and isinstance(value, torch.Tensor)]
