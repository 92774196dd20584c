"""Tensors to codes and back. This room knows blocks and books; it knows no layer and no model."""

from .compensated import encode_compensated
from .encoded import DTYPES, EncodedTensor, all_finite, encode

__all__ = ["DTYPES", "EncodedTensor", "all_finite", "encode", "encode_compensated"]
