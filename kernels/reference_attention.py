"""Attention in 8 bit in plain torch: the specification of `attention.attention_8bit`, and the path on CPUs.

    scores         INT8 queries with a scale a token, times INT8 keys with a scale for each block of 128 keys
    keys           their mean is subtracted first: softmax does not change, and what all keys share takes no digits
    probabilities  2^(score - running maximum + 8), rounded to the values' type
    values         E4M3 with a scale for each channel of a head, or 16 bit where the GPU has no FP8 units

Blocks of keys are taken in order, and sums are kept in float32. All tensors are [batch B, heads H, tokens, head_dim D]: M
queries, N keys. A key that `key_mask` [B, N] leaves out counts nowhere: not in the mean, not in a scale, and blocks are
counted without it.

What is not finite spreads as far as it does in exact attention, and is never made finite: a query makes its own row NaN; a
key that is attended to makes all rows of its head in its sample NaN, a value all of its channel there. Nothing else changes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional

from .integers import INTEGERS
from .reference import E4M3_MAX

KEY_BLOCK = 128  # keys that share a scale, and are looked at between two changes of the running maximum
LIFT = 8  # probabilities are multiplied by 2^LIFT: E4M3 reaches from 2^-9 to 448
SMALLEST = 2.0**-100  # no scale is made from a smaller maximum: its inverse would overflow
CHUNK_SCORES = {"cpu": 1 << 20}  # scores of one block of keys that are held at once
GPU_CHUNK_SCORES = 1 << 25


class Quantized(NamedTuple):
    """What is multiplied.

    query, query_scale   int8 [B, H, M, D] and float32 [B, H, M], which holds softmax scale and log2(e)
    key, key_scale       int8 [B, H, N, D] and float32 [B, H, ceil(N / 128)]
    value, value_scale   E4M3 or 16 bit [B, H, N, D] and float32 [B, H, 1, D]
    """

    query: torch.Tensor
    query_scale: torch.Tensor
    key: torch.Tensor
    key_scale: torch.Tensor
    value: torch.Tensor
    value_scale: torch.Tensor


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    *,
    value_bits: int = 8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(softmax_scale * query @ key.T) @ value, [B, H, M, D], and the log-sum-exp of its rows, float32 [B, H, M].

    Rows without any key are zeros, and their log-sum-exp is -inf.

    Args:
        key_mask: bool [B, N], True for keys that are attended to; None for all of them.
        softmax_scale: 1 / sqrt(D) unless told.
        value_bits: 8, E4M3; or 16, as they are (float32 in bfloat16).
    """
    scale = scale_of(query, softmax_scale)
    order, count = attended_first(key_mask, key.shape[0], key.shape[2], key.device)
    if order is not None:
        key, value = (x.take_along_dim(order[:, None, :, None], 2) for x in (key, value))
        key_mask = torch.arange(key.shape[2], device=key.device) < count.unsqueeze(1)
    centre = key_centre(key, key_mask)
    parts = Quantized(
        *quantize_queries(query, scale),
        *quantize_keys(key, centre, key_mask),
        *quantize_values(value, key_mask, value_bits),
    )
    output = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    for rows in _row_chunks(query):
        output[:, :, rows], lse[:, :, rows] = _attend(parts, rows, key_mask)
    # Where there is no key, there is no centre either.
    return output, lse.add_((query.float() @ centre.transpose(2, 3)).squeeze(3), alpha=scale)


def scale_of(query: torch.Tensor, softmax_scale: float | None) -> float:
    """What scores are multiplied by: 1 / sqrt(D) unless told."""
    return query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale


