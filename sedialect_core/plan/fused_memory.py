"""How much memory a compiled block takes beside its weights, from the operations of its eager forward.

`torch.compile` fuses elementwise operations and reductions into kernels whose intermediates live in registers. What is left
in memory follows three rules:

* A value is stored where a matrix product, attention or one of our kernels reads it, or gives it. Everything else is
  computed on the way, as often as it is read.
* Where a value that is read again later is on the way, it is stored, too, if that takes no more than what it is made of.
* A value dies with its last reader, whatever Python still has a name for; a kernel writes in place of what dies with it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# Of torch.ops.aten: what inductor leaves to libraries. Operations outside of aten are somebody's own kernels.
STORING = {"mm", "addmm", "bmm", "baddbmm", "convolution", "sort", "topk", "nonzero", "scatter", "index_put", "_fft_r2c"}
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}  # hold nothing until they are written to


@dataclass(frozen=True)
class Step:
    """One operation: the storages that it reads and writes, and whether it must have them in memory."""

    reads: frozenset[int]
    writes: frozenset[int]
    stores: bool


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
        self.steps.append(Step(reads - changed, made | changed, func.namespace != "aten" or name in STORING))

    def store(self, reads: Iterable[torch.Tensor], result: torch.Tensor) -> None:
        """An operation that has its inputs and its result in memory."""
        self.steps.append(Step(self._storages(list(reads)), self._storages(result), True))

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
        self.made_of: dict[int, frozenset[int]] = {}  # of values that are not stored
        self.stored: set[int] = set()
        self.now = self.peak = 0
        for number, step in enumerate(steps):
            self._take(number, step)
        self._compute(results, len(steps))

    def _take(self, number: int, step: Step) -> None:
        if not step.stores:
            for value in step.writes - self.stored:
                self.made_of[value] = self.made_of.get(value, frozenset()) | step.reads
            return
        self._compute(step.reads, number)
        self._add(step.writes - self.stored)
        self._free(number + 1)

    def _compute(self, wanted: frozenset[int], number: int) -> None:
        """A kernel that stores these before step `number`, and with them what is read again later and takes no more than
        what it is made of."""
        needed = {value for value in wanted if value in self.made_of}
        if not needed:
            return
        on_the_way = {part for value in needed for part in self._parts(value)} - needed
        again = {value for value in on_the_way if value in self.made_of and self.last.get(value, -1) >= number}
        needed |= {value for value in again if self.sizes[value] <= sum(map(self.sizes.__getitem__, self._roots(value)))}
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

    def _roots(self, value: int) -> set[int]:
        """Of these, what is stored."""
        return self._parts(value) & self.stored

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
