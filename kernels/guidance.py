"""What a kernel is told about the rows of one input."""

from typing import NamedTuple

import torch


class RowGuidance(NamedTuple):
    """What is done for single rows of x [M, K]; None where nothing is.

    salient    int32 [E], rows whose residual x - Q(x) is encoded as well, as further rows; -1 for none, a row of zeros
    group      int32 [M], the group of each row, -1 for none; with `choice`, for 4 bits
    choice     uint8 [G, K/B], a bit for each shape that a group may take in a block, or `reference.SHARED_DIALECT` plus the
               dialect that it takes
    protected  bool [1]; where it holds True when the kernel runs, 4 bits count as 8: a protected step
    """

    salient: torch.Tensor | None = None
    group: torch.Tensor | None = None
    choice: torch.Tensor | None = None
    protected: torch.Tensor | None = None


UNGUIDED = RowGuidance()
