"""What `attention.py` tells from queries and keys, where a process has a part of the sequence: the same numbers for it.

The sampled queries and those of anchors go around, and sums over keys; keys stay where they are.
"""

import torch

from .attention import MEGABYTES, QUERIES, heads_at_once, heads_of, spread
from .shard import Shard


def received_in_part(
    query: torch.Tensor,
    key: torch.Tensor,
    start: int,
    tokens: int,
    shard: Shard,
    scale: float | None = None,
    peak: bool = False,
    megabytes: float = MEGABYTES,
) -> torch.Tensor:
    """`attention.received_attention` of this process's video tokens, float32 [B, n].

    Args:
        query, key: [B, H, N, D] of this process. Its video tokens begin at `start` of the keys, and of the queries, unless
            those are the video tokens alone; what else there is, is this process's part of the text.
        tokens: video tokens of all processes.
        peak, megabytes: as there.
    """
    _, heads, _, width = query.shape
    scale = width**-0.5 if scale is None else scale
    own = shard.own(tokens)
    asking = sampled_queries(query, start, tokens, shard) * scale
    longest = max(shard.counts(key.shape[2], key.device))  # so that all processes take as many steps
    of_head = 4 * longest * (width + 2 * asking.shape[2])
    received = query.new_zeros(query.shape[0], own, dtype=torch.float32)
    for sample, part in heads_at_once(query.shape[0], heads, of_head, megabytes):
        logits = asking[sample, part] @ heads_of(key[sample], heads, part).float().mT
        weights = (logits - shard.largest(logits.amax(-1, keepdim=True))).exp_()
        weights = (weights / shard.add_up(weights.sum(-1, keepdim=True)))[..., start : start + own]
        if peak:
            received[sample] = torch.maximum(received[sample], weights.amax((0, 1)))
        else:
            received[sample] += weights.sum((0, 1))
    return received if peak else received / (heads * asking.shape[2])


def sampled_queries(query: torch.Tensor, start: int, tokens: int, shard: Shard) -> torch.Tensor:
    """The queries that are sampled of those of all processes, float32 [B, H, QUERIES, D].

    In the order that one process would have them: the video of all, and before or after it the text of all. Arguments as of
    `received_in_part`.
    """
    own, length, device = shard.own(tokens), query.shape[2], query.device
    start = 0 if length == own else start
    texts = shard.counts(length - own, device)
    words, earlier = sum(texts), sum(texts[: shard.rank])
    here = torch.arange(length, device=device)
    video = here - start + shard.first(tokens) + (words if start else 0)
    text = here + earlier if start else here - own + tokens + earlier
    place = torch.where((here >= start) & (here < start + own), video, text)
    total = tokens + words
    sampled = spread(total, min(QUERIES, total), device)
    found = place.unsqueeze(0) == sampled.unsqueeze(1)
    chosen = query[:, :, found.int().argmax(1)].float()
    return shard.add_up(chosen.masked_fill(~found.any(1).view(1, 1, -1, 1), 0.0))


def window_attention_in_part(
    query: torch.Tensor,
    key: torch.Tensor,
    anchors: torch.Tensor,
    members: torch.Tensor,
    tokens: int,
    shard: Shard,
    scale: float | None = None,
    megabytes: float = MEGABYTES,
) -> torch.Tensor:
    """`attention.window_attention` of all processes' tokens, in each of them, float32 [B, A, W].

    Args:
        query, key: [B, H, n, D] of this process's video tokens alone.
        anchors, members: among the `tokens` of all processes.
        megabytes: as there.
    """
    batch, heads, own, width = query.shape
    scale = width**-0.5 if scale is None else scale
    first = shard.first(tokens)
    total = query.new_zeros(batch, *members.shape, dtype=torch.float32)
    of_anchor = members.shape[1] * (width * (4 + key.element_size()) + 12)
    step = min(len(anchors), max(1, int(megabytes * 1e6) // of_anchor))
    elsewhere = (members < first) | (members >= first + own)
    for sample, part in heads_at_once(batch, heads, of_anchor * step, megabytes):
        asked = heads_of(key[sample], heads, part)
        for begin in range(0, len(anchors), step):
            some = slice(begin, begin + step)
            asking = rows_of_all(query[sample, part].transpose(0, 1), anchors[some], tokens, shard).transpose(0, 1)
            near = asked[:, (members[some] - first).clamp(0, own - 1)].float()  # [h, A, W, D]
            logits = (near @ (asking.float() * scale).unsqueeze(-1)).squeeze(-1)
            logits = shard.add_up(logits.masked_fill(elsewhere[some], 0.0))
            total[sample, some] += logits.masked_fill_(members[some] < 0, -torch.inf).softmax(-1).sum(0)
    return total.div_(heads)


def rows_of_all(rows: torch.Tensor, places: torch.Tensor, tokens: int, shard: Shard) -> torch.Tensor:
    """The rows at `places` among the `tokens` of all processes, [A, ...], of this one's `rows`, [n, ...]."""
    here = places - shard.first(tokens)
    missing = (here < 0) | (here >= rows.shape[0])
    found = rows[here.clamp(0, rows.shape[0] - 1)]
    return shard.add_up(found.masked_fill(missing.view(-1, *[1] * (rows.ndim - 1)), 0.0))
