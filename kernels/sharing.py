"""What groups share: the sub-formatbook, or the dialect, that each (group, channel block) takes: docs/semantics.md."""

from collections.abc import Callable

import torch

from . import reference
from .tables import Q_BITS, Q_VALUES, DialectTables

FIELD_BITS = 16  # of one shape's error in a packed table entry
ELEMENT_BYTES = 48  # of temporaries for an element that is looked at
Sum = Callable[[torch.Tensor], torch.Tensor]
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
    elements: int,
    everywhere: Sum | None = None,
) -> torch.Tensor:
    """What each group takes in each channel block, uint8 [groups, K/B]: the sub-formatbook, as bits of its shapes, whose
    least errors add up to the least over the group; the first on ties, and for a group without rows.

    Args:
        x: [M, K]; group: integer [M], 0..groups-1, -1 for rows in none; books: uint8 [P], as of `book_errors`.
        elements: of x that are looked at together; each takes some ELEMENT_BYTES.
        everywhere: adds up what several processes have, where each has a part of the rows.
    """
    rows = (group >= 0).nonzero().squeeze(1)
    cost = torch.zeros(groups, x.shape[1] // block_size, len(books), dtype=torch.float32, device=x.device)
    for some in rows.split(max(1, elements // x.shape[1])):
        errors = book_errors(shape_errors(x[some], tables, block_size), books)
        cost.index_add_(0, group[some].long(), errors)
    return books[(cost if everywhere is None else everywhere(cost)).argmin(2)]


def choose_dialects(
    x: torch.Tensor,
    group: torch.Tensor,
    groups: int,
    tables: DialectTables,
    block_size: int,
    elements: int,
    everywhere: Sum | None = None,
) -> torch.Tensor:
    """The dialect that each group takes in each channel block, uint8 [groups, K/B] with SHARED_DIALECT: of all in the book
    the one whose errors add up to the least over the group; the first on ties, and for a group without rows.

    Arguments as of `choose_books`.
    """
    rows = (group >= 0).nonzero().squeeze(1)
    choice = torch.empty(groups, x.shape[1] // block_size, dtype=torch.uint8, device=x.device)
    dialects = tables.half_units.shape[0]
    scale = torch.cat([reference.activation_scale(x[some]) for some in rows.split(max(1, elements // x.shape[1]))])
    blocks = max(1, elements // (groups * dialects))  # at a time, for the costs of all groups and dialects take room
    for start in range(0, choice.shape[1], blocks):
        part = x[:, start * block_size : (start + blocks) * block_size]
        cost = torch.zeros(groups, part.shape[1] // block_size, dialects, dtype=torch.float32, device=x.device)
        step = max(1, elements // part.shape[1])
        for some, scales in zip(rows.split(step), scale.split(step), strict=True):
            cost.index_add_(0, group[some].long(), dialect_errors(part[some], scales, tables, block_size))
        cost = cost if everywhere is None else everywhere(cost)
        choice[:, start : start + blocks] = cost.argmin(2) + reference.SHARED_DIALECT
    return choice


def dialect_errors(x: torch.Tensor, scale: torch.Tensor, tables: DialectTables, block_size: int) -> torch.Tensor:
    """Squared error of every block of x [M, K] under each dialect, float32 [M, K/B, D], by the tables and in units of x.

    Args:
        scale: float32 [M], of the rows.
    """
    magnitude, _ = reference._normalise(x, scale, block_size)
    delta, q = reference._intermediate(magnitude, reference.ACTIVATION_DELTA)
    histogram = torch.zeros(*q.shape[:2], Q_VALUES, dtype=torch.float32, device=x.device)
    histogram.scatter_add_(2, q, torch.ones_like(magnitude))
    unit = scale.nan_to_num(0.0).unsqueeze(1) * reference._power_of_two(-delta)
    return (histogram @ tables.errors.float().T) * (unit.square() / QUARTERS).unsqueeze(2)
