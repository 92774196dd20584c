"""The 16-bit trajectory, recorded once, and other arithmetic led along it.

What the 16-bit transformers gave is recorded call by call. Later the same pipeline runs with an arm in its transformers, and
each call gives the recorded output to the sampler after the arm's own has been taken: so every arm sees the 16-bit latents
at every step, and whatever hooks and schedules it has run as they do when a video is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ...sedialect_core.errors import InputError
from ...sedialect_core.inspection.timesteps import TimestepClock

Forward = Callable[..., Any]
BRANCHES = ("guided", "conditional", "unconditional")


class Call(NamedTuple):
    """One call of a transformer: at which sampling step, and what it gave, on the CPU."""

    step: int
    output: torch.Tensor


@dataclass(frozen=True)
class Trajectory:
    """The calls of one batch of `size` videos, and the guidance scale that joins their branches."""

    size: int
    guidance: float
    calls: tuple[Call, ...]

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return self.calls[-1].step + 1

    def part(self, rows: slice) -> "Trajectory":
        """The trajectory of some of the batch's videos."""
        calls = []
        for call in self.calls:
            samples = call.output.unflatten(0, (-1, self.size))[:, rows]  # guidance may double the batch
            calls.append(Call(call.step, samples.flatten(0, 1)))
        return Trajectory(len(range(self.size)[rows]), self.guidance, tuple(calls))

    def velocities(self, device: str, seen: frozenset[int]) -> dict[int, dict[str, torch.Tensor]]:
        """What the calls of the steps in `seen` say: the guided velocity, and each branch where there are two.

        Float32 [size, ...] on `device`, by step and branch.
        """
        found: dict[int, list[torch.Tensor]] = {}
        for call in self.calls:
            if call.step in seen:
                found.setdefault(call.step, []).append(call.output.to(device).float())
        return {step: self._branches(step, outputs) for step, outputs in found.items()}

    def _branches(self, step: int, outputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """diffusers calls the prompt's branch first and the negative one after it, or joins them the other way round."""
        if len(outputs) == 1 and len(outputs[0]) == self.size:
            return {"guided": outputs[0]}
        if len(outputs) == 2 and len(outputs[0]) == len(outputs[1]) == self.size:
            conditional, unconditional = outputs
        elif len(outputs) == 1 and len(outputs[0]) == 2 * self.size:
            unconditional, conditional = outputs[0].chunk(2)
        else:
            raise InputError(
                f"step {step} called the transformer {len(outputs)} times with {len(outputs[0])} samples for {self.size} "
                "videos; the bench knows one call, and guidance by two calls or by a doubled batch"
            )
        guided = unconditional + self.guidance * (conditional - unconditional)
        return dict(zip(BRANCHES, (guided, conditional, unconditional), strict=True))


@contextmanager
def recording(models: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """Every call of the transformers while the block runs."""
    calls: list[Call] = []
    clock = TimestepClock()

    def wrap(forward: Forward) -> Forward:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            clock.advance(kwargs.get("timestep"))
            step = clock.number
            given = forward(*args, **kwargs)
            calls.append(Call(step, given[0].detach().cpu()))
            return given

        return recorded

    with _wrapped(models, wrap):
        yield calls


@contextmanager
def forced(
    models: Mapping[str, nn.Module],
    trajectory: Trajectory,
    seen: frozenset[int],
    on_step: Callable[[int], None] = lambda step: None,
    skip: bool = True,
) -> Iterator[list[Call]]:
    """The transformers' own outputs at the steps in `seen`, while the sampler is given the recorded ones at every step.

    Args:
        on_step: is told the step before each call.
        skip: compute nothing at other steps.
    """
    calls: list[Call] = []
    clock, recorded = TimestepClock(), iter(trajectory.calls)

    def wrap(forward: Forward) -> Forward:
        def led(*args: Any, **kwargs: Any) -> Any:
            clock.advance(kwargs.get("timestep"))
            step = clock.number
            call = next(recorded, None)
            if call is None or call.step != step:
                raise InputError(f"this arm calls the transformer at step {step} where the 16-bit run did not")
            device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            wanted = call.output.to(device)
            on_step(step)
            if skip and step not in seen:
                return _like(kwargs, wanted)
            given = forward(*args, **kwargs)
            if step in seen:
                calls.append(Call(step, given[0].detach().cpu()))
            return (wanted, *given[1:]) if isinstance(given, tuple) else _like(kwargs, wanted)

        return led

    with _wrapped(models, wrap):
        yield calls


def spread(steps: int, count: int | None) -> frozenset[int]:
    """`count` of the steps, evenly from the first to the last; all of them where None or more are asked for."""
    if count is None or count >= steps:
        return frozenset(range(steps))
    return frozenset(round(number * (steps - 1) / max(1, count - 1)) for number in range(count))


def _like(kwargs: Mapping[str, Any], output: torch.Tensor) -> Any:
    """The output in the form that the caller asked for."""
    if kwargs.get("return_dict", True):
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=output)
    return (output,)


@contextmanager
def _wrapped(models: Mapping[str, nn.Module], wrap: Callable[[Forward], Forward]) -> Iterator[None]:
    """The models with their forwards wrapped. Offloading puts its own forward on the instance; it is put back."""
    before: dict[str, Any] = {name: model.__dict__.get("forward") for name, model in models.items()}
    try:
        for model in models.values():
            model.forward = wrap(model.forward)
        yield
    finally:
        for name, model in models.items():
            model.__dict__.pop("forward", None)
            if before[name] is not None:
                model.forward = before[name]
