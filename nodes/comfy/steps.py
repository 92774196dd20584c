"""Which step of a sampler call a forward belongs to, by its sigma.

ComfyUI tells each forward its own sigma, and the list of sigmas of the sampler call that it belongs to; no number of the
step, for some samplers look between two entries of the list, and several calls may share one schedule.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ...sedialect_core.semantics.steps import is_protected

BARELY = 1e-6  # relative: a sigma that went through another float type
AS_NOISE = (
    1e-4  # relative: the second sigma of 100 steps lies further from the first even where the schedule is shifted by 12
)


class Step(NamedTuple):
    """A step of a sampler call.

    number  from 0
    total   steps in the call
    opens   whether the call begins with pure noise, so that its first steps are those of the video
    closes  whether it ends with none, so that its last steps are those of the video
    """

    number: int
    total: int
    opens: bool
    closes: bool

    def is_protected(self, first: int, last: int) -> bool:
        """Whether it is among the `first` or the `last` steps of the video."""
        return is_protected(self.number, self.total, first if self.opens else 0, last if self.closes else 0)


def step_of(sigma: float, sigmas: Sequence[float], noisiest: float) -> Step:
    """The step that a forward at `sigma` belongs to: the last one of the call that begins at or above it.

    Args:
        sigmas: of the call, one more than it has steps.
        noisiest: the sigma that stands for pure noise.
    """
    total = len(sigmas) - 1
    begun = [number for number in range(total) if sigmas[number] >= sigma * (1 - BARELY)]
    return Step(begun[-1] if begun else 0, total, sigmas[0] >= noisiest * (1 - AS_NOISE), sigmas[-1] <= 0)
