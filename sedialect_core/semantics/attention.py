"""What can be told about tokens from the queries and keys of an attention, without ever building its N x N matrix.

Queries and keys are [B, H, N, D], after norms and rotary embeddings; keys may have fewer heads, as in grouped-query
attention.
"""

from collections.abc import Iterator

import torch

QUERIES = 64  # sampled of all, evenly spread: 64 / N of the cost of the attention
MEGABYTES = 128


def received_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    tile: int = 0,
    queries: int | None = None,
    peak: bool = False,
    megabytes: float = MEGABYTES,
) -> torch.Tensor:
    """How much attention each key receives, float32 [B, N_k]: of softmax(q k^T) the mean over heads and sampled queries or,
    for `peak`, the maximum.

    Args:
        mask: as of `scaled_dot_product_attention`: bool, True where a key may be seen, or a float that is added; it
            broadcasts to [B, H, N_q, N_k].
        scale: of the products; None for D^-0.5.
        tile: how many queries, and how many keys, an entry of the mask stands for; 0: one.
        queries: how many to sample, all of them where there are no more; None for QUERIES.
        megabytes: that temporaries may take, unless a single head of a single sample takes more.
    """
    batch, heads, length, width = query.shape
    sampled = spread(length, min(QUERIES if queries is None else queries, length), query.device)
    scale = width**-0.5 if scale is None else scale
    if mask is not None:
        mask = _rows_of_tiles(mask, sampled, tile) if tile else _rows_of_mask(mask, sampled, length)
    total = query.new_zeros(batch, key.shape[2], dtype=torch.float32)
    of_head = 4 * key.shape[2] * (width + (2 if mask is None else 4) * len(sampled))
    for sample, part in heads_at_once(batch, heads, of_head, megabytes):
        asking = query[sample, part, sampled].float() * scale
        own = None if mask is None else _part_of(mask, sample, part)
        seen = _received(asking, heads_of(key[sample], heads, part), own, tile, peak)
        total[sample] = torch.maximum(total[sample], seen) if peak else total[sample] + seen
    return total if peak else total / (heads * len(sampled))


def window_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    anchors: torch.Tensor,
    members: torch.Tensor,
    scale: float | None = None,
    megabytes: float = MEGABYTES,
) -> torch.Tensor:
    """Attention from anchors to the tokens of their windows, float32 [B, A, W]: the mean over heads of the softmax over the
    window. What lies outside of a window cannot become a member, so it is left out of the softmax as well.

    Args:
        query, key: of the video tokens alone.
        anchors: integer [A], places among the video tokens; members: integer [A, W], -1 where a window leaves the grid.
        megabytes: that temporaries may take, unless a single window takes more.
    """
    batch, heads, _, width = query.shape
    scale = width**-0.5 if scale is None else scale
    total = query.new_zeros(batch, *members.shape, dtype=torch.float32)
    of_anchor = members.shape[1] * (width * (4 + key.element_size()) + 12)
    step = min(len(anchors), max(1, int(megabytes * 1e6) // of_anchor))
    for sample, part in heads_at_once(batch, heads, of_anchor * step, megabytes):
        asking, asked = query[sample, part], heads_of(key[sample], heads, part)
        for start in range(0, len(anchors), step):
            some = slice(start, start + step)
            total[sample, some] += _inside(asking[:, anchors[some]].float() * scale, asked, members[some])
    return total.div_(heads)


def spread(length: int, count: int, device: torch.device | str | None = None) -> torch.Tensor:
    """`count` different places out of `length`, evenly spread, int64 [count]."""
    return (torch.arange(count, device=device, dtype=torch.float64) + 0.5).mul_(length / max(count, 1)).long()


def _received(asking: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, tile: int, peak: bool) -> torch.Tensor:
    """Sum, or maximum, over heads and queries of the softmax of asking [h, rows, D] over the keys [h, N_k, D]: [N_k]."""
    logits = asking @ key.float().mT
    if mask is not None:
        _apply(mask, logits, tile)
    weights = logits.softmax(-1).nan_to_num_(0.0)  # a query that may see nothing gives nothing
    return weights.amax((0, 1)) if peak else weights.sum((0, 1))


def _inside(asking: torch.Tensor, key: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Sum over heads of the softmax of asking [h, A, D] over the keys of each window, [A, W]."""
    near = key[:, members.clamp_min(0)].float()  # [h, A, W, D]
    logits = (near @ asking.unsqueeze(-1)).squeeze(-1)
    return logits.masked_fill_(members < 0, -torch.inf).softmax(-1).sum(0)


def _rows_of_mask(mask: torch.Tensor, sampled: torch.Tensor, length: int) -> torch.Tensor:
    """The mask of the sampled queries, [B or 1, H or 1, rows or 1, N_k]."""
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    return mask[:, :, sampled] if mask.shape[2] == length and length > 1 else mask


def _rows_of_tiles(mask: torch.Tensor, sampled: torch.Tensor, tile: int) -> torch.Tensor:
    """The same of a mask whose entries stand for tiles, bool [B or 1, H or 1, rows, tiles of keys]."""
    return mask[:, :, sampled // tile]


def _part_of(mask: torch.Tensor, sample: int, part: slice) -> torch.Tensor:
    """The mask of some heads of one sample, [h or 1, rows or 1, N_k]."""
    own = mask[sample if mask.shape[0] > 1 else 0]
    return own[part] if own.shape[0] > 1 else own


def _apply(mask: torch.Tensor, logits: torch.Tensor, tile: int) -> None:
    """Take what a mask hides out of logits [h, rows, N_k], in place."""
    if tile:
        mask = mask.repeat_interleave(tile, dim=2)[..., : logits.shape[2]]
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, -torch.inf)
    else:
        logits += mask


def heads_of(key: torch.Tensor, heads: int, part: slice) -> torch.Tensor:
    """Of the keys [H_k, N, D] those that the query heads `part` see."""
    if key.shape[0] == heads:
        return key[part]
    return key[torch.arange(part.start, part.stop, device=key.device) * key.shape[0] // heads]


def heads_at_once(batch: int, heads: int, of_head: int, megabytes: float) -> Iterator[tuple[int, slice]]:
    """Samples and slices of heads, so many at a time as may be looked at together, at `of_head` bytes each."""
    step = max(1, int(megabytes * 1e6) // max(1, of_head))
    for sample in range(batch):
        yield from ((sample, slice(start, min(start + step, heads))) for start in range(0, heads, step))
