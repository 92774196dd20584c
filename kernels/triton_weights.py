"""Weights encoded on GPUs: `reference.encode_weight_rows`, bit for bit.

A program takes one row and tries all row scales on it. Costs are sums of few-digit numbers, exact in float32 where the
weight has at most 11 digits (bfloat16, float16) and in pairs of float32 where it has 24, so any order of summing gives the
reference's decisions.
"""

import torch
import triton
import triton.language as tl

from .tables import DialectTables

TILE_ELEMENTS = 1024


@triton.jit
def weight_kernel(
    weight_ptr,  # [N, K] float, contiguous
    multipliers_ptr,  # float32 [COUNT], multiples of 1/8 from 1 on
    magnitudes_ptr,  # int32 [32, 4], DialectTables.magnitudes
    indices_ptr,  # uint8 [D, 32], DialectTables.indices
    codes_ptr,  # uint8 [N, K / 2]
    meta_ptr,  # uint8 [N, K / BLOCK]
    scale_ptr,  # float32 [N]
    row_blocks: tl.constexpr,  # K / BLOCK
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,  # blocks of a piece of a row, a power of two
    COUNT: tl.constexpr,
    DIALECTS: tl.constexpr,
    SPLIT: tl.constexpr,  # the weight is float32
):
    """One row a program: its scale by all of `multipliers`, then its codes."""
    row = tl.program_id(0).to(tl.int64)
    from_row = weight_ptr + row * row_blocks * BLOCK
    block = tl.arange(0, TILE)
    element = tl.arange(0, BLOCK)[:, None] + block[None, :] * BLOCK  # [BLOCK, TILE]

    top = tl.zeros((BLOCK, TILE), tl.int32)
    for start in range(0, row_blocks, TILE):
        weight = tl.load(from_row + start * BLOCK + element, mask=(block + start < row_blocks)[None, :], other=0.0)
        top = tl.maximum(top, weight.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    bits = tl.max(tl.max(top, axis=0), axis=0)
    exponent = tl.where(bits == 0, 127, tl.maximum((bits >> 23) - 3, 1))
    base = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)

    least = tl.full((), float("inf"), tl.float64)
    chosen = tl.load(multipliers_ptr)
    for number in range(0, COUNT):
        multiplier = tl.load(multipliers_ptr + number)
        total = tl.zeros((TILE,), tl.float64)
        for start in range(0, row_blocks, TILE):
            weight = tl.load(from_row + start * BLOCK + element, mask=(block + start < row_blocks)[None, :], other=0.0)
            delta, doubled, q = _lift(tl.abs(weight.to(tl.float32)) * inverse, multiplier)
            cost, _ = _best(doubled, q, multiplier, magnitudes_ptr, DIALECTS, SPLIT)
            unit = ((127 - 2 * delta) << 23).to(tl.float32, bitcast=True)
            total += cost.to(tl.float64) * unit.to(tl.float64)
        error = tl.sum(total, axis=0) * multiplier.to(tl.float64)
        chosen = tl.where(error < least, multiplier, chosen)
        least = tl.minimum(error, least)
    tl.store(scale_ptr + row, base * chosen)

    for start in range(0, row_blocks, TILE):
        inside = block + start < row_blocks
        weight = tl.load(from_row + start * BLOCK + element, mask=inside[None, :], other=0.0).to(tl.float32)
        delta, doubled, q = _lift(tl.abs(weight) * inverse, chosen)
        _, dialect = _best(doubled, q, chosen, magnitudes_ptr, DIALECTS, SPLIT)
        empty = tl.max(q, axis=0) == 0
        meta = tl.where(empty, 0, (delta << 5) | dialect)
        tl.store(meta_ptr + row * row_blocks + start + block, meta.to(tl.uint8), mask=inside)
        index = tl.load(indices_ptr + (q + (dialect << 5)[None, :])).to(tl.int32)
        code = index | tl.where((weight < 0) & (index > 0), 8, 0)
        pairs = tl.reshape(code, (BLOCK // 2, 2, TILE)) << (tl.arange(0, 2) * 4)[None, :, None]
        byte = tl.arange(0, BLOCK // 2)[:, None] + block[None, :] * (BLOCK // 2)
        to = codes_ptr + (row * row_blocks + start) * (BLOCK // 2) + byte
        tl.store(to, tl.sum(pairs, axis=1).to(tl.uint8), mask=inside[None, :])


@triton.jit
def _lift(magnitude, multiplier):
    """Exponent offsets [TILE], magnitudes times 2^(delta + 1) and the 5-bit intermediate, [BLOCK, TILE].

    What is divided by the row scale's multiplier in the specification stays undivided here, and exact.
    """
    most = tl.max(magnitude, axis=0).to(tl.int32, bitcast=True)
    divisor = multiplier.to(tl.int32, bitcast=True)
    borrow = tl.where((most & 0x7FFFFF) < (divisor & 0x7FFFFF), 1, 0)
    delta = tl.minimum(tl.maximum(3 - ((most >> 23) - (divisor >> 23) - borrow), 0), 7)
    doubled = magnitude * ((delta + 128) << 23).to(tl.float32, bitcast=True)[None, :]
    q = (doubled * (1.0 / multiplier)).to(tl.int32)  # may be one off
    rest = doubled - q.to(tl.float32) * multiplier
    q = q + tl.where(rest >= multiplier, 1, 0) - tl.where(rest < 0, 1, 0)
    return delta, doubled, tl.minimum(q, 31)


@triton.jit
def _best(doubled, q, multiplier, magnitudes_ptr, DIALECTS: tl.constexpr, SPLIT: tl.constexpr):
    """The least cost of each block, the sum of v * (v * multiplier - doubled), and its dialect; ties to the lowest id."""
    coarse = doubled
    if SPLIT:
        coarse = (doubled + 16384.0) - 16384.0  # multiples of 2^-9; the rest has 15 digits
    fine = doubled - coarse
    least = tl.full((q.shape[1],), float("inf"), tl.float64 if SPLIT else tl.float32)
    best = tl.zeros((q.shape[1],), tl.int32)
    for word in range(0, DIALECTS // 8):  # eight maxima, so a multiple of 8
        packed = tl.load(magnitudes_ptr + (q * 4 + word))
        for place in tl.static_range(8):
            value = ((packed >> (4 * place)) & 15).to(tl.float32)
            cost = tl.sum(value * (value * multiplier - coarse), axis=0)
            if SPLIT:
                cost = cost.to(tl.float64) - tl.sum(value * fine, axis=0).to(tl.float64)
            best = tl.where(cost < least, word * 8 + place, best)
            least = tl.minimum(cost, least)
    return least, best


def encode_weight(
    weight: torch.Tensor, tables: DialectTables, block_size: int, multipliers: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, meta and row scales of a finite weight [N, K]: `reference.encode_weight_rows` for all candidates."""
    rows, width = weight.shape
    device = weight.device
    codes = torch.empty(rows, width // 2, dtype=torch.uint8, device=device)
    meta = torch.empty(rows, width // block_size, dtype=torch.uint8, device=device)
    scale = torch.empty(rows, dtype=torch.float32, device=device)
    weight_kernel[(rows,)](
        weight.contiguous(),
        torch.tensor(multipliers, dtype=torch.float32, device=device),
        tables.magnitudes,
        tables.indices,
        codes,
        meta,
        scale,
        width // block_size,
        BLOCK=block_size,
        TILE=TILE_ELEMENTS // block_size,
        COUNT=len(multipliers),
        DIALECTS=tables.half_units.shape[0],
        SPLIT=weight.dtype == torch.float32,
    )
    return codes, meta, scale