def attended_first(
    key_mask: torch.Tensor | None, batch: int, tokens: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """An order of the keys, int64 [B, N], in which those attended to come first, and how many these are, int32 [B].

    None for the order where there is no mask.
    """
    if key_mask is None:
        return None, torch.full((batch,), tokens, dtype=torch.int32, device=device)
    order = key_mask.logical_not().argsort(dim=1, stable=True)
    return order, key_mask.sum(1, dtype=torch.int32)


def key_centre(key: torch.Tensor, key_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the keys that are attended to, float32 [B, H, 1, D]; zeros where there are none."""
    if key_mask is None:
        return key.sum(2, keepdim=True, dtype=torch.float32) / max(1, key.shape[2])
    counts = key_mask.sum(1).clamp_(min=1).view(-1, 1, 1, 1)
    return _without_masked(key, key_mask).sum(2, keepdim=True, dtype=torch.float32) / counts


def quantize_queries(query: torch.Tensor, softmax_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 queries, and their scales with what scores are multiplied by in front of `exp2`."""
    wide = query.float()
    largest = wide.abs().amax(3).clamp_(min=SMALLEST)
    return _integers(wide, largest.unsqueeze(3)), largest * (softmax_scale * math.log2(math.e) / INTEGERS)


def quantize_keys(
    key: torch.Tensor, centre: torch.Tensor, key_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 keys around their centre, and the scales of their blocks; zeros for keys that are masked."""
    centred = _without_masked(key.float() - centre, key_mask)
    count = centred.shape[2]
    padded = functional.pad(centred, (0, 0, 0, -count % KEY_BLOCK))
    blocks = padded.unflatten(2, (padded.shape[2] // KEY_BLOCK, KEY_BLOCK))
    largest = blocks.abs().amax((3, 4)).clamp_(min=SMALLEST)
    integers = _integers(blocks, largest[..., None, None]).flatten(2, 3)[:, :, :count]
    return integers, largest / INTEGERS


def quantize_values(
    value: torch.Tensor, key_mask: torch.Tensor | None = None, bits: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in E4M3, or in 16 bit for `bits=16`, and the scales of their channels; zeros for keys that are masked."""
    kept = _without_masked(value, key_mask)
    if bits == 16:
        narrow = kept.to(torch.bfloat16) if value.dtype == torch.float32 else kept
        return narrow, value.new_ones(*value.shape[:2], 1, value.shape[3], dtype=torch.float32)
    wide = kept.float()
    largest = _largest(wide)
    return (wide * (E4M3_MAX / largest)).to(torch.float8_e4m3fn), largest / E4M3_MAX


def _largest(wide: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each channel, [B, H, 1, D]; also of no token at all."""
    return functional.pad(wide.abs(), (0, 0, 0, 1)).amax(2, keepdim=True).clamp_(min=SMALLEST)


def _without_masked(x: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
    """x with zeros for keys that are not attended to, whatever stands there."""
    return x if key_mask is None else x.masked_fill(~key_mask[:, None, :, None], 0)


def _integers(wide: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """x in units of largest / 127, to the nearest, ties to even. What is not finite becomes 0: its scale tells."""
    scaled = (wide * (INTEGERS / largest)).round_()
    return scaled.nan_to_num_(0, 0, 0).clamp_(-INTEGERS, INTEGERS).to(torch.int8)


def _attend(parts: Quantized, rows: slice, key_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of some queries, both float32; the latter without what the centre adds to it."""
    query, row_scale = parts.query[:, :, rows].float(), parts.query_scale[:, :, rows].unsqueeze(3)
    maximum = torch.full_like(row_scale, -math.inf)
    total = torch.zeros_like(row_scale)
    summed = torch.zeros_like(query)
    for block in range(parts.key_scale.shape[2]):
        keys = slice(block * KEY_BLOCK, (block + 1) * KEY_BLOCK)
        scores = query @ parts.key[:, :, keys].float().transpose(2, 3)  # exact: integers below 2^24
        scores *= row_scale * parts.key_scale[:, :, block, None, None]
        if key_mask is not None:
            scores.masked_fill_(~key_mask[:, None, None, keys], -math.inf)
        risen = torch.maximum(maximum, scores.amax(3, keepdim=True))
        start = risen.masked_fill(risen == -math.inf, 0)  # no key yet
        probability = torch.exp2_(scores - start + LIFT)
        value = parts.value[:, :, keys]
        product = probability.to(value.dtype).float() @ value.float()
        shrink = torch.exp2(maximum - start)
        summed = summed * shrink + product
        total = total * shrink + probability.sum(3, keepdim=True)
        maximum = risen
    # Finite zeros where there was no key; what is NaN stays so.
    output = summed / total.masked_fill(total == 0, 1) * parts.value_scale
    lse = (maximum + torch.log2(total) - LIFT) * math.log(2)
    return output, lse.squeeze(3)


def _row_chunks(query: torch.Tensor) -> Iterator[slice]:
    batch, heads, rows, _ = query.shape
    held = CHUNK_SCORES.get(query.device.type, GPU_CHUNK_SCORES)
    step = max(1, held // max(1, batch * heads * KEY_BLOCK))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
