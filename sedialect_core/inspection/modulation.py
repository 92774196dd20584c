"""Where a family's modulation is: which linears read a normed input that a step's vector scales and shifts, as data.

In these blocks q, k, v and the feed-forward read norm(x) * (1 + scale) + shift. Scale and shift are chunks of what a
linear makes of the timestep, plus a learnt table where the model has one. Who knows this can say how large a channel
will be without running the model, and can make channels larger or smaller without changing what the model computes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .families import family_of

SHARED = "/"  # before a name: it belongs to the model, and not to each block


@dataclass(frozen=True)
class Modulated:
    """One modulated input of a block. Names are inside the block, or inside the model where they begin with `SHARED`."""

    readers: str
    """A pattern of the linears that read it; nothing else does."""
    norm: str
    """The norm before it, which may have a weight of its own, or none."""
    projections: tuple[str, ...]
    """Linears whose outputs are summed and cut into `chunks`. The first must be there."""
    chunks: int
    scales: tuple[int, ...]
    """Chunks that scale it: several where tokens of one sequence are modulated differently."""
    shifts: tuple[int, ...] = ()
    table: str = ""
    """A parameter [..., chunks, channels] that is added to the projections."""


@dataclass(frozen=True)
class Mixed:
    """What attention makes of values: channel k of it is a weighted mean of channel k of the values."""

    values: str
    """A pattern of the linears that make the values."""
    readers: str
    """A pattern of the linears that read the result in their first inputs; nothing else does."""


@dataclass(frozen=True)
class ModulatedBlocks:
    """Blocks of one structure: the children of these lists."""

    lists: tuple[str, ...]
    inputs: tuple[Modulated, ...]
    mixed: tuple[Mixed, ...] = ()


def _table(readers: str, norm: str, projections: tuple[str, ...], scale: int, shift: int) -> Modulated:
    return Modulated(readers, norm, projections, 6, (scale,), (shift,), "scale_shift_table")


_QKV = r"to_[qkv]"
_ADDED = r"add_[qkv]_proj"
_UP = r"net\.0\.proj"
_WAN_PROJECTIONS = ("/condition_embedder.time_proj", "/fps_projection.net.2")
_WAN = ModulatedBlocks(
    ("blocks", "vace_blocks"),
    (
        _table(rf"attn1\.{_QKV}", "norm1", _WAN_PROJECTIONS, 1, 0),
        _table(rf"ffn\.{_UP}", "norm3", _WAN_PROJECTIONS, 4, 3),
    ),
    (Mixed(r"attn1\.to_v", r"attn1\.to_out\.0"), Mixed(r"attn2\.(to_v|add_v_proj)", r"attn2\.to_out\.0")),
)
_LTX = ModulatedBlocks(
    ("transformer_blocks",),
    (
        _table(rf"attn1\.{_QKV}", "norm1", ("/time_embed.linear",), 1, 0),
        _table(rf"ff\.{_UP}", "norm2", ("/time_embed.linear",), 4, 3),
    ),
    (Mixed(r"attn1\.to_v", r"attn1\.to_out\.0"), Mixed(r"attn2\.to_v", r"attn2\.to_out\.0")),
)
_COGVIDEOX = ModulatedBlocks(
    ("transformer_blocks",),
    (
        Modulated(rf"attn1\.{_QKV}", "norm1.norm", ("norm1.linear",), 6, (1, 4), (0, 3)),
        Modulated(rf"ff\.{_UP}", "norm2.norm", ("norm2.linear",), 6, (1, 4), (0, 3)),
    ),
    (Mixed(r"attn1\.to_v", r"attn1\.to_out\.0"),),
)
_HUNYUAN = (
    ModulatedBlocks(
        ("transformer_blocks",),
        (
            Modulated(rf"attn\.{_QKV}", "norm1.norm", ("norm1.linear",), 6, (1,), (0,)),
            Modulated(rf"attn\.{_ADDED}", "norm1_context.norm", ("norm1_context.linear",), 6, (1,), (0,)),
            Modulated(rf"ff\.{_UP}", "norm2", ("norm1.linear",), 6, (4,), (3,)),
            Modulated(rf"ff_context\.{_UP}", "norm2_context", ("norm1_context.linear",), 6, (4,), (3,)),
        ),
        (Mixed(r"attn\.(to_v|add_v_proj)", r"attn\.(to_out\.0|to_add_out)"),),
    ),
    ModulatedBlocks(
        ("single_transformer_blocks",),
        (Modulated(rf"attn\.{_QKV}|proj_mlp", "norm.norm", ("norm.linear",), 3, (1,), (0,)),),
        (Mixed(r"attn\.to_v", r"proj_out"),),
    ),
)
# Mochi shifts nothing. The last block gives up the text after attention; its norm of the text has another projection.
_MOCHI = ModulatedBlocks(
    ("transformer_blocks",),
    (
        Modulated(rf"attn1\.{_QKV}", "norm1.norm", ("norm1.linear",), 4, (0,)),
        Modulated(rf"attn1\.{_ADDED}", "norm1_context.norm", ("norm1_context.linear",), 4, (0,)),
        Modulated(rf"attn1\.{_ADDED}", "norm1_context.norm", ("norm1_context.linear_1",), 1, (0,)),
        Modulated(rf"ff\.{_UP}", "norm3.norm", ("norm1.linear",), 4, (2,)),
        Modulated(rf"ff_context\.{_UP}", "norm3_context.norm", ("norm1_context.linear",), 4, (2,)),
    ),
    (Mixed(r"attn1\.(to_v|add_v_proj)", r"attn1\.(to_out\.0|to_add_out)"),),
)

MODULATION: dict[str, tuple[ModulatedBlocks, ...]] = {
    "Wan": (_WAN,),
    "AnyFlow": (_WAN,),
    "AnyFlow FAR": (_WAN,),
    "Helios": (_WAN,),
    "LTX-Video": (_LTX,),
    "CogVideoX": (_COGVIDEOX,),
    "HunyuanVideo": _HUNYUAN,
    "HunyuanVideo 1.5": _HUNYUAN,
    "HunyuanVideo FramePack": _HUNYUAN,
    "Mochi": (_MOCHI,),
}
"""By the family's name."""


def modulation_of(model: nn.Module) -> tuple[ModulatedBlocks, ...]:
    """What is known of the model's modulation; empty where its family's is not known, or its blocks have other names."""
    return tuple(kind for kind in MODULATION.get(family_of(model).name, ()) if any(_first_projections(model, kind)))


def blocks_of(model: nn.Module, kind: ModulatedBlocks) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the model's blocks of a kind."""
    for name in kind.lists:
        blocks = getattr(model, name, None)
        if isinstance(blocks, nn.ModuleList):
            yield from ((f"{name}.{number}", block) for number, block in enumerate(blocks))


def submodule(model: nn.Module, block: nn.Module, name: str) -> nn.Module | None:
    """The module of a name of the tables above, or None where this model has none."""
    owner, path = (model, name[1:]) if name.startswith(SHARED) else (block, name)
    try:
        return owner.get_submodule(path)
    except AttributeError:
        return None


def matching(block: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The block's modules whose whole name the pattern matches."""
    return {name: module for name, module in block.named_modules() if re.fullmatch(pattern, name)}


def _first_projections(model: nn.Module, kind: ModulatedBlocks) -> Iterator[nn.Module]:
    for _, block in blocks_of(model, kind):
        for entry in kind.inputs:
            module = submodule(model, block, entry.projections[0])
            if module is not None:
                yield module
