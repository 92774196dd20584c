"""Carries out single measurements: what fails gets a row with the reason, what does not fit into the time too."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...sedialect_core.errors import first_line
from .machine import path
from .results import NOT_MEASURED, Part, Row
from .timing import Clock, collect

EAGER, COMPILED = "eager", "compiled"
TOO_SLOW = 45  # seconds that one row may take before its arm is left out of the cases that follow
REASON_LENGTH = 160

Numbers = dict[str, float]


class Trials:
    """Puts rows into a part until the clock has run out."""

    def __init__(self, part: Part, clock: Clock, device: torch.device) -> None:
        self.part, self.clock, self.device = part, clock, device
        self._longest: dict[str, float] = {}  # seconds of a row, by mode
        self._slow: dict[tuple[str, str], float] = {}  # by arm and mode

    def run(self, case: str, arm: str, mode: str, measure: Callable[[], Numbers]) -> Row:
        """Add the row of `measure()`, or one that says why there is none."""
        refusal = self._refusal(arm, mode)
        if refusal:
            return self.part.add(Row(case, arm, mode, note=refusal))
        started, numbers, note = time.monotonic(), {}, ""
        try:
            with torch.no_grad():
                numbers = measure()
        except Exception as error:  # noqa: BLE001  # other people's code, which may fail in any way; the row says how
            note = reason(error)
        if note:  # what a traceback kept alive
            collect(self.device)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        seconds = time.monotonic() - started
        self._longest[mode] = max(seconds, self._longest.get(mode, 0))
        if seconds > TOO_SLOW:
            self._slow[arm, mode] = seconds
        self.part.where["path"] = path(self.device)  # a kernel may have failed
        if mode == COMPILED and not note:
            note = graphs()
        return self.part.add(Row(case, arm, mode, numbers, note))

    def _refusal(self, arm: str, mode: str) -> str:
        if (arm, mode) in self._slow:
            return f"{NOT_MEASURED}it took {self._slow[arm, mode]:.0f} s in an earlier case"
        if self.clock.left < min(self._longest.get(mode, 1.0), TOO_SLOW):
            return f"{NOT_MEASURED}the {self.clock.seconds:.0f} seconds of this part were over"
        return ""


def compiled(module: nn.Module, device: torch.device) -> Any:
    """The module under torch.compile, with nothing kept of what was compiled before. On CPUs it is only traced."""
    fresh_compiler()
    return torch.compile(module, dynamic=False, backend=backend(device))


def backend(device: torch.device) -> str:
    """What compiles: C++ for a CPU would take minutes and says nothing about GPUs."""
    return "aot_eager" if device.type == "cpu" else "inductor"


def fresh_compiler() -> None:
    """Forget what was compiled, so that no arm meets limits that others have used up."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> str:
    """In how many pieces the last compiled module was compiled, in words; empty for one, which is as it should be."""
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return f"in {count} graphs" if count > 1 else ""


def reason(error: BaseException) -> str:
    """Why there are no numbers, in one line of a table."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    return f"{type(error).__name__}: {first_line(error)}"[:REASON_LENGTH].replace("|", "/")
