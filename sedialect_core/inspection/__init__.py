"""Looking at a model without touching it: its linears, its family, where its tokens are."""

from .families import FAMILIES, family_of, layout_of
from .linears import find_linears
from .rules import BlockKind, Family, Rule
from .sites import LinearSite, Role, Stream
from .tokens import TokenLayout

__all__ = [
    "FAMILIES",
    "BlockKind",
    "Family",
    "LinearSite",
    "Role",
    "Rule",
    "Stream",
    "TokenLayout",
    "family_of",
    "find_linears",
    "layout_of",
]
