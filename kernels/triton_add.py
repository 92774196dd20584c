"""Rows added to chosen rows: the results of residual rows to those of their tokens (docs/semantics.md)."""

import torch
import triton
import triton.language as tl

TILE = 1024


@triton.jit
def add_kernel(
    product_ptr,  # [M, N] float, contiguous
    extra_ptr,  # [E, N] of the same dtype, contiguous
    rows_ptr,  # int32 [E], distinct, but for -1
    N,
    TILE: tl.constexpr,
):
    """TILE elements of one extra row a program."""
    number = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + number).to(tl.int64)
    if row < 0:
        return
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < N
    total = tl.load(product_ptr + row * N + column, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(extra_ptr + number * N + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(product_ptr + row * N + column, total.to(product_ptr.dtype.element_ty), mask=inside)


def add_rows(product: torch.Tensor, extra: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`product` [M, N] with row e of `extra` [E, N] added to its row rows[e], in place.

    The rows, int32 [E], are distinct, but for -1, which is none.
    """
    width = product.shape[1]
    add_kernel[(extra.shape[0], triton.cdiv(width, TILE))](product, extra, rows.contiguous(), width, TILE=TILE)
    return product
