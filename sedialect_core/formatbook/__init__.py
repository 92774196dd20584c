"""The room of the formats: what a dialect is, which dialects a book holds, and the lookup tables made from them."""

from .book import Dialect, Formatbook, builtin_names

__all__ = ["Dialect", "Formatbook", "builtin_names"]
