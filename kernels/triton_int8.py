"""Products of INT8 matrix units with row scales on GPUs: `integers.scaled_product`, up to the rounding of the result."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


class Tile(NamedTuple):
    """Rows, outputs and inputs that a program multiplies at a time, its warps, and how many it loads ahead."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


BAND = 8  # tiles of rows that are gone through together, so that what they read stays in the L2 cache


@triton.jit
def int8_kernel(
    operand_of,  # descriptor of int8 [M, K], blocks [ROWS, INPUTS]
    row_scale_ptr,  # float32 [M]
    weight_of,  # descriptor of int8 [N, K], blocks [OUTPUTS, INPUTS]
    scale_ptr,  # float32 [N]
    bias_ptr,  # float [N]; read if BIAS
    product_ptr,  # float [M, N]
    rows,
    outputs,
    inputs,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    BAND: tl.constexpr,
    BIAS: tl.constexpr,
):
    """A tile of the product."""
    row_tile, output_tile = _tile(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(outputs, OUTPUTS), BAND)
    first_row, first_output = row_tile * ROWS, output_tile * OUTPUTS
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for start in range(0, inputs, INPUTS):
        operand = operand_of.load([first_row, start])
        weight = weight_of.load([first_output, start])
        sums = tl.dot(operand, weight.T, sums, out_dtype=tl.int32)
    row, output = first_row + tl.arange(0, ROWS), first_output + tl.arange(0, OUTPUTS)
    row_scale = tl.load(row_scale_ptr + row, mask=row < rows, other=0.0)
    scale = tl.load(scale_ptr + output, mask=output < outputs, other=0.0)
    product = sums.to(tl.float32) * row_scale[:, None] * scale[None, :]
    if BIAS:
        product += tl.load(bias_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    to = product_ptr + row[:, None].to(tl.int64) * outputs + output[None, :]
    inside = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(to, product.to(product_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _tile(program, row_tiles, output_tiles, BAND: tl.constexpr):
    """Tiles of BAND rows for each output in turn."""
    band = program // (BAND * output_tiles)
    height = tl.minimum(row_tiles - band * BAND, BAND)
    inside = program % (BAND * output_tiles)
    return band * BAND + inside % height, inside // height


def multiply(
    operand: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(operand * row_scale) @ (weight * scale).T + bias, [M, N] in `dtype`, of int8 [M, K] and [N, K].

    K is a multiple of 16, as blocks are.
    """
    (rows, inputs), outputs = operand.shape, weight.shape[0]
    product = torch.empty(rows, outputs, dtype=dtype, device=operand.device)
    if product.numel() == 0:
        return product
    tile = tile_for(torch.cuda.get_device_capability(operand.device), rows)
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
    int8_kernel[grid](
        TensorDescriptor.from_tensor(operand.contiguous(), [tile.rows, tile.inputs]),
        row_scale,
        TensorDescriptor.from_tensor(weight, [tile.outputs, tile.inputs]),
        scale,
        bias,
        product,
        rows,
        outputs,
        inputs,
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        INPUTS=tile.inputs,
        BAND=BAND,
        BIAS=bias is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return product


def tile_for(capability: tuple[int, int], rows: int) -> Tile:
    """The tile for a GPU and a number of rows."""
    if rows <= 128:
        return Tile(64, 128, 128, 4, 3)
    if capability[0] == 9 or capability[0] == 10:
        return Tile(128, 256, 128, 8, 3)
    return Tile(128, 128, 64, 8, 3)
