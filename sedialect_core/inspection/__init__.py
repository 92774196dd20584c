"""Looking at a model without touching it: its linears, its family, where its tokens are."""

from .families import FAMILIES, family_of, layout_of
from .linears import find_linears
from .rules import BlockKind, Family, Rule, is_transformer
from .sites import LinearSite, Role, Stream
from .text_models import is_text_model
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
    "is_text_model",
    "is_transformer",
    "layout_of",
]
