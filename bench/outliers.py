"""Outlier channels, planted into a model without changing what it computes.

Real video transformers have a few channels that are 10 to 100 times larger than the others, and small models have none.
Here a part of the channels of every modulated input is made `size` times larger, and the weights of whoever reads them
smaller by as much; likewise the values of attention and the layer behind it. With a power of two every product keeps
its digits: what changes is the rounding of 1 + scale alone, in the precision of the model's own tables.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..sedialect_core.errors import InputError, ModelError
from ..sedialect_core.inspection.modulation import (
    MODULATION,
    Modulated,
    ModulatedBlocks,
    blocks_of,
    matching,
    modulation_of,
    submodule,
)

SHARE = 0.02
SEED = 0


@dataclass(frozen=True)
class Planted:
    """How many inputs of layers got outliers, and the linears that read them."""

    size: int
    readers: tuple[str, ...]


def plant_outliers(model: nn.Module, size: int, share: float = SHARE, seed: int = SEED) -> Planted:
    """Make `share` of the channels `size` times larger, in place, wherever the family's modulation is known.

    Blocks of one kind get the same channels, as real models have theirs through all blocks.

    Args:
        size: a power of two, 1 or more.

    Raises:
        InputError: `size` is no power of two.
        ModelError: the model's modulation is not known, or its layers are fused, quantized or carry a LoRA.
    """
    if size < 1 or size & (size - 1):
        raise InputError(f"outliers of size {size} cannot be planted exactly; take a power of two, as 8, 32 or 128")
    kinds = modulation_of(model)
    if not kinds:
        raise ModelError(
            f"the modulation of {type(model).__name__} is not known, so outliers cannot be planted without changing what it "
            f"computes; it is known of {', '.join(MODULATION)}"
        )
    _check_plain(model, kinds)
    readers: list[str] = []
    with torch.no_grad():
        for number, kind in enumerate(kinds):
            readers += _plant_kind(model, kind, size, share, seed + 100 * number)
    return Planted(size, tuple(readers))


def plant_pipeline(models: dict[str, nn.Module], size: int) -> None:
    """Plant outliers in every transformer of a pipeline; size 1 changes nothing."""
    for model in models.values():
        if size > 1:
            plant_outliers(model, size)


def _check_plain(model: nn.Module, kinds: tuple[ModulatedBlocks, ...]) -> None:
    for kind in kinds:
        for name, block in blocks_of(model, kind):
            if matching(block, r"(.*\.)?to_(qkv|kv|added_qkv)"):
                raise ModelError(f"{name} has fused projections; call unfuse_qkv_projections() before outliers are planted")
            patterns = [entry.readers for entry in kind.inputs]
            patterns += [pattern for mixed in kind.mixed for pattern in (mixed.values, mixed.readers)]
            for path, module in matching(block, "|".join(patterns)).items():
                if type(module) is not nn.Linear:
                    kind_of = type(module).__name__
                    raise ModelError(f"{name}.{path} is a {kind_of}; plant outliers before quantizing, and fuse LoRAs first")


def _plant_kind(model: nn.Module, kind: ModulatedBlocks, size: int, share: float, seed: int) -> list[str]:
    """Plant in all blocks of one kind; returns the names of the readers."""
    done: set[tuple[int, int]] = set()
    readers = []
    for name, block in blocks_of(model, kind):
        for number, entry in enumerate(kind.inputs):
            if submodule(model, block, entry.projections[0]) is not None:
                behind = _linears(block, entry.readers)
                channels = _channels(next(iter(behind.values())).in_features, share, seed + number)
                _enlarge_input(model, block, entry, channels, size, done)
                readers += _divide(name, behind, channels, size)
        for number, mixed in enumerate(kind.mixed):
            values = _linears(block, mixed.values).values()
            channels = _channels(next(iter(values)).out_features, share, seed + 50 + number)
            for value in values:
                _scale_rows(value, channels, size)
            readers += _divide(name, _linears(block, mixed.readers), channels, size)
    return readers


def _divide(block: str, readers: dict[str, nn.Linear], channels: torch.Tensor, size: int) -> list[str]:
    for reader in readers.values():
        reader.weight[:, channels] /= size
    return [f"{block}.{path}" for path in readers]


def _enlarge_input(
    model: nn.Module, block: nn.Module, entry: Modulated, channels: torch.Tensor, size: int, done: set[tuple[int, int]]
) -> None:
    """norm(x) * (1 + scale) + shift, `size` times larger in these channels.

    Through the norm's own weight where it has one; else 1 + scale becomes size * (1 + scale), its constant going to the
    table, or to the bias where there is no table.

    Args:
        done: chunks of projections that are enlarged already: blocks may share a projection.
    """
    norm = submodule(model, block, entry.norm)
    affine = [value for name in ("weight", "bias") if isinstance(value := getattr(norm, name, None), nn.Parameter)]
    for parameter in affine:
        parameter[channels] *= size
    table = _rows(getattr(block, entry.table)) if entry.table else None
    for chunk in entry.shifts if affine else (*entry.shifts, *entry.scales):
        constant = size - 1 if chunk in entry.scales else 0
        if table is not None:
            table[chunk, channels] = table[chunk, channels] * size + constant
        for number, path in enumerate(entry.projections):
            projection = submodule(model, block, path)
            if projection is None or (id(projection), chunk) in done:
                continue
            done.add((id(projection), chunk))
            linear = _linear(projection)
            rows = channels + chunk * (linear.out_features // entry.chunks)
            _scale_rows(linear, rows, size)
            if table is None and number == 0 and constant:
                assert linear.bias is not None, "a modulation without a bias has no place for the constant"
                linear.bias[rows] += constant


def _rows(table: nn.Parameter) -> torch.Tensor:
    """[chunks, channels], sharing the parameter's memory."""
    return table.data.view(-1, table.shape[-1])


def _scale_rows(linear: nn.Linear, rows: torch.Tensor, size: int) -> None:
    linear.weight[rows] *= size
    if linear.bias is not None:
        linear.bias[rows] *= size


def _channels(width: int, share: float, seed: int) -> torch.Tensor:
    """At least one channel."""
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    return chosen[: max(1, round(share * width))]


def _linears(block: nn.Module, pattern: str) -> dict[str, nn.Linear]:
    return {path: _linear(module) for path, module in matching(block, pattern).items()}


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module
