"""Which tokens are worth a second term (docs/semantics.md): scores from the layer's own input alone, and the choice."""

import math
from dataclasses import dataclass

import torch

from ...kernels import ops
from ...kernels.tables import DialectTables
from ...kernels.transform import UNCHANGED, InputTransform, transform_rows

MULTIPLIER = 2654435761  # Knuth's, for spreading bits
MASK = (1 << 31) - 1


@dataclass(frozen=True)
class Encoding:
    """How the layers that read an input encode it."""

    block_size: int
    candidates: str


def row_norm(x: torch.Tensor) -> torch.Tensor:
    """Norm of each token's input, float32 [...], of x [..., K]."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)


def encoding_error(
    x: torch.Tensor, tables: DialectTables, encoding: Encoding, transform: InputTransform = UNCHANGED
) -> torch.Tensor:
    """Squared error of each token's encoded input, |x - Q(x)|^2 with x transformed, float32 [...], of x [..., K]."""
    rows = x.detach().reshape(-1, x.shape[-1])  # a choice of tokens has no gradient
    operand, scale = ops.encode(rows, tables.operands, encoding.block_size, 4, encoding.candidates, transform=transform)
    residual = transform_rows(rows, transform).float() - operand.float() * scale.unsqueeze(1)
    return residual.square().sum(1).view(x.shape[:-1])


def chance(x: torch.Tensor) -> torch.Tensor:
    """A number for each token, float32 [...], that says nothing about it: the hashed low bits of its norm. The same input
    gives the same numbers, and no random generator is touched."""
    bits = row_norm(x).view(torch.int32).long()
    return ((bits * MULTIPLIER) & MASK).float()


def salient_count(ratio: float, tokens: int) -> int:
    """k = ceil(ratio * tokens), at most all of them, since no ratio exceeds 1. `tokens` may be symbolic; torch.sym_min and
    min would break the graph or fix its size."""
    return math.ceil(ratio * tokens)


def top_tokens(score: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` tokens of the largest score in each sample, int64 [B, count], of scores [B, N]."""
    return score.topk(count, dim=1, sorted=False).indices
