"""What can be set: kinds of values, what is said of each setting anywhere, and the table of them."""

from .entry import ADVANCED, BASIC, FRONT, MORE, Option, Setting, entries
from .table import LIVE, SETTINGS, Settings
from .values import Book, Choice, LayerPrecisions, Number, Numbers, Patterns, Switch, Text, Values

__all__ = [
    "ADVANCED",
    "BASIC",
    "FRONT",
    "LIVE",
    "MORE",
    "SETTINGS",
    "Book",
    "Choice",
    "LayerPrecisions",
    "Number",
    "Numbers",
    "Option",
    "Patterns",
    "Setting",
    "Settings",
    "Switch",
    "Text",
    "Values",
    "entries",
]
