"""Linears whose weights somebody reads as numbers past their `forward`: packed codes would be taken for them."""

from collections.abc import Iterator

from torch import nn

from .adapters import innermost, reason_around


def unreadable(model: nn.Module) -> dict[str, str]:
    """Names of the linears that must stay as they are, and why."""
    return dict(_found(model))


def _found(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if (reason := reason_around(module)) is not None:
            base = innermost(module)[1]
            yield from ((inner, reason) for inner, part in module.named_modules(prefix=name) if part is base)
