"""Tensors to codes and back. This room knows blocks and books; it knows no layer and no model."""

from .calibrated import encode_calibrated
from .encoded import DTYPES, ROW_SCALE_BITS, EncodedTensor, all_finite, effective_bits, encode

__all__ = [
    "DTYPES",
    "ROW_SCALE_BITS",
    "EncodedTensor",
    "all_finite",
    "effective_bits",
    "encode",
    "encode_calibrated",
]
