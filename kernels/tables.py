"""The lookup tables that every kernel takes as an argument (DESIGN 2.2). Built from a formatbook, never written here."""

from typing import NamedTuple

import torch

MAXIMA = 8  # a book's dialects have the maxima 15 down to 8; row i of a table over maxima belongs to 15 - i
Q_BITS = 5  # of the intermediate q
Q_VALUES = 1 << Q_BITS


class DialectTables(NamedTuple):
    """One formatbook as tensors on one device. D dialects = 8 maxima x S shapes, S <= 4, id = S * (15 - maximum) + shape.

    half_units    int16 [D, 8]   ascending magnitudes in half-units, 0..15
    indices       uint8 [D, 32]  q -> index of the nearest magnitude, ties to the larger
    errors        int16 [D, 32]  q -> (4 * magnitude - (2q + 1))^2, <= 961
    packed_errors int64 [8, 32]  (15 - maximum, q) -> the errors of that maximum's S shapes, shape s in bits 16s..16s+15:
                                 sums over a block of up to 64 elements cannot carry from one field into the next
    """

    half_units: torch.Tensor
    indices: torch.Tensor
    errors: torch.Tensor
    packed_errors: torch.Tensor

    @property
    def shapes(self) -> int:
        """S, the number of shapes that each maximum has."""
        return self.half_units.shape[0] // MAXIMA

    def to(self, device: torch.device | str) -> "DialectTables":
        return DialectTables(*(table.to(device) for table in self))


def build_tables(half_units: torch.Tensor) -> DialectTables:
    """Tables of the dialects `half_units`, integer [D, 8], as DESIGN 2.2 defines them."""
    hu = half_units.to(torch.int64)
    centre = 2 * torch.arange(Q_VALUES) + 1  # of q's bin, in quarters of a half-unit
    distance = (4 * hu[:, :, None] - centre).abs()  # [D, 8, 32]
    # The larger magnitude wins a tie; argmin returns the first, so it looks from the top down. A bin is narrower than the
    # distance between any two thresholds, hence deciding at its centre decides for the whole bin.
    index = 7 - distance.flip(1).argmin(dim=1)  # [D, 32]
    error = (4 * hu.gather(1, index) - centre) ** 2
    shapes = hu.shape[0] // MAXIMA
    fields = error.view(MAXIMA, shapes, Q_VALUES) << (16 * torch.arange(shapes)).view(1, shapes, 1)
    return DialectTables(hu.to(torch.int16), index.to(torch.uint8), error.to(torch.int16), fields.sum(1))
