"""Queries, keys and values to what `triton_attention` multiplies, as `reference_attention` specifies it."""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .integers import INTEGERS
from .reference import E4M3_MAX
from .reference_attention import KEY_BLOCK, SMALLEST, attended_first
from .triton_rows import whole

CHUNK = 512  # keys whose sum and largest magnitudes a program finds


@triton.jit
def statistics_kernel(
    key_ptr,  # float [B, H, N, D]
    value_ptr,  # float [B, H, N, D]
    order_ptr,  # int64 [B, N], which key stands at a place; read if ORDERED
    count_ptr,  # int32 [B], how many of them are attended to
    sum_ptr,  # float32 [B * H, chunks, WIDTH], of keys
    top_ptr,  # float32 [B * H, chunks, WIDTH], largest magnitudes of values, NaN above all
    heads,
    keys,
    key_sample,
    key_head,
    key_token,
    value_sample,
    value_head,
    value_token,
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D filled up to a power of two
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    ORDERED: tl.constexpr,
):
    """Sums of keys and largest magnitudes of values, channel by channel; a program takes CHUNK keys of a head."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample = head // heads
    channel = tl.arange(0, WIDTH)
    key_ptr += sample * key_sample + head % heads * key_head
    value_ptr += sample * value_sample + head % heads * value_head
    count = tl.load(count_ptr + sample)
    total = tl.zeros((WIDTH,), tl.float32)
    top = tl.zeros((WIDTH,), tl.int32)
    for start in range(0, CHUNK, STEP):
        place = chunk * CHUNK + start + tl.arange(0, STEP)
        token = _token(order_ptr, sample * keys, place, count, ORDERED)
        inside = (place < count)[:, None] & (channel < D)[None, :]
        key = tl.load(key_ptr + token[:, None] * key_token + channel[None, :], mask=inside, other=0.0)
        value = tl.load(value_ptr + token[:, None] * value_token + channel[None, :], mask=inside, other=0.0)
        total += tl.sum(key.to(tl.float32), axis=0)
        top = tl.maximum(top, tl.max(_magnitude_bits(value), axis=0))
    at = (head * tl.num_programs(0) + chunk) * WIDTH + channel
    tl.store(sum_ptr + at, total)
    tl.store(top_ptr + at, top.to(tl.float32, bitcast=True))


@triton.jit
def query_kernel(
    query_ptr,  # float [B, H, M, D]
    centre_ptr,  # float32 [B * H, WIDTH]; read if OFFSET
    integer_ptr,  # int8 [B * H, M, WIDTH]
    scale_ptr,  # float32 [B * H, M]
    offset_ptr,  # float32 [B * H, M], what the centre adds to scores; written if OFFSET
    heads,
    rows,
    query_sample,
    query_head,
    query_token,
    softmax_scale,
    score_scale,  # softmax_scale * log2(e) / INTEGERS
    INTEGERS: tl.constexpr,
    SMALLEST: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Queries to integers under the scales of their rows."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    valid = row < rows
    inside = valid[:, None] & (channel < D)[None, :]
    query_ptr += head // heads * query_sample + head % heads * query_head
    query = tl.load(query_ptr + row[:, None].to(tl.int64) * query_token + channel[None, :], mask=inside, other=0.0)
    query = query.to(tl.float32)
    top = _largest(tl.max(_magnitude_bits(query), axis=1), SMALLEST)
    to = integer_ptr + (head * rows + row[:, None]) * WIDTH + channel[None, :]
    tl.store(to, whole(query * tl.div_rn(INTEGERS * 1.0, top)[:, None]), mask=valid[:, None])
    tl.store(scale_ptr + head * rows + row, top * score_scale, mask=valid)
    if OFFSET:
        centre = tl.load(centre_ptr + head * WIDTH + channel)
        tl.store(offset_ptr + head * rows + row, tl.sum(query * centre[None, :], axis=1) * softmax_scale, mask=valid)


@triton.jit
def key_value_kernel(
    key_ptr,  # float [B, H, N, D]
    value_ptr,  # float [B, H, N, D]
    order_ptr,  # int64 [B, N]; read if ORDERED
    count_ptr,  # int32 [B]
    centre_ptr,  # float32 [B * H, WIDTH]
    inverse_ptr,  # float32 [B * H, WIDTH], of the values' scales; read if FP8
    integer_ptr,  # int8 [B * H, padded, WIDTH]
    scale_ptr,  # float32 [B * H, padded / BLOCK]
    operand_ptr,  # E4M3 [B * H, WIDTH, padded], permuted, or 16 bit [B * H, padded, WIDTH]
    heads,
    keys,
    key_sample,
    key_head,
    key_token,
    value_sample,
    value_head,
    value_token,
    INTEGERS: tl.constexpr,
    SMALLEST: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ORDERED: tl.constexpr,
    FP8: tl.constexpr,
):
    """Keys to integers around their centre, and values to operands; a program takes the BLOCK keys that share a scale."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    head = tl.program_id(1).to(tl.int64)
    sample = head // heads
    channel = tl.arange(0, WIDTH)
    key_ptr += sample * key_sample + head % heads * key_head
    value_ptr += sample * value_sample + head % heads * value_head
    count = tl.load(count_ptr + sample)
    place = block * BLOCK + tl.arange(0, BLOCK)
    token = _token(order_ptr, sample * keys, place, count, ORDERED)
    inside = (place < count)[:, None] & (channel < D)[None, :]
    key = tl.load(key_ptr + token[:, None] * key_token + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, key - tl.load(centre_ptr + head * WIDTH + channel)[None, :], 0.0)
    top = _largest(tl.max(tl.max(_magnitude_bits(centred), axis=1), axis=0), SMALLEST)
    to = integer_ptr + (head * blocks * BLOCK + place[:, None]) * WIDTH + channel[None, :]
    tl.store(to, whole(centred * tl.div_rn(INTEGERS * 1.0, top)))
    tl.store(scale_ptr + head * blocks + block, top * (1.0 / INTEGERS))
    if FP8:
        place = _place_of_key(block * BLOCK + tl.arange(0, BLOCK))
        token = _token(order_ptr, sample * keys, place, count, ORDERED)
        inside = (place < count)[:, None] & (channel < D)[None, :]
    value = tl.load(value_ptr + token[:, None] * value_token + channel[None, :], mask=inside, other=0.0)
    if FP8:
        scaled = value.to(tl.float32) * tl.load(inverse_ptr + head * WIDTH + channel)[None, :]
        to = operand_ptr + (head * WIDTH + channel[:, None]) * blocks * BLOCK + block * BLOCK + tl.arange(0, BLOCK)[None, :]
        tl.store(to, tl.trans(scaled.to(tl.float8e4nv)))
    else:
        to = operand_ptr + (head * blocks * BLOCK + place[:, None]) * WIDTH + channel[None, :]
        tl.store(to, value.to(operand_ptr.dtype.element_ty))


