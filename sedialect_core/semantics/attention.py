"""What can be told about tokens from the queries and keys of an attention, without ever building its N x N matrix.

Queries and keys are [B, H, N, D], after norms and rotary embeddings; keys may have fewer heads, as in grouped-query
attention.
"""

import torch

QUERIES = 64  # sampled of all, evenly spread: 64 / N of the cost of the attention
MAX_ELEMENTS = 1 << 25  # of one temporary, float32: 128 MB


def received_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    queries: int = QUERIES,
    peak: bool = False,
) -> torch.Tensor:
    """How much attention each key receives, float32 [B, N_k]: of softmax(q k^T) the mean over heads and sampled queries or,
    for `peak`, the maximum.

    Args:
        mask: as of `scaled_dot_product_attention`: bool, True where a key may be seen, or a float that is added; it
            broadcasts to [B, H, N_q, N_k].
        scale: of the products; None for D^-0.5.
        queries: how many to sample; all of them where there are no more.
    """
    batch, heads, length, width = query.shape
    sampled = spread(length, min(queries, length), query.device)
    scale = width**-0.5 if scale is None else scale
    mask = None if mask is None else _rows_of_mask(mask, sampled, length)
    total = query.new_zeros(batch, key.shape[2], dtype=torch.float32)
    for part in _head_slices(heads, batch * len(sampled) * key.shape[2]):
        logits = query[:, part, sampled].float() @ _heads_of(key, heads, part).float().transpose(-1, -2) * scale
        if mask is not None:
            some = mask if mask.shape[1] == 1 else mask[:, part]
            logits = logits.masked_fill(~some, -torch.inf) if some.dtype == torch.bool else logits + some
        weights = logits.softmax(-1).nan_to_num_(0.0)  # a query that may see nothing gives nothing
        total = torch.maximum(total, weights.amax((1, 2))) if peak else total.add_(weights.sum((1, 2)))
    return total if peak else total / (heads * len(sampled))


def window_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    anchors: torch.Tensor,
    members: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention from anchors to the tokens of their windows, float32 [B, A, W]: the mean over heads of the softmax over the
    window. What lies outside of a window cannot become a member, so it is left out of the softmax as well.

    Args:
        query, key: of the video tokens alone.
        anchors: integer [A], places among the video tokens; members: integer [A, W], -1 where a window leaves the grid.
    """
    batch, heads, _, width = query.shape
    scale = width**-0.5 if scale is None else scale
    outside, places = members < 0, members.clamp_min(0)
    total = query.new_zeros(batch, *members.shape, dtype=torch.float32)
    for part in _head_slices(heads, batch * members.numel() * width):
        near = _heads_of(key, heads, part)[:, :, places].float()  # [B, h, A, W, D]
        logits = (near @ query[:, part][:, :, anchors].float().unsqueeze(-1)).squeeze(-1) * scale
        total += logits.masked_fill(outside, -torch.inf).softmax(-1).sum(1)
    return total / heads


def spread(length: int, count: int, device: torch.device | str | None = None) -> torch.Tensor:
    """`count` different places out of `length`, evenly spread, int64 [count]."""
    return (torch.arange(count, device=device, dtype=torch.float64) + 0.5).mul_(length / max(count, 1)).long()


def _rows_of_mask(mask: torch.Tensor, sampled: torch.Tensor, length: int) -> torch.Tensor:
    """The mask of the sampled queries, [B or 1, H or 1, rows or 1, N_k]."""
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    return mask[:, :, sampled] if mask.shape[2] == length and length > 1 else mask


def _heads_of(key: torch.Tensor, heads: int, part: slice) -> torch.Tensor:
    """The keys that the query heads `part` see."""
    if key.shape[1] == heads:
        return key[:, part]
    return key[:, torch.arange(part.start, part.stop, device=key.device) * key.shape[1] // heads]


def _head_slices(heads: int, elements: int) -> list[slice]:
    step = max(1, MAX_ELEMENTS // max(1, elements))
    return [slice(start, min(start + step, heads)) for start in range(0, heads, step)]
