"""The lookup tables that every kernel takes as an argument (docs/format.md). Built from a formatbook, never written here."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .lasting import made_to_last

MAXIMA = 8  # a book's dialects have the maxima 15 down to 8; row i of a table over maxima belongs to 15 - i
Q_BITS = 5  # of the intermediate q
Q_VALUES = 1 << Q_BITS
ERROR_BIAS = 961  # the largest error: makes every difference of two errors at least 0


class DialectTables(NamedTuple):
    """One formatbook as tensors on one device. D dialects = 8 maxima x S shapes, S <= 4, id = S * (15 - maximum) + shape.

    half_units    int16 [D, 8]   ascending magnitudes in half-units, 0..15
    indices       uint8 [D, 32]  q -> index of the nearest magnitude, ties to the larger
    errors        int16 [D, 32]  q -> (4 * magnitude - (2q + 1))^2, <= 961
    packed_errors int64 [8, 32]  (15 - maximum, q) -> the errors of that maximum's S shapes, shape s in bits 16s..16s+15:
                                 sums over a block of up to 64 elements cannot carry from one field into the next
    choices       int64 [8, 32]  the same for one load an element: error of shape s = 1, 2, 3 less that of shape 0, plus
                                 ERROR_BIAS, in bits 16(s-1)..16(s-1)+15 (a shape that is not there: 2 * ERROR_BIAS); in
                                 bits 48+4s..48+4s+3 shape s's magnitude. Sums over up to 34 elements cannot carry
    ladders       int32 [D]      a dialect's 8 magnitudes, number i in bits 4i..4i+3
    magnitudes    int32 [32, 4]  q -> the magnitudes that it takes, dialect d's in bits 4(d % 8).. of word d // 8
    """

    half_units: torch.Tensor
    indices: torch.Tensor
    errors: torch.Tensor
    packed_errors: torch.Tensor
    choices: torch.Tensor
    ladders: torch.Tensor
    magnitudes: torch.Tensor

    @property
    def shapes(self) -> int:
        """S, the number of shapes that each maximum has."""
        return self.half_units.shape[0] // MAXIMA

    @property
    def operands(self) -> list[torch.Tensor]:
        """The tables as operators take them; by numbers: torch.compile of 2.11 cannot walk through a constant."""
        return [self[number] for number in range(len(DialectTables._fields))]

    def to(self, device: torch.device | str) -> "DialectTables":
        return DialectTables(*(table.to(device) for table in self))


def build_tables(half_units: torch.Tensor) -> DialectTables:
    """Tables of the dialects `half_units`, integer [D, 8], as docs/format.md defines them."""
    hu = half_units.to(torch.int64)
    centre = 2 * torch.arange(Q_VALUES) + 1  # of q's bin, in quarters of a half-unit
    distance = (4 * hu[:, :, None] - centre).abs()  # [D, 8, 32]
    # The larger magnitude wins a tie; argmin returns the first, so it looks from the top down. A bin is narrower than the
    # distance between any two thresholds, hence deciding at its centre decides for the whole bin.
    index = 7 - distance.flip(1).argmin(dim=1)  # [D, 32]
    value = hu.gather(1, index)  # [D, 32]
    error = (4 * value - centre) ** 2
    shapes = hu.shape[0] // MAXIMA
    fields = error.view(MAXIMA, shapes, Q_VALUES) << (16 * torch.arange(shapes)).view(1, shapes, 1)
    return DialectTables(
        half_units=hu.to(torch.int16),
        indices=index.to(torch.uint8),
        errors=error.to(torch.int16),
        packed_errors=fields.sum(1),
        choices=_choices(value.view(MAXIMA, shapes, Q_VALUES), error.view(MAXIMA, shapes, Q_VALUES)),
        ladders=_nibbles(hu),
        magnitudes=_nibbles(torch.nn.functional.pad(value.T, (0, 32 - len(value))).view(Q_VALUES, 4, 8)),
    )


@made_to_last
def lasting_tables(half_units: Sequence[Sequence[int]], device: str) -> DialectTables:
    """The tables of dialects on a device, for keeping. Of plain numbers: torch.compile of 2.11 hands over nothing else."""
    return build_tables(torch.tensor(half_units, dtype=torch.int64)).to(device)


def _choices(value: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """`DialectTables.choices` of magnitudes and errors, int64 [8, S, 32] each."""
    packed = torch.zeros(MAXIMA, Q_VALUES, dtype=torch.int64)
    for shape in range(value.shape[1]):
        packed |= value[:, shape] << (48 + 4 * shape)  # of shape 3 into the sign bit
    for shape in range(1, 4):
        present = shape < error.shape[1]
        difference = error[:, shape] - error[:, 0] + ERROR_BIAS if present else torch.tensor(2 * ERROR_BIAS)
        packed |= difference << (16 * (shape - 1))
    return packed


def _nibbles(values: torch.Tensor) -> torch.Tensor:
    """Integers 0..15 [..., 8] as int32 [...], number i in bits 4i..4i+3."""
    packed = (values << (4 * torch.arange(8))).sum(-1)  # below 2^32
    return torch.where(packed < 1 << 31, packed, packed - (1 << 32)).to(torch.int32)
