"""Every linear layer of a model, classified: the list from which a plan is made."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .families import family_of
from .generic import outside_role
from .rules import BlockKind, Family, first_match
from .sites import LinearSite, Role
from .text_models import TEXT_FAMILY, outside_text_role

_BASE_LAYER = ".base_layer"


def find_linears(
    model: nn.Module, *, linear_types: tuple[type[nn.Module], ...] = (nn.Linear,), family: Family | None = None
) -> list[LinearSite]:
    """All linears of the model in its own order; an empty list if it has none, no attention site if it has no blocks.

    Only exact types count: a subclass is another library's quantized layer, or ours. Where peft has wrapped a linear,
    the wrapped one is listed under its true name and the adapters beside it are not. `linear_types` is for programs
    with a linear of their own, and `family` for models that are not known by their class.
    """
    linears = {name: module for name, module in _without_adapters(model) if type(module) in linear_types}
    family = family or family_of(model)
    names = {plain_name(name) for name, _ in model.named_modules()}  # of all types: some may be quantized already
    blocks = {name: _block_of(family, plain_name(name), names) for name in linears}
    outside = outside_text_role if family.name == TEXT_FAMILY else outside_role
    sites = [_site(name, module, blocks[name], outside) for name, module in linears.items()]
    readers = Counter(site.shared_input for site in sites)
    return [site if readers[site.shared_input] > 1 else _alone(site) for site in sites]


def _without_adapters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules`, less what peft put beside a base layer (lora_A, lora_B, ...)."""
    outer = ""  # the wrapped linear whose parts are being passed: parts follow their owner
    for name, module in model.named_modules():
        if outer and name.startswith(f"{outer}.") and not f"{name}.".startswith(f"{outer}{_BASE_LAYER}."):
            continue
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            outer = name
        yield name, module


def plain_name(name: str) -> str:
    """The name a linear has without peft."""
    return name.replace(_BASE_LAYER, "")


def _block_of(family: Family, name: str, names: set[str]) -> tuple[str, BlockKind] | None:
    """The block a linear lies in and the block's kind, or None outside of blocks."""
    for kind in family.kinds:
        for prefix in kind.lists:
            if name.startswith(f"{prefix}."):
                child, _, path = name.removeprefix(f"{prefix}.").partition(".")
                block = f"{prefix}.{child}"
                if path and (not kind.having or f"{block}.{kind.having}" in names):
                    return block, kind
    return None


def _site(name: str, module: nn.Module, found: tuple[str, BlockKind] | None, outside: Callable[[str], Role]) -> LinearSite:
    features: dict[str, Any] = {"in_features": int(module.in_features), "out_features": int(module.out_features)}  # type: ignore[arg-type]
    if found is None:
        return LinearSite(name, **features, role=outside(plain_name(name)), stream="other", block=None, shared_input=None)
    block, kind = found
    match = first_match(kind.rules, plain_name(name).removeprefix(f"{block}."))
    if match is None:
        return LinearSite(name, **features, role="other", stream="other", block=block, shared_input=None)
    rule, reads = match
    shared = f"{block} {reads}" if reads else None
    return LinearSite(
        name, **features, role=rule.role, stream=rule.stream, block=block, shared_input=shared, linear=rule.linear
    )


def _alone(site: LinearSite) -> LinearSite:
    """The site without a key that nobody shares."""
    return site if site.shared_input is None else LinearSite(**{**vars(site), "shared_input": None})
