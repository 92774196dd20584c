"""Which step a forward belongs to: timesteps of every kind, two calls a step, runs that are broken off, schedulers."""

import copy
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from sedialect.sedialect_core.semantics.steps import StepCounter


def advance(counter: StepCounter, *times: float, dtype: torch.dtype = torch.float32) -> list[tuple[int, int]]:
    seen = []
    for time in times:
        counter.advance(torch.tensor([time], dtype=dtype))
        seen.append((counter.step, counter.call))
    return seen


class Pipeline:
    """As much of a pipeline as is looked at."""

    def __init__(self, scheduler, steps: int) -> None:
        self.scheduler = scheduler
        self.steps = steps

    def run(self, counter: StepCounter, calls: int = 1, until: int | None = None, dtype: torch.dtype = torch.float32):
        """Steps, calls and positions of a run; `until` breaks it off."""
        self.scheduler.set_timesteps(self.steps)
        seen = []
        for time in self.scheduler.timesteps[:until]:
            for _ in range(calls):
                counter.advance(time.expand(2).to(dtype))
                seen.append((counter.step, counter.call, counter.position, counter.total))
            self.scheduler.step(torch.ones(1, 4, 2, 2, 2), time, torch.ones(1, 4, 2, 2, 2))
        return seen


def followed(scheduler, steps: int = 5) -> tuple[Pipeline, StepCounter]:
    pipeline, counter = Pipeline(scheduler, steps), StepCounter()
    counter.schedule.pipeline = weakref.ref(pipeline)
    return pipeline, counter


def test_equal_timesteps_are_calls_of_one_step():
    assert advance(StepCounter(), 9.0, 9.0, 7.0, 7.0, 7.0, 3.0) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_the_next_run_begins_where_the_timestep_turns_round_in_either_direction():
    assert advance(StepCounter(), 9, 5, 1, 9, 5) == [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0)]
    assert advance(StepCounter(), 1, 5, 9, 1, 5) == [(0, 0), (1, 0), (2, 0), (0, 0), (1, 0)]


def test_conditioned_tokens_at_zero_do_not_hide_the_step():
    counter = StepCounter()
    for time, step in ((9.0, 0), (9.0, 0), (5.0, 1)):
        counter.advance(torch.tensor([[0.0, 0.0, time, time], [0.0, 0.0, time, time]]))
        assert counter.step == step


@pytest.mark.parametrize(
    "make",
    [FlowMatchEulerDiscreteScheduler, lambda: UniPCMultistepScheduler(use_flow_sigmas=True), DDIMScheduler],
    ids=["counts", "counts-whole-numbers", "does-not-count"],
)
@pytest.mark.parametrize("broken_off", [1, 3])
def test_a_scheduler_tells_positions_and_new_runs(make, broken_off):
    pipeline, counter = followed(make())
    wanted = [(step, call, step, 5) for step in range(5) for call in range(2)]
    assert pipeline.run(counter, calls=2) == wanted
    pipeline.run(counter, calls=2, until=broken_off)
    assert pipeline.run(counter, calls=2) == wanted


def test_timesteps_that_rounding_makes_equal_are_still_steps():
    pipeline, counter = followed(FlowMatchEulerDiscreteScheduler(shift=12.0), steps=40)
    seen = pipeline.run(counter, dtype=torch.bfloat16)
    rounded = pipeline.scheduler.timesteps.bfloat16().tolist()
    assert len(set(rounded)) < 40, "otherwise this shows nothing"
    assert [step for step, *_ in seen] == list(range(40))


def test_two_experts_share_one_schedule():
    pipeline, first = followed(FlowMatchEulerDiscreteScheduler(), steps=6)
    second = StepCounter(copy.copy(first.schedule))
    second.schedule.pipeline = weakref.ref(pipeline)
    pipeline.scheduler.set_timesteps(6)
    seen = []
    for number, time in enumerate(pipeline.scheduler.timesteps):
        counter = first if number < 2 else second
        counter.advance(time.view(1))
        seen.append((counter.step, counter.position, counter.total))
        pipeline.scheduler.step(torch.ones(1, 4), time, torch.ones(1, 4))
    assert seen == [(0, 0, 6), (1, 1, 6), (0, 2, 6), (1, 3, 6), (2, 4, 6), (3, 5, 6)]


def test_a_scheduler_that_is_copied_for_each_run_leaves_the_timesteps_to_count_by():
    """LTX-2, Cosmos 3 and SkyReels step a deep copy: the pipeline's own scheduler stands still."""
    pipeline, counter = followed(FlowMatchEulerDiscreteScheduler())
    for _ in range(2):
        pipeline.scheduler.set_timesteps(5)
        scheduler, seen = copy.deepcopy(pipeline.scheduler), []
        for time in pipeline.scheduler.timesteps:
            for _ in range(2):
                counter.advance(time.expand(2))
                seen.append((counter.step, counter.call, counter.position, counter.total))
            scheduler.step(torch.ones(1, 4), time, torch.ones(1, 4))
        assert seen == [(step, call, step, 5) for step in range(5) for call in range(2)]


def test_the_scheduler_of_another_run_is_not_believed():
    pipeline, counter = followed(FlowMatchEulerDiscreteScheduler())
    pipeline.scheduler.set_timesteps(5)
    counter.advance(torch.tensor([0.123]))
    assert counter.total is None and counter.step == 0
    pipeline.scheduler = SimpleNamespace()
    counter.advance(torch.tensor([0.1]))
    assert counter.total is None and counter.step == 1


def test_copies_know_no_pipeline_and_no_run():
    pipeline, counter = followed(FlowMatchEulerDiscreteScheduler())
    pipeline.run(counter)
    for twin in (copy.deepcopy(counter), pickle.loads(pickle.dumps(counter))):
        assert twin.schedule.pipeline is None and twin.step == -1 and twin._timesteps is None
