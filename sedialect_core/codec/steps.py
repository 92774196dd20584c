"""How a block was encoded, step by step, for people to look at. It explains what `encode` did; it encodes nothing itself."""

from dataclasses import dataclass

import torch

from ...kernels.tables import MAXIMA, Q_VALUES
from ..errors import EncodeError
from .encoded import EncodedTensor

META_DIALECT_BITS = 5
HIGHEST = 15  # the largest maximum of a dialect, in half-units


@dataclass(frozen=True)
class Candidate:
    """A dialect that a block could have chosen, and the error by which it was judged.

    Of activations that is the sum of the tabled errors, an integer; of weights the squared error in half-units.
    """

    dialect: int
    error: float


@dataclass(frozen=True)
class BlockSteps:
    """One block of B numbers on its way through the encoding of docs/format.md. Magnitudes are in half-units."""

    values: tuple[float, ...]
    scale: float
    delta: int
    lifted: tuple[float, ...]
    """|x| / scale * 2^delta, in [0, 16) unless the offset was clamped."""
    q: tuple[int, ...]
    """The 5-bit intermediate, floor(2 * lifted)."""
    candidates: tuple[Candidate, ...]
    dialect: int
    magnitudes: tuple[int, ...]
    """What each number became in its dialect."""
    decoded: tuple[float, ...]


def explain(x: torch.Tensor, encoded: EncodedTensor, row: int, block: int, candidates: str = "all") -> BlockSteps:
    """The steps of one block of rows x [M, K] that `encoded` was made from.

    Args:
        candidates: what the encoder chose from, "max" or "all".

    Raises:
        EncodeError: there is no such row or block, or the row is not finite.
    """
    blocks = encoded.meta.shape[-1]
    if x.ndim != 2 or x.shape != encoded.shape or not (0 <= row < x.shape[0] and 0 <= block < blocks):
        raise EncodeError(f"no block {block} in row {row} of {tuple(x.shape)} encoded as {tuple(encoded.shape)}")
    size = encoded.block_size
    part = slice(block * size, (block + 1) * size)
    values, scale = x[row, part].double(), float(encoded.scale[row])
    if not bool(values.isfinite().all()) or scale != scale:
        raise EncodeError(f"row {row} holds NaN or Inf; it has no codes to look at")
    meta = int(encoded.meta[row, block])
    delta, dialect = meta >> META_DIALECT_BITS, meta & ((1 << META_DIALECT_BITS) - 1)
    lifted = values.abs() / scale * 2.0**delta
    q = (2 * lifted).long().clamp(max=Q_VALUES - 1)
    decoded = encoded.dequantize(torch.float64)[row, part]
    return BlockSteps(
        values=tuple(values.tolist()),
        scale=scale,
        delta=delta,
        lifted=tuple(lifted.tolist()),
        q=tuple(q.tolist()),
        candidates=_candidates(encoded, lifted, q, candidates),
        dialect=dialect,
        magnitudes=tuple((decoded.abs() / scale * 2.0**delta).round().int().tolist()),
        decoded=tuple(decoded.tolist()),
    )


def _candidates(encoded: EncodedTensor, lifted: torch.Tensor, q: torch.Tensor, candidates: str) -> tuple[Candidate, ...]:
    tables = encoded.formatbook.tables("cpu")
    if encoded.role == "activation":
        errors = tables.errors[:, q].sum(1).double()
    else:
        magnitude = tables.half_units.gather(1, tables.indices.long())[:, q].double()
        errors = (magnitude - lifted).square().sum(1)
    ids = range(len(encoded.formatbook.dialects))
    if candidates == "max":
        maximum = min(HIGHEST, max(HIGHEST + 1 - MAXIMA, (int(q.max()) + 1) >> 1))
        first = tables.shapes * (HIGHEST - maximum)
        ids = range(first, first + tables.shapes)
    return tuple(Candidate(number, float(errors[number])) for number in ids)
