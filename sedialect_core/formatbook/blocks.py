"""Blocks as statistics: how often each 5-bit value stands in a block. What formatbooks are fitted to.

The order of a block's elements does not matter to its error, nor do the signs; so a block is a histogram of 32 counts.
Blocks are kept apart by the maximum whose shapes they may choose from, and each maximum keeps a uniform sample of bounded
size.
"""

from typing import NamedTuple

import torch

from ...kernels.tables import MAXIMA, Q_VALUES

HIGHEST = 15  # the largest maximum, in half-units
PARTS = 64  # that are put together at once


class Blocks(NamedTuple):
    """Blocks that choose among the shapes of one maximum.

    histograms  uint8 [n, 32]   how many of a block's elements have each q
    weights     float64 [n]     how much a block's error counts
    """

    histograms: torch.Tensor
    weights: torch.Tensor


class BlockSample:
    """A sample of blocks, at most `limit` for each of the eight maxima, whatever is added.

    Each block seen is kept with the same probability; the weights of those kept stand for those that were let go, and are
    divided by the number of tensors shown: a sample is the mean of its tensors, and two samples joined count alike, however
    many tensors each has. The same blocks in the same order with the same seed give the same sample.

    Args:
        limit: blocks kept for each maximum; one takes 48 bytes, and while blocks are added twice as many may be there.
    """

    def __init__(self, limit: int = 1 << 15, seed: int = 0) -> None:
        self.limit = limit
        self.seen = [0] * MAXIMA
        self.tensors = 0
        self._random = torch.Generator().manual_seed(seed)
        self._kept = [[_Kept.empty()] for _ in range(MAXIMA)]  # in parts, put together when they are twice too many

    def add(self, q: torch.Tensor, weights: torch.Tensor) -> None:
        """Show the blocks of one tensor to the sample.

        Args:
            q: 5-bit values 0..31, any integer type, [n, B]. Blocks of zeros are passed over: no shape changes their error.
            weights: how much each block's error counts, [n].
        """
        self.tensors += 1
        q, weights = q.cpu(), weights.double().cpu()
        top = q.amax(dim=1)
        maximum = ((top + 1) >> 1).clamp(HIGHEST + 1 - MAXIMA, HIGHEST)
        for row in range(MAXIMA):
            chosen = ((maximum == HIGHEST - row) & (top > 0)).nonzero().squeeze(1)
            self.seen[row] += len(chosen)
            keys = torch.rand(len(chosen), generator=self._random, dtype=torch.float64)
            whole, *parts = self._kept[row]
            if len(whole.keys) == self.limit:  # full: only what has a larger key than the least can come in
                better = keys > whole.keys.min()
                chosen, keys = chosen[better], keys[better]
            if len(chosen):
                self._kept[row].append(_Kept(_histograms(q[chosen]), weights[chosen], keys))
                if len(parts) >= PARTS or sum(len(part.keys) for part in parts) > self.limit:
                    self._compact(row)

    def blocks(self, maximum: int) -> Blocks:
        """The blocks kept for `maximum`, 15..8, weighted to stand for all that were seen."""
        row = HIGHEST - maximum
        kept = self._compact(row)
        return Blocks(kept.histograms, kept.weights * (self.seen[row] / max(1, len(kept.keys)) / max(1, self.tensors)))

    @property
    def kept(self) -> int:
        """How many blocks the sample is made of."""
        return sum(len(self._compact(row).keys) for row in range(MAXIMA))

    def _compact(self, row: int) -> "_Kept":
        if len(self._kept[row]) > 1:
            whole = [torch.cat(parts) for parts in zip(*self._kept[row], strict=True)]
            if len(whole[2]) > self.limit:
                best = whole[2].topk(self.limit).indices.sort().values
                whole = [part[best] for part in whole]
            self._kept[row] = [_Kept(*whole)]
        return self._kept[row][0]


def join(samples: list[BlockSample], maximum: int) -> Blocks:
    """The blocks of several samples for one maximum."""
    parts = [sample.blocks(maximum) for sample in samples]
    return Blocks(torch.cat([p.histograms for p in parts]), torch.cat([p.weights for p in parts]))


class _Kept(NamedTuple):
    """The blocks with the largest of random keys, which makes them a uniform sample of all that ever had one."""

    histograms: torch.Tensor
    weights: torch.Tensor
    keys: torch.Tensor

    @classmethod
    def empty(cls) -> "_Kept":
        number = torch.empty(0, dtype=torch.float64)
        return cls(torch.empty(0, Q_VALUES, dtype=torch.uint8), number, number)


def _histograms(q: torch.Tensor) -> torch.Tensor:
    """Counts uint8 [n, 32] of blocks [n, B], B < 256."""
    place = q + Q_VALUES * torch.arange(len(q)).unsqueeze(1)
    return place.view(-1).bincount(minlength=len(q) * Q_VALUES).view(-1, Q_VALUES).to(torch.uint8)
