"""Rotation of rows by blocks of a Hadamard matrix: the specification in plain torch, and the path on CPUs.

A row [K] is cut into blocks of `size` along K, and every block is multiplied by the normalised Hadamard matrix H of that
size, in Sylvester's order. H is symmetric and its own inverse, so rotating twice gives the row back (to rounding), and

    x @ W.T = rotate(x) @ rotate(W).T

Rotating spreads an outlier over its block, which leaves 4-bit codes less to lose (QuaRot, arXiv 2404.00456, section 3; the
same with blocks in place of whole rows).
"""

import torch

SIZES = (16, 32, 64, 128)


def rotate_rows(x: torch.Tensor, size: int) -> torch.Tensor:
    """The rows x [M, K], of any floating dtype, rotated by blocks of `size`: float32 [M, K], newly made.

    The order of operations is part of the specification, so that a kernel can give the same bits. Everything is float32,
    rounded to nearest. For the strides h = 1, 2, 4 … size/2, in this order, elements i (its bit h clear) and i + h of a
    block become

        a = x[i], b = x[i + h];  x[i] = a + b;  x[i + h] = a - b

    and in the end each element is multiplied once by float32(1 / sqrt(size)). A value that is not finite makes its own block
    not finite and no other one.

    Args:
        size: 0 for no rotation: x itself, as it is.

    Raises:
        ValueError: `size` is not one of `SIZES`, or K is not a multiple of it.
    """
    if not size:
        return x
    rows, width = x.shape
    if size not in SIZES or width % size:
        raise ValueError(
            f"rotation by blocks of {size} on {width} columns; a block is one of {SIZES} and divides the columns"
        )
    out = x.to(torch.float32)
    stride = 1
    while stride < size:
        pairs = out.reshape(rows, width // (2 * stride), 2, stride)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        out = torch.stack((low + high, low - high), dim=2)
        stride *= 2
    return out.reshape(rows, width).mul_(size**-0.5)


def rotate_moment(moment: torch.Tensor, size: int) -> torch.Tensor:
    """What X^T X [K, K] becomes when the rows of X are rotated: H M H, in the dtype of `moment`.

    Example:
        >>> x = torch.randn(8, 64)
        >>> torch.allclose(rotate_moment(x.T @ x, 16), (r := rotate_rows(x, 16)).T @ r, atol=1e-5)
        True
    """
    blocks = hadamard(size, moment.dtype, moment.device)
    width = len(moment)
    half = (moment.view(width, width // size, size) @ blocks).view(width, width)
    return (half.T.reshape(width, width // size, size) @ blocks).view(width, width).T.contiguous()


def hadamard(size: int, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> torch.Tensor:
    """The normalised Hadamard matrix [size, size] in Sylvester's order."""
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return matrix * size**-0.5
