"""Products of INT8 matrix units with row scales on GPUs: `integers.scaled_product`, up to the rounding of the result."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .triton_rows import is_described, rows_of


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
    operand_of,  # int8 [M, K]: a descriptor of blocks [ROWS, INPUTS] if DESCRIBED, else a pointer
    row_scale_ptr,  # float32 [M]
    weight_of,  # int8 [N, K]: a descriptor of blocks [OUTPUTS, INPUTS], or a pointer
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
    DESCRIBED: tl.constexpr,  # without a unit for descriptors, Triton's stand-in for it spills registers
    EVEN: tl.constexpr,  # K is a multiple of INPUTS; read unless DESCRIBED
):
    """A tile of the product."""
    row_tile, output_tile = _tile(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(outputs, OUTPUTS), BAND)
    first_row, first_output = row_tile * ROWS, output_tile * OUTPUTS
    row, output = first_row + tl.arange(0, ROWS), first_output + tl.arange(0, OUTPUTS)
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    if DESCRIBED:
        for start in range(0, inputs, INPUTS):
            operand = operand_of.load([first_row, start])
            weight = weight_of.load([first_output, start])
            sums = tl.dot(operand, weight.T, sums, out_dtype=tl.int32)
    else:
        part = tl.arange(0, INPUTS)
        # Past the end the first row is read in place of none: its products are not stored.
        from_operand = operand_of + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * inputs + part[None, :]
        from_weight = weight_of + tl.where(output < outputs, output, 0).to(tl.int64)[None, :] * inputs + part[:, None]
        for start in range(0, inputs, INPUTS):
            if EVEN:
                operand, weight = tl.load(from_operand), tl.load(from_weight)
            else:
                operand = tl.load(from_operand, mask=(part < inputs - start)[None, :], other=0)
                weight = tl.load(from_weight, mask=(part < inputs - start)[:, None], other=0)
            sums = tl.dot(operand, weight, sums, out_dtype=tl.int32)
            from_operand += INPUTS
            from_weight += INPUTS
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
    capability = torch.cuda.get_device_capability(operand.device)
    tile, described = tile_for(capability, rows), is_described(capability)
    operand, weight = operand.contiguous(), weight.contiguous()
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
    int8_kernel[grid](
        rows_of(operand, [tile.rows, tile.inputs], described),
        row_scale,
        rows_of(weight, [tile.outputs, tile.inputs], described),
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
        DESCRIBED=described,
        EVEN=inputs % tile.inputs == 0,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return product


def tile_for(capability: tuple[int, int], rows: int) -> Tile:
    """The tile for a GPU and a number of rows."""
    if rows <= 128:
        return Tile(64, 128, 128, 4, 3)
    if capability[0] == 10:
        return Tile(128, 128, 128, 8, 3)  # 256 outputs spill registers
    if capability[0] == 9:
        return Tile(128, 256, 128, 8, 3)
    return Tile(128, 128, 64, 8, 3)
