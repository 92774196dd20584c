"""Weights encoded with the inputs in view that they will meet: the same format, less error in the layer's output."""

from typing import NamedTuple

import torch

from ...kernels.compensation import REFINING, Factor
from ...kernels.dialect_blocks import encode_calibrated_rows
from ...kernels.transform import UNCHANGED, InputTransform, transform_weight
from ..errors import EncodeError
from ..formatbook import Formatbook
from .encoded import EncodedTensor, check_encodable


class Calibrated(NamedTuple):
    """A weight, and the squared error of the layer's output on the calibration rows, as a part of plain encoding's."""

    encoded: EncodedTensor
    error: float


def encode_calibrated(
    weight: torch.Tensor,
    moment: torch.Tensor,
    factor: Factor,
    *,
    formatbook: Formatbook,
    block_size: int = 16,
    transform: InputTransform = UNCHANGED,
    name: str = "weight",
    passes: int = REFINING,
) -> Calibrated:
    """Encode a weight [N, K] as `encode` does, but so that its errors cancel in products with the calibration rows.

    Args:
        moment: X^T X [K, K] of these rows, up to a factor, on the device of the weight.
        factor: `kernels.compensation.factorize(moment, block_size)`.
        transform: of the input; the moment is of rows that are transformed already.
        passes: of refining, after every column has been rounded once.

    Raises:
        EncodeError: K is not a multiple of the block size, the dtype is not floating, or the weight holds NaN or Inf.
    """
    check_encodable(weight, block_size, "weight", None, name)
    if not bool(weight.isfinite().all()):
        raise EncodeError(f"{name} holds NaN or Inf; load a sound checkpoint or leave this layer out")
    rows = transform_weight(weight, transform)
    result = encode_calibrated_rows(rows, moment, factor, formatbook.tables(weight.device), block_size, passes)
    plain = float(result.plain.sum())
    encoded = EncodedTensor(*result.rows, block_size, "weight", formatbook, transform.rotation, transform.equalizer)
    return Calibrated(encoded, float(result.error.sum()) / plain if plain else 1.0)
