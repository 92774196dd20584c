"""What kernels share: how rows are read, equalized, rotated, or less what is encoded already, how tables are looked up, and
how operands are handed over, lifted and rounded."""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .integers import INTEGER_LIFT
from .reference import LIFT

# Whether scattered loads are laid out with the elements of a block first: up to Triton 3.6, and where it is interpreted.
LIES_WELL = tl.constexpr(triton.knobs.runtime.interpret or triton.__version__.startswith("3.6."))
MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: a number below 2^22 with it is a float without a fraction


def is_described(capability: tuple[int, int]) -> bool:
    """Whether the GPU loads by descriptors."""
    return capability >= (9, 0)


def rows_of(x: torch.Tensor, block: list[int], described: bool) -> Any:
    """The rows of x [..., K], contiguous, as a kernel's argument: a descriptor of blocks, or, unless `described`, x."""
    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), block) if described else x


def lift_of(dtype: torch.dtype) -> int:
    """Operands in `dtype` are magnitudes times 2^lift: E4M3's exponents do not reach as low, integers have no fractions."""
    return {torch.float8_e4m3fn: LIFT, torch.int8: INTEGER_LIFT}.get(dtype, 0)


@triton.jit
def whole(x):
    """The nearest whole number to each of at most 127, int8, ties to even: what is added leaves it in the lowest byte."""
    return (x + MAGIC).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def look_up(table_ptr, index):
    """Entries of 64 bits of a table at `index`, in the layout of `index`.

    From 3.7 on, Triton lays out what is loaded from scattered addresses in another order, and would bring the entries
    through shared memory to the threads that hold the elements.
    """
    if LIES_WELL:
        return tl.load(table_ptr + index)
    address = table_ptr.to(tl.int64) + index.to(tl.int64) * 8
    return tl.inline_asm_elementwise("ld.global.nc.b64 $0, [$1];", "=l,l", [address], dtype=tl.int64, is_pure=True, pack=1)


@triton.jit
def source_rows(row, valid, salient_ptr, scale_ptr, RESIDUAL: tl.constexpr):
    """Rows of x to read, int64 [ROWS], the scales of what is subtracted from them, and which are to be read: others are
    zeros."""
    source = row.to(tl.int64)
    error_scale = row.to(tl.float32)
    read = valid
    if RESIDUAL:
        source = tl.load(salient_ptr + row, mask=valid, other=0).to(tl.int64)
        read = valid & (source >= 0)
        error_scale = tl.load(scale_ptr + source, mask=read, other=0.0)
    return source, error_scale, read


@triton.jit
def load_piece(
    from_x,
    from_operand,
    equalizer_ptr,
    error_scale,
    column,
    start: tl.constexpr,
    here,
    K: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EQUALIZED: tl.constexpr,
    ROTATION: tl.constexpr,
):
    """A piece of the rows, [BLOCK, PIECE, ROWS]; 0 past the end.

    As it is in x, or as `transform.transform_rows` has it; in float32 where what an earlier encoding kept is taken away.
    """
    inside = here if start + column.shape[0] * column.shape[1] <= K else here & (column + start < K)
    x = tl.load(from_x + (column + start), mask=inside, other=0.0)
    if EQUALIZED:
        # Masked as x is, hence laid out as x is: an exponent lies in the thread that holds its element.
        exponent = tl.load(equalizer_ptr + (column + start), mask=inside, other=0)
        if x.dtype == tl.bfloat16:
            x = _scale_bfloat16(x, exponent)
        else:
            x = x.to(tl.float32) * ((127 - exponent.to(tl.int32)) << 23).to(tl.float32, bitcast=True)
    if ROTATION:
        x = _rotate(x.to(tl.float32), ROTATION)
    if RESIDUAL:
        kept = tl.load(from_operand + (column + start), mask=inside, other=0.0).to(tl.float32)
        x = x.to(tl.float32) - kept * error_scale[None, None, :]
    return x


@triton.jit
def _scale_bfloat16(x, exponent):
    """x * 2^-exponent, bfloat16, of int8 exponents from -15 to 15.

    Four at a time, two in a register; Triton would widen each to float32, which takes twice as many instructions. Of four
    exponents in a register e ^ 0x7F is 127 - e, 7 bits below where bfloat16 has its exponent.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 low, high, minus_zeros;
        xor.b32 high, $4, 0x7F7F7F7F;
        prmt.b32 low, high, 0, 0x4140;
        prmt.b32 high, high, 0, 0x4342;
        shl.b32 low, low, 7;
        shl.b32 high, high, 7;
        mov.b32 minus_zeros, 0x80008000;
        fma.rn.bf16x2 $0, $2, low, minus_zeros;
        fma.rn.bf16x2 $1, $3, high, minus_zeros;
        }""",
        "=r,=r,r,r,r",
        [x, exponent],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _rotate(x, SIZE: tl.constexpr):
    """The order of operations of rotation.rotate_rows."""
    width: tl.constexpr = x.shape[0]
    pieces: tl.constexpr = x.shape[1]
    rows: tl.constexpr = x.shape[2]
    x = tl.permute(x, (2, 1, 0))  # elements in the order of the row
    STAGES: tl.constexpr = 4 if SIZE == 16 else 5 if SIZE == 32 else 6 if SIZE == 64 else 7
    for stage in tl.static_range(STAGES):
        pairs = tl.reshape(x, (rows * pieces * width // (2 << stage), 2, 1 << stage))
        low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
        x = tl.permute(tl.join(low + high, low - high), (0, 2, 1))
    # 1 / sqrt(SIZE), rounded to float32 first: 2^-2, 2^-2.5, 2^-3 or 2^-3.5
    NORM: tl.constexpr = (
        0.25 if SIZE == 16 else 0.1767766922712326 if SIZE == 32 else 0.125 if SIZE == 64 else 0.0883883461356163
    )
    return tl.permute(tl.reshape(x, (rows, pieces, width)), (2, 1, 0)) * NORM
