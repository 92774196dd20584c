"""How long a call takes, and what it takes in memory."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple, TypeVar

import torch

WARM_UPS = 2
FEWEST, MOST = 3, 50  # timed calls; on CPUs FEWEST, where only the bench itself is tried
Result = TypeVar("Result")
SECONDS = 0.15  # for the timed calls of one row
HELD = 1.5  # times what launching all timed calls is reckoned to take: so long the GPU waits before it begins with them
CYCLES = 2e9  # of a GPU in a second, at most


class Timing(NamedTuple):
    """Milliseconds of the median call and of the quartiles; seconds of the first call, which may have compiled; milliseconds
    that the host takes to launch the median call, where that is not the call itself."""

    median: float
    lower: float
    upper: float
    calls: int
    first: float
    host: float | None = None

    def numbers(self) -> dict[str, float]:
        """As numbers of a row."""
        spread = {"lower quartile, ms": self.lower, "upper quartile, ms": self.upper}
        host = {} if self.host is None else {"launching, ms": self.host}
        return {"ms": self.median, **spread, "calls": self.calls, "first call, s": self.first, **host}


class Clock:
    """The seconds that a run may take. Compiling cannot be interrupted, so what would not fit is not begun."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until the end; negative after it."""
        return self.seconds - (time.monotonic() - self._started)


def rotation(bytes_of_one: int, device: torch.device) -> int:
    """How many different inputs to take turns with, so that none is still in the level-2 cache when it comes again."""
    if device.type == "cpu":
        return 2
    cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return min(64, 1 + math.ceil(2 * cache / max(1, bytes_of_one)))


def time_calls(
    call: Callable[[Any], Any],
    inputs: Sequence[Any],
    device: torch.device,
    seconds: float = SECONDS,
) -> Timing:
    """Time `call(input)` over inputs in turn: CUDA events around each call, on CPUs the clock.

    As many calls as fit into `seconds`, at least FEWEST, after a first one, WARM_UPS and one by which their number is
    reckoned. Results are dropped at once. A GPU is made to wait until the calls have been launched, so that it finds each
    one ready, as it does in a large model; what launching takes the host is told apart.
    """
    started = time.perf_counter()
    call(inputs[0])
    synchronize(device)
    first = time.perf_counter() - started
    for x in islice(cycle(inputs), WARM_UPS):
        call(x)
    synchronize(device)
    started = time.perf_counter()
    call(inputs[-1])
    launching = time.perf_counter() - started
    synchronize(device)
    most = FEWEST if device.type == "cpu" else MOST
    count = max(FEWEST, min(most, int(seconds / (time.perf_counter() - started))))
    turns = islice(cycle(inputs), count)
    if device.type == "cpu":
        return summary(_on_cpu(call, turns), first)
    torch.cuda._sleep(int(HELD * launching * count * CYCLES))
    events, host = _launch(call, turns)
    return summary(_elapsed(events, device), first)._replace(host=host)


def time_long_calls(
    call: Callable[[Any], Any], inputs: Sequence[Any], device: torch.device
) -> tuple[Timing, dict[str, float]]:
    """The same for calls that take seconds: after the first one, which may compile, only FEWEST, and their peak memory."""
    started = time.perf_counter()
    call(inputs[0])
    synchronize(device)
    first = time.perf_counter() - started
    spent: list[float] = []
    memory = peak_memory(lambda: spent.extend(time_each(call, islice(cycle(inputs), FEWEST), device)), device)
    return summary(spent, first), memory


def time_each(call: Callable[[Any], Any], turns: Iterable[Any], device: torch.device) -> list[float]:
    """Milliseconds of each call."""
    return _on_cpu(call, turns) if device.type == "cpu" else _elapsed(_launch(call, turns)[0], device)


def summary(spent: list[float], first: float) -> Timing:
    """Median and quartiles of milliseconds, beside the seconds of the first call."""
    ordered, quarter = sorted(spent), len(spent) // 4
    return Timing(statistics.median(ordered), ordered[quarter], ordered[-1 - quarter], len(ordered), first)


def _on_cpu(call: Callable[[Any], Any], turns: Any) -> list[float]:
    spent = []
    for x in turns:
        started = time.perf_counter()
        call(x)
        spent.append(1e3 * (time.perf_counter() - started))
    return spent


def _launch(
    call: Callable[[Any], Any], turns: Iterable[Any]
) -> tuple[list[tuple[torch.cuda.Event, torch.cuda.Event]], float]:
    """All calls are put into the stream before the first result is read, so that it does not run empty in between.

    Gives their events, and the milliseconds that launching the median call took: a few wait until the stream has room.
    """
    events, spent = [], []
    for x in turns:
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        started = time.perf_counter()
        call(x)
        spent.append(1e3 * (time.perf_counter() - started))
        pair[1].record()
        events.append(pair)
    return events, statistics.median(spent)


def _elapsed(events: list[tuple[torch.cuda.Event, torch.cuda.Event]], device: torch.device) -> list[float]:
    synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What one call gives, and its seconds, all that it told the device included."""
    synchronize(device)
    started = time.perf_counter()
    value = call()
    synchronize(device)
    return value, time.perf_counter() - started


def collect(device: torch.device) -> None:
    """Free what only cycles hold, so that the GPU's allocator tells the truth. A CPU's is not asked, and it takes long."""
    if device.type == "cuda":
        gc.collect()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Bytes on the GPU at the highest point of a call: in all, and beyond what was there before. Nothing on a CPU."""
    if device.type == "cpu":
        call()
        return {}
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return {"peak bytes": peak, "peak bytes beyond": peak - before}
