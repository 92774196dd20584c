"""Which saved layers an engine's layer is made of, and how it may be cut over processes. Names and numbers alone.

Engines run queries, keys and values as one layer, and give modules other names than diffusers. Under tensor parallelism each
process has some rows of a weight (its outputs), or some columns (its inputs).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..plan.layers import LayerPlan

# Along which axes of a stored tensor rows and columns of the weight lie; None: it has nothing of each one.
AXES: Mapping[str, tuple[int | None, int | None]] = {
    "weight": (0, 1),
    "weight_meta": (0, 1),
    "weight_scale": (0, None),
    "weight_equalizer": (None, 0),
}
ALIKE = ("precision", "block_size", "rotation", "equalized", "stream", "shared_input", "salient", "grouped", "in_features")


@dataclass(frozen=True)
class Joined:
    """Saved layers that read one input and run as one: the rows of their weights follow each other."""

    entries: tuple[LayerPlan, ...]

    @property
    def first(self) -> LayerPlan:
        """The one that speaks for all."""
        return self.entries[0]

    @property
    def names(self) -> str:
        """How an error calls it."""
        return ", ".join(entry.name for entry in self.entries)

    @property
    def unit(self) -> int:
        """Columns that are never cut: a block and a Hadamard block share exponents and signs."""
        return max(self.first.block_size or 1, self.first.rotation)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `SeDialectLinear` that the plan knows."""
        names = ("precision", "block_size", "rotation")
        return {name: getattr(self.first, name) for name in names} | {"equalized": bool(self.first.equalized)}

    def check_columns(self, width: int) -> None:
        """Refuse slices of `width` columns that would cut blocks.

        Raises:
            ModelError: they would.
        """
        whole = self.first.in_features
        if width == whole or not width % self.unit:
            return
        what = f"rotated by {self.first.rotation}" if self.first.rotation > 1 else f"blocks of {self.unit}"
        possible = [str(count) for count in (2, 4, 8, 16) if not whole % (count * self.unit)]
        which = f"use --tensor-parallel-size {' or '.join(possible)}" if possible else "do without tensor parallelism"
        raise ModelError(
            f"{self.names}: {whole} inputs over {whole // width} processes are {width} each, which cuts its codes ({what}); "
            f"{which}, or split the sequence: --usp {whole // width}"
        )


def saved_names(name: str, packed: Mapping[str, Sequence[str]], saved: Collection[str]) -> tuple[str, ...]:
    """The saved layers that the engine's layer `name` is made of, in the order of its rows; none where it is in 16 bit.

    Args:
        packed: what an engine's class says of layers that it joins, `{"to_qkv": ["to_q", "to_k", "to_v"]}`.
        saved: names of all saved layers.

    Raises:
        ModelError: some of them are quantized, and some are in 16 bit.
    """
    parent, _, last = name.rpartition(".")
    by_form = {_form(one): one for one in saved}
    if _form(name) in by_form:
        return (by_form[_form(name)],)
    parts = [f"{parent}.{part}" if parent else part for part in packed.get(last, (last,))]
    found = [by_form.get(_form(part)) or by_form.get(f"{_form(part)}.0") for part in parts]
    there = tuple(one for one in found if one is not None)
    if there and len(there) < len(parts):
        left = parts[found.index(None)]
        raise ModelError(
            f"{there[0]} is quantized and {left} is in 16 bit, but {name} runs them as one layer; quantize both or neither: "
            "change skip or layer_precisions"
        )
    return there


def join(entries: Sequence[LayerPlan]) -> Joined:
    """Saved layers as one.

    Raises:
        ModelError: they are quantized in unlike ways.
    """
    first = entries[0]
    for other in entries[1:]:
        for setting in ALIKE:
            mine, theirs = getattr(first, setting), getattr(other, setting)
            if mine != theirs:
                raise ModelError(
                    f"{first.name} and {other.name} run as one layer, but differ in {setting} ({mine!r} and {theirs!r}); "
                    "quantize them alike"
                )
    return Joined(tuple(entries))


def _form(name: str) -> str:
    """A name as those of both sides compare: engines write `net_0` for diffusers' `net.0`."""
    return re.sub(r"_(?=\d)", ".", name)