@triton.jit
def _token(order_ptr, first, place, count, ORDERED: tl.constexpr):
    """Which token stands at a place, int64, by the order that begins at `first`; the place itself unless ORDERED."""
    if ORDERED:
        return tl.load(order_ptr + first + place, mask=place < count, other=0)
    return place.to(tl.int64)


@triton.jit
def _place_of_key(column):
    """The key whose weight the column of an FP8 operand has: see `_as_operand`."""
    return (column & -16) | ((column & 2) << 2) | ((column & 12) >> 1) | (column & 1)


@triton.jit
def _magnitude_bits(x):
    """The bits of |x| in float32, which are in the order of magnitudes, with NaN above Inf above every number."""
    return x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _largest(bits, SMALLEST: tl.constexpr):
    """The magnitude of these bits, NaN too, or SMALLEST where that is more."""
    return tl.maximum(bits.to(tl.float32, bitcast=True), SMALLEST, propagate_nan=tl.PropagateNan.ALL)


class KeysValues(NamedTuple):
    """Keys and values as they are multiplied; `padded` is a multiple of 128.

    centre       float32 [B * H, width], of the keys
    attended     int32 [B], keys attended to, which come first
    integers     int8 [B * H, padded, width]; scale: float32 [B * H, padded / 128]
    values       E4M3 [B * H, width, padded] or 16 bit [B * H, padded, width]; value_scale: float32 [B * H, width] or None
    """

    centre: torch.Tensor
    attended: torch.Tensor
    integers: torch.Tensor
    scale: torch.Tensor
    values: torch.Tensor
    value_scale: torch.Tensor | None


