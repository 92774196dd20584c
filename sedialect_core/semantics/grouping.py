"""Groups of tokens that attend to each other and are nearly equal (docs/semantics.md), for the video tokens of a grid."""

from dataclasses import dataclass

import torch

from ..errors import ModelError
from ..inspection import TokenLayout
from .shard import Shard
from .split_attention import rows_of_all

NO_GROUP = -1
COSINE_BYTES = 8  # of temporaries that `members_alike` takes for an element of a row
TINY = 1e-8  # in place of the length of zeros
Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Windows:
    """Anchors on a regular grid, and the tokens around each.

    anchors  int64 [A]     places of the anchors among the video tokens
    members  int64 [A, W]  places of the tokens of each window, its anchor included; -1 where a window leaves the grid
    """

    anchors: torch.Tensor
    members: torch.Tensor

    def to(self, device: torch.device | str) -> "Windows":
        """The same on another device."""
        return Windows(self.anchors.to(device), self.members.to(device))


def windows_of(layout: TokenLayout, window: Extent, spacing: Extent = (0, 0, 0)) -> Windows:
    """The windows of a grid of T x H x W tokens.

    The grid is cut into cells of `spacing` tokens, zeros standing for the window's size; each cell's middle token is an
    anchor, and its window, with the anchor in the middle, reaches as far as `window` says. With cells as large as the window
    a token lies in one window only, but where the grid's edge cuts a cell; with smaller cells windows overlap.

    Raises:
        ModelError: the window is larger than the grid.
    """
    grid = layout.grid
    if grid is None or any(size > whole for size, whole in zip(window, grid, strict=True)):
        raise ModelError(f"semantic_window is {window}, and the grid has {grid} tokens; choose a smaller window")
    places, reaches = [], []
    for whole, size, step in zip(grid, window, spacing, strict=True):
        step = step or size
        places.append(torch.arange(0, whole, step) + (step - 1) // 2)
        reaches.append(torch.arange(size) - (size - 1) // 2)
    sizes = torch.tensor(grid)
    # The last cell may be cut off by the grid's edge before its middle: the anchor is then the edge.
    axes = [place.clamp_max(whole - 1) for place, whole in zip(places, grid, strict=True)]
    centre = torch.cartesian_prod(*axes).view(-1, 1, 3)
    reach = torch.cartesian_prod(*reaches).view(1, -1, 3)
    around = centre + reach
    outside = ((around < 0) | (around >= sizes)).any(2)
    around = torch.minimum(around.clamp_min(0), sizes - 1)
    members = layout.token_index(*around.unbind(2)).masked_fill(outside, NO_GROUP)
    return Windows(layout.token_index(*centre.squeeze(1).unbind(1)), members)


def claim_tokens(attention: torch.Tensor, windows: Windows, quantile: float, tokens: int) -> torch.Tensor:
    """Which anchor each token may join: int32 [B, tokens], a number of an anchor, -1 for none.

    A token is wanted by the anchors whose attention to it, float32 [B, A, W], is at or above the quantile of their window's.
    Wanted by two, it goes to the one with the larger attention; on ties to the first. Anchors belong to themselves.
    """
    batch = len(attention)
    outside = windows.members < 0
    known = attention.masked_fill(outside, torch.nan)
    wanted = (known >= known.nanquantile(quantile, dim=2, keepdim=True)) & ~outside
    itself = windows.members == windows.anchors.unsqueeze(1)
    strength = torch.where(itself, torch.inf, attention).masked_fill(~(wanted | itself), -1.0).flatten(1)
    places = windows.members.clamp_min(0).flatten().expand(batch, -1)
    strongest = strength.new_full((batch, tokens), -1.0).scatter_reduce_(1, places, strength, "amax")
    anchor = torch.arange(len(windows.anchors), device=places.device).repeat_interleave(windows.members.shape[1])
    none = len(windows.anchors)
    won = (strength >= 0) & (strength == strongest.gather(1, places))
    claims = torch.where(won, anchor, none)
    best = claims.new_full((batch, tokens), none).scatter_reduce_(1, places, claims, "amin")
    return best.masked_fill(best == none, NO_GROUP).int()


def members_alike(
    x: torch.Tensor,
    claims: torch.Tensor,
    anchors: torch.Tensor,
    similarity: float,
    rows_at_once: int,
    shard: Shard | None = None,
) -> torch.Tensor:
    """The groups, int32 [B, N]: of the tokens that may join an anchor, those whose input is nearly the anchor's.

    Args:
        x: [B, N, K], the layer's input of the video tokens; claims: integer [B, N], as of `claim_tokens`.
        similarity: least cosine between a member's input and its anchor's. An anchor without members is in no group.
        shard: the part that x is of the video tokens; `claims` and `anchors` are of all of them then, and the groups of x.
    """
    total = claims.shape[1]
    claims = claims if shard is None else shard.part(claims)
    batch, tokens, _ = x.shape
    sample, token = (claims >= 0).nonzero(as_tuple=True)
    anchor = claims[sample, token].long()
    length = torch.linalg.vector_norm(x, dim=2, dtype=torch.float32).clamp_min(TINY)
    if shard is None:
        middles, places, reach, itself = x, anchors[anchor], length, token
    else:  # the anchors' inputs from wherever they are
        middles = rows_of_all(x.transpose(0, 1), anchors, total, shard).transpose(0, 1)
        reach = torch.linalg.vector_norm(middles, dim=2, dtype=torch.float32).clamp_min(TINY)
        places, itself = anchor, token + shard.first(total)
    cosine = torch.empty(len(token), device=x.device)
    for start in range(0, len(token), rows_at_once):
        part = slice(start, start + rows_at_once)
        cosine[part] = x[sample[part], token[part]].float().mul_(middles[sample[part], places[part]]).sum(1)
    cosine /= length[sample, token] * reach[sample, places]
    near = cosine >= similarity
    near |= itself == anchors[anchor]  # rounding may put the cosine with oneself below 1
    group = sample * len(anchors) + anchor
    size = torch.bincount(group[near], minlength=batch * len(anchors))
    size = size if shard is None else shard.add_up(size)
    near &= size[group] > 1
    groups = torch.full((batch, tokens), NO_GROUP, dtype=torch.int32, device=x.device)
    groups[sample[near], token[near]] = group[near].int()
    return groups
