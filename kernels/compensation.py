"""Weights rounded so that the errors cancel in the layer's output: GPTQ (arXiv 2210.17323) for block formats.

A weight row w meets inputs with the second moment H = X^T X, so rounding it to v costs (w - v) H (w - v)^T. Columns are
rounded one after another; what a column loses is carried on to the columns that are still to come, which are then rounded in
their turn. Afterwards, with the blocks' parameters as they are by then, columns are gone through again: each is rounded anew
to what suits all the others best. The loops below know no number format: a `BlockFormat` chooses the parameters of a block
when its turn comes, on the weights as they are by then, and rounds single columns.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

GROUP = 128  # columns whose errors are carried on to all later ones in one product; a multiple of every block size
# Of the mean of the moment's diagonal, added to it. The 1 % of GPTQ fits few prompts better, and others worse.
DAMPING = 0.03
DAMPING_STEP = 10.0
DAMPING_LIMIT = 1e6  # a moment that does not factor with this much has no numbers to work with
REFINING = 2  # times that all columns are gone through again: the first brings most, a third next to nothing
ROWS = 1024  # of a weight that are looked at together in float64


class BlockFormat(Protocol):
    """A number format as the loop sees it. Weights are transposed here: a column of the layer is contiguous, [N]."""

    block_size: int

    def choose(self, block: int, weight: torch.Tensor, upper: torch.Tensor) -> None:
        """Decide the parameters of the block number `block`.

        Args:
            weight: float32 [B, N], its columns in the order in which they will be rounded.
            upper: float32 [B, B], the factor's rows and columns that belong to them.
        """

    def resume(self, block: int) -> None:
        """Go back to the parameters that were decided for a block."""

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Values, float32 [N], of a column [N] of the block that was chosen or resumed last."""


@dataclass(frozen=True)
class Factor:
    """What the loop needs of a moment.

    upper    float32 [K, K], upper triangular U with U^T U = (H + damping)^-1 up to a factor, columns in the order of `order`
    order    int64 [K]: the columns in the order in which they are rounded; blocks of the storage stay together
    damping  what was added to the diagonal, as a part of its mean
    """

    upper: torch.Tensor
    order: torch.Tensor
    damping: float


def factorize(moment: torch.Tensor, block_size: int, damping: float = DAMPING) -> Factor | None:
    """The factor of a moment X^T X [K, K]; None where it is of no use: not finite, or zero throughout.

    Damping is raised until the factorization succeeds, which for a finite symmetric matrix it does in the end. Blocks with
    more energy are rounded earlier, and within a block columns with more energy: then more columns are left to take up
    what they lose (GPTQ's "act-order", within the bounds of the storage).
    """
    energy = moment.diagonal().double()
    mean = float(energy.mean())
    if not 0 < mean < float("inf") or bool((energy < 0).any()) or not bool(moment.isfinite().all()):
        return None
    order = rounding_order(energy, block_size)
    # With the columns reversed, H = L L^T becomes H = R R^T, R upper: its inverse is U.
    backwards = order.flip(0)
    reversed_moment = _relative(moment, backwards)
    diagonal = reversed_moment.diagonal()
    original = diagonal.clone()
    while damping <= DAMPING_LIMIT:
        torch.add(original, damping, out=diagonal)
        lower, failed = torch.linalg.cholesky_ex(reversed_moment)
        if not int(failed):
            unit = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            upper = torch.linalg.solve_triangular(lower, unit, upper=False).flip(0, 1).float()
            if bool(upper.isfinite().all()):
                return Factor(upper, order, damping)
        damping *= DAMPING_STEP
    return None


def rounding_order(energy: torch.Tensor, block_size: int) -> torch.Tensor:
    """Columns, int64 [K], by falling energy [K]: whole blocks first, then within each block; equals stay as they stand."""
    blocks = energy.view(-1, block_size)
    outer = blocks.sum(1).argsort(descending=True, stable=True)
    inner = blocks.argsort(dim=1, descending=True, stable=True)[outer]
    return (outer.unsqueeze(1) * block_size + inner).flatten()


def compensate(weight: torch.Tensor, factor: Factor, form: BlockFormat) -> torch.Tensor:
    """Round a weight [N, K] in `form`, column by column, carrying the errors on: values, float32 [N, K]."""
    size, upper = form.block_size, factor.upper
    left = weight.float().T[factor.order].contiguous()  # [K, N]: what is still to be rounded
    columns, roots = factor.order.tolist(), upper.diagonal().tolist()
    values = torch.empty_like(left)
    for start in range(0, len(left), GROUP):
        stop = min(start + GROUP, len(left))
        lost = torch.empty_like(left[start:stop])
        for low in range(start, stop, size):
            high = low + size
            block, triangle = left[low:high], upper[low:high, low:high]
            form.choose(columns[low] // size, block, triangle)
            for i, column in enumerate(range(low, high)):
                values[column] = rounded = form.quantize(block[i])
                lost[column - start] = error = torch.sub(block[i], rounded).div_(roots[column])
                block[i + 1 :].addr_(triangle[i, i + 1 :], error, alpha=-1)
            left[high:stop].addmm_(upper[low:high, high:stop].T, lost[low - start : high - start], alpha=-1)
        left[stop:].addmm_(upper[start:stop, stop:].T, lost, alpha=-1)
    return torch.empty_like(values).index_copy_(0, factor.order, values).T


def refine(
    weight: torch.Tensor,
    values: torch.Tensor,
    moment: torch.Tensor,
    factor: Factor,
    form: BlockFormat,
    passes: int = REFINING,
) -> torch.Tensor:
    """Coordinate descent from what `compensate` gave: values, float32 [N, K].

    Column by column, in the factor's order, a weight is rounded anew to where the error is least while all others stay, if
    that is nearer than where it is. So no pass makes the damped error larger.

    Args:
        weight, moment: as `compensate` and `factorize` had them.
        form: with the blocks' parameters, as `compensate` left it.
    """
    order = factor.order
    curve = _relative(moment, order)
    curve.diagonal().add_(factor.damping)
    curve = curve.float()
    wanted, now = (part.float().T[order].contiguous() for part in (weight, values))
    gradient = curve @ (now - wanted)
    columns, slopes = order.tolist(), curve.diagonal().tolist()
    for start in list(range(0, len(now), GROUP)) * passes:
        stop = min(start + GROUP, len(now))
        before, near, within = now[start:stop].clone(), gradient[start:stop], curve[start:stop, start:stop]
        for column in range(start, stop):
            if column % form.block_size == 0:
                form.resume(columns[column] // form.block_size)
            best = torch.sub(now[column], near[column - start], alpha=1 / slopes[column])
            rounded = form.quantize(best)
            nearer = (rounded - best).abs_() < (now[column] - best).abs_()
            step = torch.sub(rounded, now[column]).mul_(nearer)
            now[column] += step
            near.addr_(within[:, column - start], step)
        moved = now[start:stop] - before
        for low, high in ((0, start), (stop, len(now))):
            gradient[low:high].addmm_(curve[low:high, start:stop], moved)
    return torch.empty_like(now).index_copy_(0, order, now).T


def _relative(moment: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A moment by the mean of its diagonal, float64, its columns in an order."""
    moment = moment.double()
    return moment[order][:, order].div_(moment.diagonal().mean())


def output_error(lost: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Squared error of a layer's output over the rows that the moment is of, float64 [N]: e H e^T for rows e of [N, K]."""
    moment = moment.double()
    parts = (part.double() for part in lost.split(ROWS))
    return torch.cat([((part @ moment) * part).sum(1) for part in parts])
