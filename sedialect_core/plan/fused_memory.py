"""How much memory a compiled block takes beside its weights, from the operations of its eager forward.

`torch.compile` fuses elementwise operations into kernels whose intermediates live in registers. What is left in memory
follows these rules, which are inductor's:

* A value is stored where a matrix product, attention or one of our kernels reads it or gives it, and where it is a sum over
  others or put together from several.
* Everything else is computed on the way, as often as it is read, if it is read once or made of few values. Until then
  those live.
* A value dies with its last reader, whatever Python still has a name for; a kernel writes in place of what dies with it.

How near it is, measured: the peak of a whole Wan 14B on GPUs, weights included, in 16 bit, w4a4 and the default preset, is
up to 4 % above it with operands of one byte, which those GPUs have, and up to 4 % below it with the two that are counted.
Blocks in 16 bit, compiled for a CPU: Wan, LTX and HunyuanVideo's single ones take as much to within 4 %, its dual ones a
third more, since CPU kernels are fused side by side, too; they do not make the peak of the whole model.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# Of torch.ops.aten: what inductor leaves to libraries. Operations outside of aten are somebody's own kernels.
STORING = {"mm", "addmm", "bmm", "baddbmm", "convolution", "sort", "topk", "nonzero", "scatter", "index_put", "_fft_r2c"}
# What is stored where it comes up; what it is made of need not be.
REALIZED = {"cat", "sum", "mean", "var", "var_mean", "amax", "amin", "argmax", "linalg_vector_norm", "_softmax", "cumsum"}
NORMS = {"native_layer_norm", "native_group_norm", "_fused_rms_norm"}  # give statistics, too, which are sums
FEW = 4  # as torch._inductor.config.realize_reads_threshold
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}  # hold nothing until they are written to


@dataclass(frozen=True)
class Step:
    """One operation: the storages that it reads and writes, and which of them must be in memory."""

    reads: frozenset[int]
    writes: frozenset[int]
    stores: bool
    """What it writes."""
    library: bool = False
    """What it reads, too."""


@dataclass
class Tape:
    """The operations of one forward of a block, in order. Storages are told apart by address, so they are kept."""

    steps: list[Step] = field(default_factory=list)
    operands: dict[Any, torch.Tensor] = field(default_factory=dict)
    """Encoded inputs, which layers that read the same input share."""
    sizes: dict[int, int] = field(default_factory=dict)
    _kept: list[torch.UntypedStorage] = field(default_factory=list)

    def record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operation as torch dispatches it."""
        name = func.overloadpacket.__name__
        reads, changed = self._storages((args, kwargs)), self._changed(func, args, kwargs)
        made = self._storages(result) - reads
        if name in EMPTY or not made | changed:  # views, too
            return
        if name in NORMS:
            statistics = self._storages(result[1:])
            self.steps += [Step(reads, statistics, True), Step(reads | statistics, made - statistics, False)]
            return
        library = func.namespace != "aten" or name in STORING
        self.steps.append(Step(reads - changed, made | changed, library or name in REALIZED, library))

    def store(self, reads: Iterable[torch.Tensor], result: torch.Tensor) -> None:
        """An operation that has its inputs and its result in memory."""
        self.steps.append(Step(self._storages(list(reads)), self._storages(result), True, True))

    def peak(self, result: Any) -> int:
        """Most bytes that live at once, without what lived before the block, which its caller holds."""
        return _Run(self.steps, self.sizes, self._storages(result)).peak

    def _storages(self, value: Any) -> frozenset[int]:
        found = [tensor.untyped_storage() for tensor in tree_leaves(value) if isinstance(tensor, torch.Tensor)]
        for storage in found:
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self._kept.append(storage)
        return frozenset(storage._cdata for storage in found)

    def _changed(self, func: Any, args: Any, kwargs: Any) -> frozenset[int]:
        """What it writes to in place."""
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [argument for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
        return self._storages([given.get(argument.name) for argument in written])


class _Run:
    """The steps as compiled kernels would take them."""

    def __init__(self, steps: list[Step], sizes: dict[int, int], results: frozenset[int]) -> None:
        self.sizes = sizes
        self.last: dict[int, float] = {}  # step that reads a value last
        for number, step in enumerate(steps):
            self.last |= dict.fromkeys(step.reads, number)
        self.last |= dict.fromkeys(results, math.inf)
        self.readers = Counter(value for reads in (*(step.reads for step in steps), results) for value in reads)
        self.made_of: dict[int, frozenset[int]] = {}  # of values that are not stored
        self.stored: set[int] = set()
        self.now = self.peak = 0
        for number, step in enumerate(steps):
            self._take(number, step)
        self._compute(results, len(steps))

    def _take(self, number: int, step: Step) -> None:
        if step.library:
            self._compute(step.reads, number)
            self._add(step.writes - self.stored)
            self._free(number + 1)
            return
        for value in step.writes - self.stored:
            self.made_of[value] = self.made_of.get(value, frozenset()) | step.reads
            if step.stores or (self.readers[value] > 1 and len(self._leaves(value)) > FEW):
                self._compute(frozenset({value}), number + 1)

    def _compute(self, wanted: frozenset[int], number: int) -> None:
        """A kernel that stores these before step `number`."""
        needed = wanted & self.made_of.keys()
        for value in needed:
            del self.made_of[value]
        dying = self._dead(number, needed)
        for value in sorted(needed, key=lambda value: -self.sizes[value]):  # in place of one that dies, of the same size
            place = next((old for old in dying if self.sizes[old] == self.sizes[value]), None)
            if place is not None:
                dying.discard(place)
                self.stored.discard(place)
                self.now -= self.sizes[place]
            self._add({value})
        self._free(number)

    def _parts(self, value: int) -> set[int]:
        """What a value that is not stored is made of, and that again."""
        found: set[int] = set()
        open_values = [value]
        while open_values:
            for part in self.made_of.get(open_values.pop(), ()):
                if part not in found:
                    found.add(part)
                    open_values.append(part)
        return found

    def _leaves(self, value: int) -> set[int]:
        """Of these, what lies in memory: stored, or from outside of the block."""
        return self._parts(value) - self.made_of.keys()

    def _dead(self, number: int, more: Iterable[int] = ()) -> set[int]:
        """Stored values that no step from `number` on reads, be it through values that are not stored."""
        alive = {value for value in self.made_of if self.last.get(value, -1) >= number}
        through = {part for value in alive for part in self._parts(value)}
        return {value for value in self.stored - set(more) if self.last.get(value, -1) < number and value not in through}

    def _add(self, values: Iterable[int]) -> None:
        for value in values:
            self.stored.add(value)
            self.now += self.sizes[value]
        self.peak = max(self.peak, self.now)

    def _free(self, number: int) -> None:
        for value in self._dead(number):
            self.stored.discard(value)
            self.now -= self.sizes[value]
