"""Whole transformer blocks at random weights: attention, norms and whatever else a faster product does nothing about."""

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.plan.report import model_bytes
from ...sedialect_core.plan.rules import make_plan
from .arms import Arm
from .block_kinds import Blocks, make_model
from .layers import AGAIN
from .timing import collect, peak_memory, rotation, time_calls
from .trials import COMPILED, EAGER, Numbers, Trials, compiled, fresh_compiler

SECONDS = 0.8  # for the timed calls of a block
ATTENTION = "attention alone"


def measure_blocks(trials: Trials, kinds: tuple[Blocks, ...], arms: tuple[Arm, ...], to_compile: set[str]) -> None:
    """Each kind of block: the attention alone, which no arm makes faster, every arm as it is, then compiled."""
    for kind in kinds:
        bench = Bench(kind, trials.device)
        trials.run(kind.name, ATTENTION, EAGER, bench.attention)
        for arm in arms:
            if not arm.tunes_itself:
                trials.run(kind.name, arm.name, EAGER, partial(bench.measure, arm, EAGER))
        trials.run(kind.name, AGAIN, EAGER, partial(bench.measure, arms[0], EAGER))
        for arm in arms:
            if arm.name in to_compile and not arm.tunes_itself:
                trials.run(kind.name, arm.name, COMPILED, partial(bench.measure, arm, COMPILED))
        bench.clear()
    for kind in kinds:
        bench = Bench(kind, trials.device)
        for arm in arms:
            if arm.tunes_itself:
                fresh_compiler()
                trials.run(kind.name, arm.name, EAGER, partial(bench.measure, arm, EAGER))
        bench.clear()


class Bench:
    """One kind of block: the same weights and inputs for every arm."""

    def __init__(self, kind: Blocks, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self.clear()

    def clear(self) -> None:
        """Let go of everything that takes memory."""
        self._inputs: list[tuple[Any, ...]] = []
        self._expected: list[torch.Tensor] = []  # empty, too, where float32 does not fit
        self._built: tuple[str, nn.Module, Numbers] | None = None  # arm, block, sizes: of the arm that was measured last
        collect(self.device)

    def measure(self, arm: Arm, mode: str) -> Numbers:
        """Time, error, weights and memory of one arm."""
        if not self._inputs:
            self._prepare()
        block, sizes = self._block(arm)
        run = compiled(block, self.device) if mode == COMPILED else block
        timing = time_calls(lambda x: run(*x), self._inputs, self.device, SECONDS)
        memory = peak_memory(lambda: run(*self._inputs[0]), self.device)
        error = {"error": self._error(run)} if self._expected else {}
        return timing.numbers() | error | sizes | memory

    def attention(self) -> Numbers:
        """Scaled dot-product attention over the block's sequence, by whichever kernel torch chooses."""
        shape = (1, self.kind.heads, self.kind.sequence, self.kind.head_size)
        kind: dict[str, Any] = {"device": self.device, "dtype": torch.bfloat16}
        inputs = [[torch.randn(shape, **kind) for _ in range(3)] for _ in range(self._rotation())]
        timing = time_calls(lambda x: functional.scaled_dot_product_attention(*x), inputs, self.device, SECONDS / 2)
        operations = 4 * self.kind.sequence**2 * self.kind.heads * self.kind.head_size
        return timing.numbers() | {"operations": operations, "TFLOP/s": operations / timing.median / 1e9}

    def _rotation(self) -> int:
        return rotation(2 * self.kind.sequence * self.kind.heads * self.kind.head_size, self.device)

    def _prepare(self) -> None:
        """Inputs, and what the block adds to them in float32 throughout."""
        self._inputs = [self.kind.inputs(self.device, seed) for seed in range(1, 1 + self._rotation())]
        block = make_model(self.kind, self.device).get_submodule(self.kind.block).float()
        with suppress(torch.OutOfMemoryError):
            self._expected = updates(block, _in_float32(self._inputs[0]))

    def _block(self, arm: Arm) -> tuple[nn.Module, Numbers]:
        """The arm's block; that of the arm before is let go first."""
        if self._built is None or self._built[0] != arm.name:
            self._built = None
            fresh_compiler()  # it may keep the block
            collect(self.device)
            self._built = arm.name, *build_block(self.kind, arm, self.device)
        return self._built[1:]

    def _error(self, run: Any) -> float:
        """Relative L2 distance of what the block adds from the same in float32; of video or text, the larger."""
        pairs = zip(updates(run, self._inputs[0]), self._expected, strict=True)
        return max(float((ours - exact).norm() / exact.norm()) for ours, exact in pairs)


def build_block(kind: Blocks, arm: Arm, device: torch.device) -> tuple[nn.Module, Numbers]:
    """The arm's block, and the bytes of all covered weights of its model before and after."""
    model = make_model(kind, device)
    before, sixteen = stored_bytes(model), covered_bytes(model)
    arm.model(model, kind.rows)
    collect(device)
    after = sixteen - (before - stored_bytes(model))
    return model.get_submodule(kind.block), {"covered bytes in 16 bit": sixteen, "covered bytes": after}


def covered_bytes(model: nn.Module) -> int:
    """Bytes in 16 bit of the weights that ours quantizes by default: the linears of the blocks."""
    return sum(2 * layer.weights for layer in make_plan(model, SeDialectConfig()).quantized)


def stored_bytes(model: nn.Module) -> int:
    """Bytes that the model takes: what the GPU's allocator says, since peers keep scales where only they know."""
    device = next(model.parameters()).device
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else model_bytes(model)


def updates(run: Any, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """Outputs less inputs, in float32: of the hidden states, and of the text's where the block changes them too."""
    outputs = run(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [after.float() - before.float() for after, before in zip(outputs, inputs, strict=False)]


def _in_float32(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_in_float32(part) for part in value)
    return value.float() if isinstance(value, torch.Tensor) else value
