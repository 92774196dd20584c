"""The dialects as a format of the compensating loop: weights encoded with the layer's inputs in view."""

from typing import NamedTuple

import torch

from .compensation import REFINING, Factor, compensate, output_error, refine
from .reference import META_DIALECT_BITS, STORED_DELTA, EncodedRows, decode_rows, encode_weight_rows
from .tables import Q_BITS, Q_VALUES, DialectTables

BETTER = 1 - 1e-6  # of the plain error: what is nearer than this to it is a matter of rounding, and the plain codes stay


class CalibratedRows(NamedTuple):
    """An encoded weight, and the squared errors of the layer's output on the calibration rows, float64 [N], by plain
    encoding and as encoded here."""

    rows: EncodedRows
    plain: torch.Tensor
    error: torch.Tensor


class DialectBlocks:
    """A weight's rows on their way into the storage layout, block by block; a `BlockFormat`.

    The exponent offset of a block follows from its maximum, as in plain encoding. For the dialect, every one is tried: the
    block's columns are rounded in it one after another, the errors carried on within the block, and the one with the least
    weighted error in the end is taken, ties to the lowest id.
    """

    def __init__(self, scale: torch.Tensor, width: int, tables: DialectTables, block_size: int) -> None:
        """`scale` are the row scales, float32 [N]; `width` is K."""
        self.block_size, self.scale, self.dialects = block_size, scale, len(tables.half_units)
        magnitude = tables.half_units.gather(1, tables.indices.long()).float()  # [D, 32]
        self.magnitude, self.by_q = magnitude.view(-1), magnitude.T.contiguous().view(-1)
        self.indices = tables.indices.view(-1)
        self.ids = torch.arange(self.dialects, device=scale.device)
        self.meta = torch.empty(width // block_size, len(scale), dtype=torch.uint8, device=scale.device)
        self.base = self.lift = self.unit = scale  # of the block that was chosen or resumed last

    def choose(self, block: int, weight: torch.Tensor, upper: torch.Tensor) -> None:
        """Exponent offsets and dialects of a block of every row."""
        _, exponent = torch.frexp(weight.abs().amax(0) / self.scale)  # floor(log2) + 1
        delta = (4 - exponent).clamp_(0, STORED_DELTA)
        lift = torch.ldexp(torch.ones_like(self.scale), delta)
        dialect = self._best_dialect(weight / self.scale * lift, upper)
        self.meta[block] = (delta << META_DIALECT_BITS) | dialect
        self.resume(block)

    def resume(self, block: int) -> None:
        """Take up what was chosen for a block."""
        meta, one = self.meta[block].long(), torch.ones_like(self.scale)
        delta = meta >> META_DIALECT_BITS
        self.lift, self.unit = torch.ldexp(one, delta), torch.ldexp(one, -delta)
        self.base = (meta & ((1 << META_DIALECT_BITS) - 1)) << Q_BITS

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Values of a column."""
        entry = _intermediate(weight / self.scale * self.lift).add_(self.base)
        return torch.copysign(self.magnitude[entry] * self.unit * self.scale, weight)

    def rows(self, values: torch.Tensor) -> EncodedRows:
        """The codes of values [N, K] that `quantize` gave; rounded again, each gives itself."""
        codes = torch.empty(values.shape[::-1], dtype=torch.uint8, device=values.device)
        blocks, meta = codes.view(len(self.meta), self.block_size, -1), self.meta
        for block, columns in enumerate(values.T.split(self.block_size)):
            self.resume(block)
            index = self.indices[_intermediate(columns / self.scale * self.lift).add_(self.base)]
            blocks[block] = index | ((columns < 0) & (index > 0)).to(torch.uint8) << 3
        meta = meta.masked_fill(((blocks & 7) == 0).all(1), 0)  # one way to write nothing
        packed = codes[0::2] | (codes[1::2] << 4)
        return EncodedRows(packed.T.contiguous(), meta.T.contiguous(), self.scale)

    def _best_dialect(self, lifted: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Dialect ids, int64 [N], for a block [B, N] in half-units."""
        left = lifted.unsqueeze(2).repeat(1, 1, self.dialects)
        loss = torch.zeros_like(left[0])
        roots = upper.diagonal().tolist()
        for i, column in enumerate(left):
            value = self.by_q[_intermediate(column).mul_(self.dialects).add_(self.ids)].copysign_(column)
            lost = torch.sub(column, value, out=value).div_(roots[i])
            loss.addcmul_(lost, lost)
            if i + 1 < len(left):
                left[i + 1 :].addcmul_(upper[i, i + 1 :].view(-1, 1, 1), lost.unsqueeze(0), value=-1)
        return loss.argmin(1)


def encode_calibrated_rows(
    weight: torch.Tensor,
    moment: torch.Tensor,
    factor: Factor,
    tables: DialectTables,
    block_size: int,
    passes: int = REFINING,
) -> CalibratedRows:
    """Encode a finite weight [N, K] so that the layer's output on the calibration rows keeps close to what it was.

    The row scales are those of plain encoding. Each row keeps the plain codes unless the calibrated ones are better by
    `moment`; with an identity moment the result is `encode_weight_rows`'.

    Args:
        moment: X^T X [K, K] of the calibration rows, up to a factor.
        factor: of this moment and block size.
        passes: of refining.
    """
    weight = weight.float()
    plain = encode_weight_rows(weight, tables, block_size)
    form = DialectBlocks(plain.scale, weight.shape[1], tables, block_size)
    before = output_error(_decode(plain, tables).sub_(weight), moment)
    values = refine(weight, compensate(weight, factor, form), moment, factor, form, passes)
    calibrated = form.rows(values)
    after = output_error(_decode(calibrated, tables).sub_(weight), moment)
    better = after < BETTER * before
    codes = torch.where(better.unsqueeze(1), calibrated.codes, plain.codes)
    meta = torch.where(better.unsqueeze(1), calibrated.meta, plain.meta)
    return CalibratedRows(EncodedRows(codes, meta, plain.scale), before, torch.where(better, after, before))


def _intermediate(lifted: torch.Tensor) -> torch.Tensor:
    """The 5-bit intermediate q, int64, of numbers in half-units."""
    return (lifted.abs() * 2).to(torch.int64).clamp_(max=Q_VALUES - 1)


def _decode(rows: EncodedRows, tables: DialectTables) -> torch.Tensor:
    return decode_rows(rows.codes, rows.meta, tables).mul_(rows.scale.unsqueeze(1))
