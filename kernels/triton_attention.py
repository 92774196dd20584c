"""Attention in 8 bit on GPUs: what `reference_attention` specifies, but for the rounding of float32 sums.

Queries, keys and values are quantized into buffers that a second kernel passes over as FlashAttention does (arXiv
2205.14135). That kernel is bound by what it does for each score besides the two products, hence

* Keys left out are not there: those attended to are gathered in front, and the last block is filled up with zeros. A zero
  is a key at the centre, whose score is not above the largest, so that its weight can be taken off the row's sum at the end.
* The maximum is taken over integers, for all scores of a row in a block have one scale.
* Integers become floats by being added to the bits of 1.5 * 2^23, in which the products' sums start; what that adds to the
  score goes with the shift of the exponent.
* Values lie in the order in which threads hold probabilities (see `_as_operand`), so that no number changes its thread.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .capabilities import multiplies_e4m3
from .reference_attention import KEY_BLOCK, LIFT
from .triton_attention_operands import quantize_keys_values, quantize_queries
from .triton_rows import MAGIC, is_described, rows_of

MAGIC_BITS = tl.constexpr(0x4B400000)


class Tile(NamedTuple):
    """Rows and keys that a program holds at a time, its warps, and how many blocks of keys it loads ahead."""

    rows: int
    keys: int
    warps: int
    stages: int


@triton.jit
def attention_kernel(
    query_ptr,  # int8 [B * H, M, WIDTH]
    query_scale_ptr,  # float32 [B * H, M]
    keys_of,  # if DESCRIBED, descriptor of int8 [B * H * padded, WIDTH], blocks [KEYS, WIDTH]
    key_scale_ptr,  # float32 [B * H, padded / KEY_BLOCK]
    values_of,  # descriptor of E4M3 [B * H * WIDTH, padded], blocks [WIDTH, KEYS], or 16 bit as keys_of
    value_scale_ptr,  # float32 [B * H, WIDTH]; read if FP8
    count_ptr,  # int32 [B]
    offset_ptr,  # float32 [B * H, M]; read if LSE
    output_ptr,  # float [B, H, M, D]
    lse_ptr,  # float32 [B * H, M]; written if LSE
    heads,
    rows,
    padded,  # keys of a head in the buffers
    output_sample,
    output_head,
    output_token,
    LIFT: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    FP8: tl.constexpr,
    LSE: tl.constexpr,
    DESCRIBED: tl.constexpr,  # else keys_of and values_of are pointers
):
    """Rows of the output; a program takes ROWS of a head."""
    head = tl.program_id(1)
    sample = head // heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    channel = tl.arange(0, WIDTH)
    place = tl.arange(0, KEYS)
    at = head.to(tl.int64) * rows + row
    query = tl.load(query_ptr + at[:, None] * WIDTH + channel[None, :], mask=valid[:, None], other=0)
    query_scale = tl.load(query_scale_ptr + at, mask=valid, other=0.0)
    count = tl.load(count_ptr + sample)
    blocks = tl.maximum(tl.cdiv(count, KEYS), 1)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    zero_key = tl.zeros((ROWS,), tl.float32)
    output = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, blocks * KEYS, KEYS):
        if DESCRIBED:
            key = keys_of.load([head * padded + start, 0]).T
        else:
            first = head.to(tl.int64) * padded + start
            key = tl.load(keys_of + first * WIDTH + (place[None, :] * WIDTH + channel[:, None]))
        key_scale = tl.load(key_scale_ptr + (head * padded + start) // KEY_BLOCK)
        scores = (tl.dot(query, key, out_dtype=tl.int32) + MAGIC_BITS).to(tl.float32, bitcast=True)
        scale = query_scale * key_scale
        risen = tl.maximum(top, (tl.max(scores, axis=1) - MAGIC) * scale)
        shift = MAGIC * scale + (risen - LIFT)
        weight = tl.math.exp2(tl.fma(scores, scale[:, None], -shift[:, None]))
        zero_key = tl.math.exp2(tl.fma(tl.zeros_like(scale) + MAGIC, scale, -shift))
        shrink = tl.math.exp2(top - risen)
        total = total * shrink + tl.sum(weight, axis=1)
        if FP8:
            if DESCRIBED:
                value = values_of.load([head * WIDTH, start]).T
            else:
                first = head.to(tl.int64) * WIDTH * padded + start
                value = tl.load(values_of + first + (channel[None, :] * padded + place[:, None]))
            # A product of its own: the units' short sums end here, and what is long is summed in float32.
            product = tl.dot(_as_operand(weight.to(tl.float8e4nv)), value)
        else:
            if DESCRIBED:
                value = values_of.load([head * padded + start, 0])
            else:
                first = head.to(tl.int64) * padded + start
                value = tl.load(values_of + first * WIDTH + (place[:, None] * WIDTH + channel[None, :]))
            product = tl.dot(weight.to(value.dtype), value)
        output = output * shrink[:, None] + product
        top = risen
    total -= (blocks * KEYS - count).to(tl.float32) * zero_key
    output *= tl.div_rn(1.0, tl.where(total == 0, 1.0, total))[:, None]
    if FP8:
        output *= tl.load(value_scale_ptr + head * WIDTH + channel)[None, :]
    inside = valid[:, None] & (channel < D)[None, :]
    output_ptr += sample.to(tl.int64) * output_sample + (head % heads).to(tl.int64) * output_head
    to = output_ptr + row[:, None].to(tl.int64) * output_token + channel[None, :]
    tl.store(to, output.to(output_ptr.dtype.element_ty), mask=inside)
    if LSE:
        natural = (top + tl.math.log2(total) - LIFT) * 0.6931471805599453
        tl.store(lse_ptr + at, natural + tl.load(offset_ptr + at, mask=valid, other=0.0), mask=valid)


@triton.jit
def _as_operand(weight):
    """Columns of each 16 in the order in which matrix units read 8-bit operands.

    Of a product's 16 columns a thread holds two and, 8 further on, two more; of an 8-bit operand's, four in a row. With
    columns named anew a thread keeps what it has.
    """
    rows: tl.constexpr = weight.shape[0]
    columns: tl.constexpr = weight.shape[1]
    pairs = tl.reshape(weight, (rows, columns // 16, 2, 4, 2))
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2, 4)), (rows, columns))


def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    softmax_scale: float,
    return_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output [B, H, M, D] and, if asked for, the log-sum-exp, float32 [B, H, M]; arguments as of `reference_attention`.

    Values are E4M3 where the GPU multiplies them, else 16 bit. Compiled for each head size and tile.
    """
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    batch, heads, rows, width = query.shape
    output = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device) if return_lse else None
    if output.numel() == 0:
        return output, lse
    capability, fp8 = torch.cuda.get_device_capability(query.device), multiplies_e4m3(query.device)
    keys = quantize_keys_values(key, value, key_mask, fp8)
    integers, scale, offset = quantize_queries(query, keys.centre, softmax_scale, return_lse)
    filled = keys.integers.shape[-1]
    tile, described = tile_for(capability, fp8), is_described(capability)
    values_block = [filled, tile.keys] if fp8 else [tile.keys, filled]
    grid = (triton.cdiv(rows, tile.rows), batch * heads)
    attention_kernel[grid](
        integers,
        scale,
        rows_of(keys.integers, [tile.keys, filled], described),
        keys.scale,
        rows_of(keys.values, values_block, described),
        keys.value_scale,
        keys.attended,
        offset,
        output,
        lse,
        heads,
        rows,
        keys.integers.shape[1],
        *output.stride()[:3],
        LIFT=LIFT,
        KEY_BLOCK=KEY_BLOCK,
        D=width,
        WIDTH=filled,
        ROWS=tile.rows,
        KEYS=tile.keys,
        FP8=fp8,
        LSE=return_lse,
        DESCRIBED=described,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output, lse


def tile_for(capability: tuple[int, int], fp8: bool) -> Tile:
    """The tile for a GPU.

    64 rows leave an H100 three programs that take turns at its matrix units; 128 rows were slower there. On 8.9 64 rows and
    128 keys spill registers.
    """
    if capability == (8, 9):
        return Tile(128, 64, 8, 2)
    return Tile(64, 128, 4, 2) if fp8 or capability == (8, 0) else Tile(64, 64, 4, 2)
