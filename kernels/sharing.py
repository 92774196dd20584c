"""Sub-formatbooks of groups: the choice that DESIGN 2.5 makes for each (group, channel block)."""

import torch

from . import reference
from .tables import Q_BITS, DialectTables

FIELD_BITS = 16  # of one shape's error in a packed table entry
QUARTERS = 16.0  # the tables count squared quarters of a half-unit


def shape_errors(x: torch.Tensor, tables: DialectTables, block_size: int) -> torch.Tensor:
    """Squared error of every block of x [M, K] under each shape of its nearest maximum, float32 [M, K/B, S].

    By the error tables, as activations choose; in units of x, so that blocks of different rows can be added.
    """
    scale = reference.activation_scale(x)
    magnitude, _ = reference._normalise(x, scale, block_size)
    delta, q = reference._intermediate(magnitude, reference.ACTIVATION_DELTA)
    row = reference._row_of_maximum(q)
    sums = tables.packed_errors.view(-1)[q + (row << Q_BITS).unsqueeze(2)].sum(2)
    shifts = FIELD_BITS * torch.arange(tables.shapes, device=x.device)
    errors = ((sums.unsqueeze(2) >> shifts) & ((1 << FIELD_BITS) - 1)).float()
    unit = scale.nan_to_num(0.0).unsqueeze(1) * reference._power_of_two(-delta)
    return errors * (unit.square() / QUARTERS).unsqueeze(2)


def book_errors(errors: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """Least error of each block inside each sub-formatbook, [M, K/B, P].

    Args:
        errors: [M, K/B, S], as `shape_errors` gives them; books: uint8 [P], the shapes of each sub-formatbook as bits.
    """
    shapes = torch.arange(errors.shape[2], dtype=torch.uint8, device=errors.device)
    refused = (books.unsqueeze(1) >> shapes) & 1 == 0  # [P, S]
    return errors.unsqueeze(2).masked_fill(refused, torch.inf).amin(3)


def choose_books(
    x: torch.Tensor,
    group: torch.Tensor,
    groups: int,
    tables: DialectTables,
    block_size: int,
    books: torch.Tensor,
) -> torch.Tensor:
    """What each group takes in each channel block, uint8 [groups, K/B]: the sub-formatbook, as bits of its shapes, whose
    least errors add up to the least over the group; the first on ties, and for a group without rows.

    Args:
        x: [M, K]; group: integer [M], 0..groups-1, -1 for rows in none; books: uint8 [P], as of `book_errors`.
    """
    rows = (group >= 0).nonzero().squeeze(1)
    cost = torch.zeros(groups, x.shape[1] // block_size, len(books), dtype=torch.float32, device=x.device)
    step = max(1, reference.CHUNK_ELEMENTS.get(x.device.type, reference.GPU_CHUNK_ELEMENTS) // x.shape[1])
    for some in rows.split(step):
        errors = book_errors(shape_errors(x[some], tables, block_size), books)
        cost.index_add_(0, group[some].long(), errors)
    return books[cost.argmin(2)]
