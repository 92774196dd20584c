"""Tensors to codes and back. This room knows blocks and books; it knows no layer and no model."""

from .compensated import encode_compensated
from .encoded import DTYPES, ROW_SCALE_BITS, EncodedTensor, all_finite, effective_bits, encode

__all__ = [
    "DTYPES",
    "ROW_SCALE_BITS",
    "EncodedTensor",
    "all_finite",
    "effective_bits",
    "encode",
    "encode_compensated",
]