def quantize_keys_values(key: torch.Tensor, value: torch.Tensor, key_mask: torch.Tensor | None, fp8: bool) -> KeysValues:
    """Keys [B, H, N, D] around their centre, and values, with those first that `key_mask` [B, N] lets in."""
    batch, heads, tokens, width = key.shape
    filled, device = max(16, triton.next_power_of_2(width)), key.device
    order, count = attended_first(key_mask, batch, tokens, device)
    chunks, blocks = triton.cdiv(tokens, CHUNK), max(1, triton.cdiv(tokens, KEY_BLOCK))
    shapes: dict[str, Any] = {"D": width, "WIDTH": filled, "ORDERED": order is not None}
    strides = (heads, tokens, *key.stride()[:3], *value.stride()[:3])
    sums, tops = (torch.empty(batch * heads, chunks, filled, device=device) for _ in range(2))
    if chunks:
        arrays = (key, value, order, count, sums, tops)
        statistics_kernel[chunks, batch * heads](*arrays, *strides, CHUNK=CHUNK, STEP=64, **shapes)
    per_head = count.clamp(min=1).repeat_interleave(heads).unsqueeze(1)
    centre = sums.sum(1) / per_head
    value_scale = inverse = None
    if fp8:
        top = tops.amax(1).clamp_(min=SMALLEST) if chunks else tops.new_ones(batch * heads, filled)
        value_scale, inverse = top / E4M3_MAX, E4M3_MAX / top
    padded = blocks * KEY_BLOCK
    integers = torch.empty(batch * heads, padded, filled, dtype=torch.int8, device=device)
    scale = torch.empty(batch * heads, blocks, device=device)
    narrow = torch.bfloat16 if value.dtype == torch.float32 else value.dtype
    values = (
        torch.empty(batch * heads, filled, padded, dtype=torch.float8_e4m3fn, device=device)
        if fp8
        else torch.empty(batch * heads, padded, filled, dtype=narrow, device=device)
    )
    operands = (key, value, order, count, centre, inverse, integers, scale, values)
    limits: dict[str, Any] = {"INTEGERS": INTEGERS, "SMALLEST": SMALLEST, "BLOCK": KEY_BLOCK, "FP8": fp8}
    key_value_kernel[blocks, batch * heads](*operands, *strides, **limits, **shapes, num_warps=8)
    return KeysValues(centre, count, integers, scale, values, value_scale)


def quantize_queries(
    query: torch.Tensor, centre: torch.Tensor, softmax_scale: float, offset: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Queries as int8 [B * H, M, width], their scales, float32 [B * H, M], and what the centre adds to scores, the same."""
    batch, heads, rows, width = query.shape
    filled, device = centre.shape[-1], query.device
    integers = torch.empty(batch * heads, rows, filled, dtype=torch.int8, device=device)
    scale = torch.empty(batch * heads, rows, device=device)
    offsets = torch.empty(batch * heads, rows, device=device) if offset else None
    score_scale = softmax_scale * math.log2(math.e) / INTEGERS
    arrays = (query, centre, integers, scale, offsets, heads, rows, *query.stride()[:3], softmax_scale, score_scale)
    limits: dict[str, Any] = {"INTEGERS": INTEGERS, "SMALLEST": SMALLEST, "D": width, "WIDTH": filled, "ROWS": 64}
    query_kernel[triton.cdiv(rows, 64), batch * heads](*arrays, **limits, OFFSET=offset)
    return integers, scale, offsets
