"""One encoding for the layers that read the same input, such as the queries, keys and values of an attention.

Eager and compiled alike: torch's compiler does not find by itself, without gradients, that an operator is called twice with
equal arguments.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, Protocol

import torch


class Encoded(NamedTuple):
    """What `ops.encode` gave for an input: operands [M + E, K], row scales [M + E], salient rows int32 [E]; or None."""

    operand: torch.Tensor
    row_scale: torch.Tensor | None
    salient: torch.Tensor | None


class HasInput(Protocol):
    """A layer that can share its input's encoding: with whom, and which of them it is, from 0."""

    shared_input: "SharedInput | None"
    reader: int


class SharedInput:
    """Keeps the last encoding until each of its `members` has had it, or until the input is gone.

    The same tensor object at the same version has the same numbers; whatever else comes is encoded afresh. So layers
    that a forward leaves out, or whose inputs differ after all, cost time and never change a result.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self._kept: tuple[weakref.ref[torch.Tensor], int, int, Encoded] | None = None  # input, its version, uses left
        self._traced: tuple[torch.Tensor, Encoded] | None = None
        self._served = 0  # while a graph is traced: a bit for each member that has had its input

    def encoded(self, x: torch.Tensor, encode: Callable[[], Encoded], reader: int) -> Encoded:
        """The encoding of x for member number `reader`: the kept one, or what `encode()` gives."""
        if torch.compiler.is_compiling():
            return self._encoded_in_graph(x, encode, reader)
        if x.is_inference():  # inference tensors do not count their versions
            return encode()
        kept = self._kept  # read once: another thread may be replacing it
        if kept is not None:
            source, version, uses, encoded = kept
            if source() is x and version == x._version:
                self._kept = (source, version, uses - 1, encoded) if uses > 1 else None
                return encoded
        encoded = encode()
        self._kept = (weakref.ref(x, self._forget), x._version, self.members - 1, encoded)
        return encoded

    def _encoded_in_graph(self, x: torch.Tensor, encode: Callable[[], Encoded], reader: int) -> Encoded:
        """The same while a graph is traced, where no version is known: only layers share whose model is known to leave
        their input as it is.

        Once each member has been called, nothing is kept, whoever had which input: what stayed would be an output of the
        graph, and another state for the next call to be compiled for.
        """
        bit = 1 << reader
        if self._served & bit:  # a new forward; the last one has left a member out
            self._served, self._traced = 0, None
        kept = self._traced
        encoded = kept[1] if kept is not None and kept[0] is x else encode()
        self._served |= bit
        if self._served == (1 << self.members) - 1:
            self._served, self._traced = 0, None
        else:
            self._traced = (x, encoded)
        return encoded

    def _forget(self, source: "weakref.ref[torch.Tensor]") -> None:
        """The input is gone: nobody can ask for its encoding any more."""
        if self._kept is not None and self._kept[0] is source:
            self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start empty."""
        return {"members": self.members, "_kept": None, "_traced": None, "_served": 0}


def share_inputs(layers: Iterable[tuple[Hashable, HasInput]]) -> None:
    """Let the layers of equal keys share one encoding; each must read equal inputs by equal settings.

    Args:
        layers: pairs (key, layer); None for a layer that has its input for itself.
    """
    members: dict[Hashable, list[HasInput]] = {}
    for key, layer in layers:
        layer.shared_input = None
        if key is not None:
            members.setdefault(key, []).append(layer)
    for group in members.values():
        if len(group) > 1:
            shared = SharedInput(len(group))
            for number, layer in enumerate(group):
                layer.shared_input, layer.reader = shared, number
