"""Fitting the shapes of a formatbook to blocks. Pure numerics: histograms in, magnitudes out.

Every block may only choose among the shapes of its own maximum, so the eight maxima are eight problems of their own: find S
shapes such that the sum of each block's error under its best shape is least. Two steps alternate, and neither can raise the
sum: each block takes its best shape, by the very tables that the encoder sums up; and each shape becomes the best possible
one for the blocks that took it, found exactly (`optimal_magnitudes`). That ends in a local optimum. So it is started several
times, and the best end is improved by exchange: one shape at a time for the best of all possible ones beside the others.

All-dialect selection, as weights have it, is not modelled: shapes that are better for the blocks of their own maximum are
what that selection finds first, and it can only lower the error further.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from ...kernels.tables import Q_VALUES
from .blocks import Blocks, BlockSample, join
from .book import MAGNITUDES, MAXIMA, Dialect, Formatbook

RESTARTS = 4
TRIAL_BLOCKS = 8192  # on which restarts and exchanges are tried; only the best is refined on all blocks
ROUNDS = 100  # of the alternation; it ends by itself after 10 to 40
_GRID = MAXIMA[0] + 1  # magnitudes 0..15
_CENTRES = 2 * torch.arange(Q_VALUES) + 1  # of q's bin, in quarters of a half-unit


@dataclass(frozen=True)
class Fitted:
    """A book, and for each maximum (15 first) the error under the start and under it of the blocks it was fitted to."""

    book: Formatbook
    before: tuple[float, ...]
    after: tuple[float, ...]


def fit_book(
    samples: Sequence[BlockSample],
    start: Formatbook,
    *,
    name: str,
    description: str = "",
    seed: int = 0,
    restarts: int = RESTARTS,
    on_maximum: Callable[[int], None] = lambda maximum: None,
) -> Fitted:
    """The shapes with the least weighted error on the samples' blocks: never more than the start has.

    Args:
        samples: of activations, of weights; their weights say how much each block's error counts.
        start: gives the number of shapes, the sub-formatbooks, and the shapes of a maximum that no block has.
        restarts: how many random starts are tried beside `start`, for each maximum.
        on_maximum: called with each maximum that is done.
    """
    given = start.half_units.view(len(MAXIMA), start.shapes, MAGNITUDES)
    random = torch.Generator().manual_seed(seed)
    dialects, before, after = [], [], []
    for row, maximum in enumerate(MAXIMA):
        blocks = join(list(samples), maximum)
        shapes = fit_shapes(blocks, given[row], random, restarts)
        dialects += [_dialect(shape, start) for shape in in_order(shapes.tolist())]
        before.append(total_error(blocks, given[row]))
        after.append(total_error(blocks, shapes))
        on_maximum(maximum)
    book = Formatbook(name, tuple(dialects), start.sub_formatbooks, description)
    return Fitted(book, tuple(before), tuple(after))


def fit_shapes(blocks: Blocks, start: torch.Tensor, random: torch.Generator, restarts: int = RESTARTS) -> torch.Tensor:
    """S shapes, int64 [S, 8], all with the maximum of `start` [S, 8], whose error on the blocks is least of all tries."""
    if not len(blocks.weights):
        return start
    some = _subset(blocks, TRIAL_BLOCKS, random)
    starts = [start, *(random_shapes(some, start, random) for _ in range(restarts))]
    best = min((refine(some, shapes) for shapes in starts), key=lambda shapes: total_error(some, shapes))
    finals = [refine(blocks, start), refine(blocks, exchange(some, best))]
    return min(finals, key=lambda shapes: total_error(blocks, shapes))  # the first on ties: the start's


def refine(blocks: Blocks, shapes: torch.Tensor) -> torch.Tensor:
    """Alternate from `shapes` [S, 8] until the error stands still. A shape that no block takes stays as it is."""
    counts = blocks.histograms.float()
    weighted = blocks.histograms.double() * blocks.weights.unsqueeze(1)
    best, least = shapes, torch.inf
    for _ in range(ROUNDS):
        cost, taken = (counts @ error_rows(shapes).T).min(1)  # integers below 2^24: exact in float32
        error = float(cost.double() @ blocks.weights)
        if error >= least:  # equal but for rounding: nothing has moved
            break
        least, best = error, shapes
        histograms = torch.zeros(len(shapes), Q_VALUES, dtype=torch.float64).index_add_(0, taken, weighted)
        better = optimal_magnitudes(histograms, int(shapes[0, -1]))
        shapes = torch.where(histograms.sum(1, keepdim=True) > 0, better, shapes)
    return best


def exchange(blocks: Blocks, shapes: torch.Tensor) -> torch.Tensor:
    """Replace one shape of `shapes` [S, 8] at a time by the best possible one beside the others, until none is better.

    Looks at every shape of this maximum for every block: for few blocks, 12 kB each at most.
    """
    maximum = int(shapes[0, -1])
    possible = torch.tensor([(0, *inner, maximum) for inner in combinations(range(1, maximum), MAGNITUDES - 2)])
    counts, weights = blocks.histograms.float(), blocks.weights.float()
    costs = error_rows(possible) @ counts.T  # [possible, n]
    shapes, least, since = shapes.clone(), total_error(blocks, shapes), 0
    while since < len(shapes):  # exchanges in vain, one after the other
        others, kept = shapes[1:], shapes[:1]
        bound = (counts @ error_rows(others).T).amin(1) if len(others) else torch.full_like(weights, torch.inf)
        found = possible[(torch.minimum(costs, bound) @ weights).argmin()].unsqueeze(0)
        error = total_error(blocks, torch.cat([others, found]))
        since = 0 if error < least else since + 1
        least, kept = (error, found) if error < least else (least, kept)
        shapes = torch.cat([others, kept])  # the next one comes to the front
    return shapes


def optimal_magnitudes(histograms: torch.Tensor, maximum: int) -> torch.Tensor:
    """The shape with the least error for each histogram of q: int64 [G, 8], ascending, first 0, last `maximum`.

    Exact, by dynamic programming over the magnitudes 0..15: what a q costs depends only on the two chosen magnitudes that it
    lies between. What lies above the maximum costs the same whatever is chosen.

    Args:
        histograms: float64 [G, 32], weights of each q.
    """
    groups = len(histograms)
    between = (histograms @ _BETWEEN.view(-1, Q_VALUES).T).view(groups, _GRID, _GRID) + _ASCENDING
    cost = torch.full((groups, _GRID), torch.inf, dtype=torch.float64)
    cost[:, 0] = 0
    steps = []
    for _ in range(MAGNITUDES - 1):
        cost, before = (cost.unsqueeze(2) + between).min(1)
        steps.append(before)
    path = [torch.full((groups,), maximum)]
    for before in reversed(steps):
        path.append(before.gather(1, path[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(path[::-1], dim=1)


def error_rows(shapes: torch.Tensor) -> torch.Tensor:
    """The encoder's error tables of shapes [S, 8], float32 [S, 32]: distance squared of q's centre to the nearest."""
    return (4 * shapes.unsqueeze(2) - _CENTRES).square().amin(1).float()


def total_error(blocks: Blocks, shapes: torch.Tensor) -> float:
    """Weighted error of the blocks, each under its best shape."""
    cost = (blocks.histograms.float() @ error_rows(shapes).T).amin(1)
    return float(cost.double() @ blocks.weights)


def random_shapes(blocks: Blocks, like: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """As many shapes as `like` [S, 8] has, each best for one block drawn at random and, a little, for all of them."""
    drawn = torch.randint(len(blocks.weights), (len(like),), generator=random)
    one = blocks.histograms[drawn].double()
    everything = blocks.histograms.sum(0, dtype=torch.float64)
    return optimal_magnitudes(one + everything * (0.1 * one.sum(1, keepdim=True) / everything.sum()), int(like[0, -1]))


def in_order(shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Shapes from dense to sparse top: by how far up their magnitudes stand on the whole, then by the topmost that differ.

    The built-in books stand in this order, so that sub-formatbooks, which are sets of neighbours in it, keep their meaning.
    """
    return sorted((tuple(shape) for shape in shapes), key=lambda shape: (sum(shape), shape[::-1]), reverse=True)


def _dialect(shape: tuple[int, ...], start: Formatbook) -> Dialect:
    """A dialect that keeps the mark of the paper where the start has one."""
    return Dialect(shape, published=any(d.published and d.half_units == shape for d in start.dialects))


def _subset(blocks: Blocks, limit: int, random: torch.Generator) -> Blocks:
    if len(blocks.weights) <= limit:
        return blocks
    chosen = torch.randperm(len(blocks.weights), generator=random)[:limit]
    return Blocks(blocks.histograms[chosen], blocks.weights[chosen])


def _between() -> torch.Tensor:
    """[16, 16, 32]: what q costs if it lies between neighbouring magnitudes (low, high); 0 where it lies elsewhere."""
    low, high = (4 * torch.arange(_GRID).view(shape) for shape in ((-1, 1, 1), (1, -1, 1)))
    inside = (low < _CENTRES) & (high > _CENTRES)
    return torch.minimum((_CENTRES - low).square(), (high - _CENTRES).square()).mul(inside).double()


_BETWEEN = _between()
_ASCENDING = torch.zeros(_GRID, _GRID, dtype=torch.float64).masked_fill_(torch.ones(_GRID, _GRID).tril().bool(), torch.inf)
