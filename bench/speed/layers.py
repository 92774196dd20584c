"""Linear layers: every arm on the same weights and inputs, with its error against float64 beside its time."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ...sedialect_core.plan.report import model_bytes
from .arms import BASELINE, Arm
from .results import NOT_MEASURED, Row
from .shapes import Layers
from .timing import collect, peak_memory, rotation, time_calls
from .trials import COMPILED, EAGER, Numbers, Trials, compiled, fresh_compiler

SAMPLE = 256  # rows whose outputs are compared
LEFT_OUT = f"{NOT_MEASURED}it tunes itself for each shape, and does so for fewer cases"
AGAIN = f"{BASELINE}, again"  # after all other arms: what the clock of the machine has done meanwhile


def measure_layers(trials: Trials, cases: Iterable[Layers], arms: tuple[Arm, ...], to_compile: set[str]) -> None:
    """All arms in all cases as they are; then, where the case asks for it, compiled, and the arms that tune themselves."""
    cases = list(cases)
    quick, slow = ([arm for arm in arms if arm.tunes_itself is tunes] for tunes in (False, True))
    for case in cases:
        Bench(case, trials).run(quick, EAGER, again=True)
    for case in (case for case in cases if case.compiled and to_compile):
        compiled_arms = [arm for arm in quick if arm.name in to_compile | {BASELINE}]
        Bench(case, trials).run(compiled_arms, COMPILED, again=True)
    for case in cases:
        if case.compiled:
            Bench(case, trials).run(slow, EAGER)
        else:
            for arm in slow:
                trials.part.add(Row(str(case), arm.name, EAGER, note=LEFT_OUT))


class Bench:
    """The weights and inputs of one case."""

    def __init__(self, case: Layers, trials: Trials) -> None:
        self.case, self.trials, self.device = case, trials, trials.device
        self.inputs: list[torch.Tensor] = []
        self.expected = torch.empty(0)

    def run(self, arms: Sequence[Arm], mode: str, again: bool = False) -> None:
        """Measure each arm; `again`: and the first, which is the baseline, once more."""
        fresh_compiler()  # some arms compile parts of themselves
        for arm in arms:
            self.trials.run(str(self.case), arm.name, mode, partial(self.measure, arm, mode))
        if again:
            self.trials.run(str(self.case), AGAIN, mode, partial(self.measure, arms[0], mode))

    def measure(self, arm: Arm, mode: str) -> Numbers:
        """Time, error and memory of one arm."""
        if not self.inputs:
            self._prepare()
        if mode == COMPILED:
            fresh_compiler()  # it may keep the arm before
        collect(self.device)
        before = self._allocated()
        module = arm.together(self._linears(), self.case.rows).eval()
        collect(self.device)
        weights = self._allocated() - before if self.device.type == "cuda" else model_bytes(module)
        call = compiled(module, self.device) if mode == COMPILED else module
        timing = time_calls(call, self.inputs, self.device)
        memory = peak_memory(lambda: call(self.inputs[0]), self.device)
        rate = {"TFLOP/s": self.case.operations / timing.median / 1e9}
        return timing.numbers() | rate | {"error": self._error(call), "weight bytes": weights} | memory

    def _prepare(self) -> None:
        rows, width = self.case.rows, self.case.width_in
        kind: dict[str, Any] = {"device": self.device, "dtype": torch.bfloat16}
        torch.manual_seed(1)
        count = rotation(2 * rows * width, self.device)
        self.inputs = [torch.randn(rows, width, **kind) for _ in range(count)]
        x = self.inputs[0][self._sample()].double()
        wanted = [x @ layer.weight.double().T + layer.bias.double() for layer in self._linears()]
        self.expected = torch.cat(wanted, -1)

    def _linears(self) -> list[nn.Linear]:
        """The same weights each time, in torch's own initialization."""
        torch.manual_seed(0)
        shape = (self.case.width_in, self.case.width_out)
        kind: dict[str, Any] = {"device": self.device, "dtype": torch.bfloat16}
        return [nn.Linear(*shape, **kind).requires_grad_(False) for _ in range(self.case.readers)]

    def _sample(self) -> torch.Tensor:
        count = min(SAMPLE, self.case.rows)
        return torch.arange(count, device=self.device) * self.case.rows // count

    def _error(self, call: nn.Module) -> float:
        """Relative L2 distance from float64 with the 16-bit weights: rounding of weights, of activations, of sums."""
        y = call(self.inputs[0])
        sample = torch.cat([part[self._sample()] for part in (y if isinstance(y, tuple) else (y,))], -1)
        return float((sample.double() - self.expected).norm() / self.expected.norm())

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
