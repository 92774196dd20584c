"""What each process measures: every arm alone first, on each GPU at once, and then split over all of them."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from ...sedialect_core.environment import environment, gpu_facts
from ...sedialect_core.integrations.context_parallel import OURS, enable_context_parallel
from ...sedialect_core.video.workers import Place
from ..speed.timing import FEWEST, Clock, peak_memory, summary, synchronize, time_each
from ..speed.trials import COMPILED, EAGER, backend, fresh_compiler, reason
from .cases import BASELINE, Case, Way, enable, ways_of
from .cpu_attention import native_attention
from .results import ONE, Measured, Row
from .wire import measure_wire


@dataclass(frozen=True)
class Wanted:
    """What to measure."""

    case: Case
    arms: tuple[str, ...]
    compile: bool
    ring: bool
    seconds: float
    output: Path


class Worker:
    """One of the processes; all call the same in the same order."""

    def __init__(self, place: Place, wanted: Wanted, device: torch.device) -> None:
        self.place, self.wanted, self.device = place, wanted, device
        self.clock = Clock(wanted.seconds)
        where = environment() | {"gpu": gpu_facts(device)}
        self.measured = Measured(wanted.case, place.processes, where)
        self.meshes: dict[Way, Any] = {}
        self.longest = 0.0  # seconds that compiling and measuring has taken

    def run(self) -> None:
        """The wire, then every arm, and of each what time allows."""
        self._wire()
        for arm in self.wanted.arms:
            started = time.monotonic()
            if not self._agreed(self.clock.left > 0):
                self._add(Row(arm, EAGER, ONE, {}, "not measured: the seconds were over"))
                continue
            self._arm(arm)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.place.rank == 0:
                print(f"{arm}: {time.monotonic() - started:.0f} s in all, {self.clock.left:.0f} s are left", flush=True)

    def _arm(self, arm: str) -> None:
        model = self.wanted.case.build(self.device)
        model.set_attention_backend("native" if self.device.type == "cpu" else self.wanted.case.attention)
        enable(arm, model)
        inputs = self.wanted.case.inputs(self.device)
        call: Callable[[Any], torch.Tensor] = lambda _: model(**inputs)[0]  # noqa: E731
        alone = {EAGER: self._measure(arm, EAGER, ONE, call)}
        if self._compiles(model):
            alone[COMPILED] = self._measure(arm, COMPILED, ONE, call)
            uncompile(model)
        for way in self._ways():
            plan = split(model, way.config(self._mesh(way)), self.place.processes)
            self._measure(arm, EAGER, way.name, call, alone[EAGER])
            if way.ring == 1 and COMPILED in alone and self._compiles(model):
                self._measure(arm, COMPILED, way.name, call, alone[COMPILED])
                uncompile(model)
            join(model, plan)

    def _ways(self) -> list[Way]:
        ways = ways_of(self.place.processes, self.wanted.case.model)
        return [way for way in ways if way.ring == 1 or self.wanted.ring]

    def _wire(self) -> None:
        """The all-to-alls of one attention, in 16 bit and in 8."""
        if self.place.processes > 1 and self._agreed(self.clock.left > 0):
            found = measure_wire(self.wanted.case, self.device, dist.group.WORLD)
            self.measured.wire = self._slowest(found)
            if self.place.rank == 0:
                self.measured.write(self.wanted.output)

    def _mesh(self, way: Way) -> Any:
        """One for all arms: communicators take time and memory."""
        if way not in self.meshes:
            self.meshes[way] = way.mesh(self.device)
        return self.meshes[way]

    def _compiles(self, model: Any) -> bool:
        """Compile the blocks, if that is wanted and there is time."""
        if not self.wanted.compile or not self._agreed(self.clock.left > self.longest):
            return False
        fresh_compiler()
        model.compile_repeated_blocks(dynamic=False, backend=backend(self.device))
        return True

    def _measure(
        self, arm: str, mode: str, way: str, call: Callable[[Any], torch.Tensor], alone: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Add the row; gives the output, or None where it failed. The distance is from what the same arm gives `alone`."""
        dist.barrier()
        started, note, output = time.monotonic(), "", None
        numbers: dict[str, float] = {}
        try:
            with torch.no_grad():
                output, numbers = self._time(call)
        except Exception as error:  # noqa: BLE001  # of other libraries, in all processes alike; the row says what
            note = reason(error)
        if output is not None and alone is not None:
            numbers["distance"] = distance(output, alone)
        if mode == COMPILED:
            self.longest = max(self.longest, time.monotonic() - started)
        if not self._agreed(not note):
            self._add(Row(arm, mode, way, {}, note or "another process failed"))
            return None
        self._add(Row(arm, mode, way, self._slowest(numbers)))
        return output

    def _time(self, call: Callable[[Any], torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """What a call gives, and what it and a few more of it took."""
        started = time.monotonic()
        output = call(None)
        synchronize(self.device)
        first = time.monotonic() - started
        spent: list[float] = []
        memory = peak_memory(lambda: spent.extend(time_each(call, [None] * FEWEST, self.device)), self.device)
        timing = summary(spent, first)
        numbers = {"s": timing.median / 1e3, "lower, s": timing.lower / 1e3, "upper, s": timing.upper / 1e3}
        return output, numbers | {"first call, s": first} | {
            key: size for key, size in memory.items() if key == "peak bytes"
        }

    def _add(self, row: Row) -> None:
        if self.place.rank == 0:
            self.measured.add(row, self.wanted.output)

    def _slowest(self, numbers: dict[str, float]) -> dict[str, float]:
        """The largest of all processes' numbers."""
        largest = torch.tensor(list(numbers.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return dict(zip(numbers, largest.tolist(), strict=True))

    def _agreed(self, wish: bool) -> bool:
        """Whether all processes wish it: they have to do the same."""
        told = torch.tensor([int(wish)], device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MIN)
        return bool(told)


def measure(place: Place, wanted: Wanted) -> None:
    """What one process does, from beginning to end."""
    import diffusers.models.attention_dispatch as dispatch

    device = place.join()
    told = native_attention if device.type == "cpu" else dispatch._native_attention_forward_op
    with mock.patch.object(dispatch, "_native_attention_forward_op", told):
        Worker(place, wanted, device).run()
    dist.destroy_process_group()  # not after an error: it would wait for processes that may be waiting themselves


def split(model: Any, config: Any, processes: int) -> Any:
    """Split the model's sequence; gives the plan by which that was done."""
    # Without an accelerator diffusers (0.42.1) divides by zero; it does nothing else with the number.
    count = torch.accelerator.device_count() or processes
    with mock.patch.object(torch.accelerator, "device_count", lambda: count):
        enable_context_parallel(model, config)
    return model._cp_plan or OURS[type(model).__name__][0]()


def join(model: Any, plan: Any) -> None:
    """Take the split away again, for which diffusers has no one call."""
    from diffusers.hooks.context_parallel import remove_context_parallel

    remove_context_parallel(model, plan)
    model._parallel_config = None
    for module in model.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = None


def uncompile(model: Any) -> None:
    """Run a model's modules as they are again."""
    for module in model.modules():
        module._compiled_call_impl = None


def distance(output: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far apart two outputs are, relative, in float64."""
    return float((output.double() - wanted.double()).norm() / wanted.double().norm())


def arms_of(names: Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Arms in their order, BF16 first: ratios need it."""
    chosen = tuple(names or default)
    return (BASELINE, *(arm for arm in chosen if arm != BASELINE))
