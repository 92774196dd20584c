"""Which dtype a device computes fast in: decided by timing both on a CPU, since flags and names do not tell.

Processors without bfloat16 instructions compute in it all the same, several times slower than in float32, and a variable
such as `ONEDNN_MAX_CPU_ISA` makes any processor behave so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from ...kernels.capabilities import BF16_CAPABILITY
from ...kernels.lasting import lasting

NAMES = ("bfloat16", "float16", "float32")
REPEATS = 3  # of each operation in each dtype; the best counts
ROWS, WIDTH = 128, 256  # of the linear product
CHANNELS, FRAMES, SIDE = 32, 3, 16  # of the video convolution
KERNEL = 3


@dataclass(frozen=True)
class DtypeChoice:
    """A dtype to compute in, and why it was taken."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """Such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def choose_dtype(device: str | torch.device, asked: str | None = None) -> DtypeChoice:
    """The dtype to compute in on a device: the one that was asked for, else bfloat16 where that is
    fast, else float16 on GPUs and float32 on CPUs.

    Args:
        asked: one of NAMES, or None.
    """
    if asked is not None:
        return DtypeChoice(getattr(torch, asked), "asked for")
    kind = torch.device(device).type
    if kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) < BF16_CAPABILITY:
        return DtypeChoice(torch.float16, "this GPU has no bfloat16")
    if kind != "cpu":
        return DtypeChoice(torch.bfloat16, f"the default on {kind}")
    return of_cpu()


def default_device() -> str:
    """Where a model that is being loaded will probably run: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def of_cpu() -> DtypeChoice:
    """The dtype for this CPU; it is timed once in a process."""
    ratios = {name: narrow / wide for name, (wide, narrow) in measure().items()}
    told = ", ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
    fast = max(ratios.values()) <= 1
    return DtypeChoice(
        torch.bfloat16 if fast else torch.float32,
        f"bfloat16 is {'' if fast else 'not '}fast on this CPU (its time over float32's: {told})",
    )


@lasting()  # what it finds is kept: fake tensors would be timed otherwise
def measure() -> dict[str, tuple[float, float]]:
    """Seconds in float32 and in bfloat16 of a linear product and of the convolution that video autoencoders consist of.

    One thread, so that other work on the machine disturbs little: with several, each waits for the slowest.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: _best(make) for name, make in (("linear", _linear), ("convolution", _convolution))}
    finally:
        torch.set_num_threads(threads)


def _best(make: Callable[[torch.dtype], Callable[[], Any]]) -> tuple[float, float]:
    """The best time in each dtype; they take turns, so that a disturbance meets both."""
    works = [make(dtype) for dtype in (torch.float32, torch.bfloat16)]
    for work in works:
        work()  # makes the kernel
    times = [[_seconds(work) for work in works] for _ in range(REPEATS)]
    wide, narrow = (min(column) for column in zip(*times, strict=True))
    return wide, narrow


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _linear(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    x, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    return lambda: functional.linear(x, weight)


def _convolution(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    x = torch.ones(1, CHANNELS, FRAMES, SIDE, SIDE, dtype=dtype)
    weight = torch.ones(CHANNELS, CHANNELS, KERNEL, KERNEL, KERNEL, dtype=dtype)
    return lambda: functional.conv3d(x, weight)
