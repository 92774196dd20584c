"""The vocabulary in which the tables of model families are written."""

import re
from dataclasses import dataclass

from .sites import Role, Stream
from .tokens import TokenLayout

TRANSFORMER = re.compile(r"transformer(_\d+)?")  # transformer_2: Wan 2.2's expert for the less noisy steps


def is_transformer(component: str) -> bool:
    """Whether a pipeline's component of this name is one of its video transformers."""
    return TRANSFORMER.fullmatch(component) is not None


@dataclass(frozen=True)
class Rule:
    """Linears whose name inside their block matches `pattern` as a whole have this role and stream.

    Those of one block with the same `reads` read the same input; it may use groups of the pattern (`\\1`).
    """

    pattern: str
    role: Role
    stream: Stream
    reads: str = ""
    linear: bool = False
    """Whether what it makes goes into a linear attention or a recurrence, which have no softmax."""

    def match(self, path: str) -> str | None:
        """`reads` with the pattern's groups filled in, or None if the path does not match."""
        found = re.fullmatch(self.pattern, path)
        return None if found is None else found.expand(self.reads)


def first_match(rules: tuple[Rule, ...], path: str) -> tuple[Rule, str] | None:
    """The first rule that names this linear, and what it reads; None if none does."""
    for rule in rules:
        reads = rule.match(path)
        if reads is not None:
            return rule, reads
    return None


@dataclass(frozen=True)
class BlockKind:
    """Blocks that share a structure: the children of these lists that own a linear named `having`, if given."""

    lists: tuple[str, ...]
    rules: tuple[Rule, ...]
    having: str = ""


@dataclass(frozen=True)
class Family:
    """Models with the same block lists, names and token order.

    A model belongs to it if a class of its MRO has one of `class_names`, or if every pattern of `telltales` matches
    a module name as a whole; in both cases one of the block lists must be there.
    """

    name: str
    class_names: tuple[str, ...]
    kinds: tuple[BlockKind, ...]
    layout: TokenLayout
    telltales: tuple[str, ...] = ()
    tiled_if: tuple[str, str] | None = None
    """A config entry and its value that the layout's tiles depend on."""
    pair_mask: bool = False
    """Whether its attention masks [B, 1, N, N] are valid tokens by valid tokens, so that they say no more than which are."""

    @property
    def lists(self) -> tuple[str, ...]:
        """Dotted names of all block lists."""
        return tuple(name for kind in self.kinds for name in kind.lists)
