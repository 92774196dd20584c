"""What happens to the columns of a layer's input and weight before they are encoded: the specification in plain torch.

First each column is multiplied by a power of two, so that outlier channels do not set the scale of their row (equalization:
SmoothQuant, arXiv 2211.10438, with scales that cost no rounding); then rows are rotated (`rotation`).
"""

from typing import NamedTuple

import torch

from .rotation import rotate_rows

LARGEST_EXPONENT = 15  # of an equalizer, in magnitude: 2^-15 and 2^15 are exact in float16, too


class InputTransform(NamedTuple):
    """How an input becomes operands: what is done before it is encoded, to the weight the other way, and for which units.

    equalizer  int8 [K], exponents e: column k of the input is multiplied by 2^-e[k], of the weight by 2^e[k]; None for none
    rotation   size of the Hadamard blocks by which rows are rotated then; 0 for none
    products   which matrix units multiply: "fp8", "int8", "16bit", "auto", the fastest that the device has, or "exact", the
               fastest in which every code is exact
    """

    equalizer: torch.Tensor | None = None
    rotation: int = 0
    products: str = "auto"


UNCHANGED = InputTransform()


def transform_rows(x: torch.Tensor, transform: InputTransform) -> torch.Tensor:
    """Rows x [M, K] of a layer's input as they are encoded: x itself where the transform is none, else newly made.

    float32, but for bfloat16 that is only equalized: that stays bfloat16.
    """
    return rotate_rows(scale_columns(x, transform.equalizer, -1), transform.rotation)


def transform_weight(weight: torch.Tensor, transform: InputTransform) -> torch.Tensor:
    """A weight [N, K] as it is encoded, so that it undoes what `transform_rows` does to its input; dtypes as there."""
    return rotate_rows(scale_columns(weight, transform.equalizer, 1), transform.rotation)


def scale_columns(x: torch.Tensor, equalizer: torch.Tensor | None, sign: int) -> torch.Tensor:
    """x [..., K] with column k times 2^(sign * equalizer[k]); x itself where that is None.

    bfloat16 gives bfloat16, other types give float32. Both hold the product exactly, but for what is smaller than the
    smallest normal number or larger than the largest.
    """
    if equalizer is None:
        return x
    dtype = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    return x.to(dtype) * powers_of_two(equalizer, sign).to(dtype)


def powers_of_two(equalizer: torch.Tensor, sign: int = 1) -> torch.Tensor:
    """2^(sign * e), float32 [K], exactly."""
    return ((equalizer.to(torch.int32) * sign + 127) << 23).view(torch.float32)
