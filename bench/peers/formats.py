"""Other number formats, emulated exactly from their public specifications, so that a table has something to stand beside.

A peer is a pair of functions from tensors to tensors of the same shape, one for weights and one for activations: float32 in,
what the format makes of it out. Blocks lie along the last dimension; a last block that is not full is filled with zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from ...kernels import reference
from ...kernels.tables import Q_VALUES
from ...sedialect_core.formatbook import Formatbook

Quantize = Callable[[torch.Tensor], torch.Tensor]
E2M1_MAX = 6.0
E2M1_EXPONENT = 2  # of its largest value
E4M3_MAX = reference.E4M3_MAX
INT4_MAX = 7
FOUR_OVER_SIX_SCALE = 256.0  # the largest scale of a block whose maximum becomes 6; 1.5 times as much is an E4M3 number, too
SMALLEST = 2.0**-126  # normal number; keeps divisions finite
# BlockDialect (arXiv 2501.01144 v5, section 3.2): in pair p = 15 - maximum, the 5-bit values q for which the even dialect is
# nearer, then those for which the odd one is. Pair 2 is published, the others follow from the same rule.
BENEFICIAL = (
    ((20, 26), (15, 20)),
    ((20, 25), (15, 20)),
    ((18, 23), (14, 18)),
    ((18, 22), (14, 18)),
    ((16, 20), (13, 16)),
    ((16, 19), (13, 16)),
    ((15, 17), (13, 15)),
    ((13, 15), (9, 11)),
)


@dataclass(frozen=True)
class Bits:
    """What a number costs: its own bits, `shared` ones a block of `block`, and `row` ones a row."""

    element: int
    shared: int = 0
    block: int = 1
    row: int = 0

    def per_element(self, width: int) -> float:
        """Effective bits of an element in rows of `width`."""
        return self.element + self.shared / self.block + self.row / width


@dataclass(frozen=True)
class Peer:
    """A format for weights and activations."""

    name: str
    weight: Quantize
    activation: Quantize
    bits: Bits


class PeerLinear(nn.Linear):
    """y = A(x) @ W(w).T + bias, both sides rounded by a peer, products in float32."""

    def __init__(
        self,
        linear: nn.Linear,
        peer: Peer,
        *,
        weight: torch.Tensor | None = None,
        weights_only: bool = False,
        smoothing: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            weight: [N, K], the weight as the peer would decode it, where it was encoded otherwise than by plain rounding.
            weights_only: leave the activations as they are.
            smoothing: [K], by which activations are divided and columns of the weight multiplied before they are rounded.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        plain = linear.weight.detach().float()
        if weight is None:
            weight = peer.weight(plain if smoothing is None else plain * smoothing)
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.activation: Quantize = torch.Tensor.float if weights_only else peer.activation
        self.smoothing = smoothing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] in x.dtype."""
        bias = None if self.bias is None else self.bias.float()
        read = x.float() if self.smoothing is None else x.float() / self.smoothing
        return functional.linear(self.activation(read), self.weight, bias).to(x.dtype)


def fp8_rows(x: torch.Tensor) -> torch.Tensor:
    """E4M3 under one float32 scale a row, the row's maximum / 448."""
    operand, scale = reference.e4m3_rows(x.reshape(-1, x.shape[-1]))
    return (operand * scale.unsqueeze(1)).view(x.shape)


def e2m1(x: torch.Tensor) -> torch.Tensor:
    """Round to FP4 E2M1, 0 .5 1 1.5 2 3 4 6 and their negatives: to the nearest, ties to even, saturating.

    OCP Microscaling Formats (MX) Specification v1.0, section 5.3.3.
    """
    _, exponent = torch.frexp(x)  # floor(log2) + 1
    step = torch.exp2((exponent - 2).clamp_min(-1).float())
    return (torch.round(x / step) * step).clamp(-E2M1_MAX, E2M1_MAX)


def mxfp4(x: torch.Tensor, block: int = 32) -> torch.Tensor:
    """MXFP4: E2M1 elements under a shared E8M0 scale, 2^(floor(log2(block maximum)) - 2).

    OCP Microscaling Formats (MX) Specification v1.0, sections 5.2 and 6.3. A block of zeros stays zeros.
    """
    blocks = _blocks(x, block)
    _, exponent = torch.frexp(blocks.abs().amax(-1, keepdim=True))
    scale = torch.exp2((exponent - 1 - E2M1_EXPONENT).clamp(-126, 127).float())
    return _joined(e2m1(blocks / scale) * scale, x)


def nvfp4(x: torch.Tensor, block: int = 16) -> torch.Tensor:
    """NVFP4: E2M1 elements under an E4M3 scale a block, maximum / 6, under a float32 tensor scale, maximum / (448 * 6).

    NVIDIA, "Introducing NVFP4" (2025) and the two-level recipe of cuDNN's and Transformer Engine's documentation. What has
    more than two dimensions is a batch: one tensor scale a sample, so that samples do not change each other.
    """
    blocks, tensor_scale = _blocks(x, block), _tensor_scale(x, E4M3_MAX)
    return _joined(_nvfp4_blocks(blocks, blocks.abs().amax(-1, keepdim=True) / E2M1_MAX, tensor_scale), x)


def four_over_six(x: torch.Tensor, block: int = 16) -> torch.Tensor:
    """NVFP4 in which a block's maximum becomes 6 or 4, whichever gives the block the smaller squared error; ties to 6.

    Between 4 and 6 E2M1 has nothing, and a block that ends at 4 has finer steps near its maximum. Scales end at 256 where
    the maximum becomes 6, which leaves room for those that are 1.5 times larger. Cook et al., arXiv 2512.02010.
    """
    blocks, tensor_scale = _blocks(x, block), _tensor_scale(x, FOUR_OVER_SIX_SCALE)
    top = blocks.abs().amax(-1, keepdim=True)
    six, four = (_nvfp4_blocks(blocks, top / end, tensor_scale) for end in (E2M1_MAX, 4.0))
    errors = [(rounded - blocks).square().sum(-1, keepdim=True) for rounded in (six, four)]
    return _joined(torch.where(errors[1] < errors[0], four, six), x)


def _tensor_scale(x: torch.Tensor, largest: float) -> torch.Tensor:
    """NVFP4's float32 scale of a tensor, or of each sample, so that block scales end at `largest`; shaped like blocks."""
    samples = x.reshape(x.shape[0] if x.ndim > 2 else 1, -1)
    top = samples.abs().amax(1).view(-1, *[1] * (x.ndim if x.ndim > 2 else 2))
    return (top / (largest * E2M1_MAX)).clamp_min(SMALLEST)


def _nvfp4_blocks(blocks: torch.Tensor, wanted: torch.Tensor, tensor_scale: torch.Tensor) -> torch.Tensor:
    """Blocks rounded under the E4M3 scales nearest to the wanted ones."""
    scale = (wanted / tensor_scale).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float() * tensor_scale
    return e2m1(blocks / scale.clamp_min(SMALLEST)) * scale


def int4(x: torch.Tensor, block: int = 64) -> torch.Tensor:
    """INT4, symmetric: integers -7..7 to the nearest, ties to even, under a bfloat16 scale a group, its maximum / 7."""
    blocks = _blocks(x, block)
    scale = (blocks.abs().amax(-1, keepdim=True) / INT4_MAX).clamp_min(SMALLEST).bfloat16().float()
    return _joined(torch.round(blocks / scale).clamp(-INT4_MAX, INT4_MAX) * scale, x)


def dialectfp4(x: torch.Tensor, block: int, select: str) -> torch.Tensor:
    """DialectFP4: the 16 published dialects under a shared exponent, floor(log2(block maximum)) - 2.

    BlockDialect, arXiv 2501.01144 v5, sections 3.1 to 3.3.

    Args:
        select: "two-stage", the published choice for activations; "exact", least squared error, the published one for
            weights; "table", least sum of the tabled errors of q, as this project chooses.
    """
    blocks = _blocks(x.float(), block)
    magnitude = blocks.abs()
    _, exponent = torch.frexp(magnitude.amax(-1, keepdim=True))
    unit = torch.exp2((exponent - 4).clamp_min(-126).float())  # half-units: 2^(SE - 1)
    lifted = magnitude / unit  # in [0, 16)
    q = (2 * lifted).long().clamp_(max=Q_VALUES - 1)
    tables = Formatbook.builtin("dialectfp4-16").tables(x.device)
    value = tables.half_units.gather(1, tables.indices.long()).float()  # [16, 32]
    if select == "two-stage":
        dialect = _two_stage(q)
    else:
        weights = tables.errors.float() if select == "table" else value.square()
        cost = _sums(q, torch.ones_like(lifted)) @ weights.T
        if select == "exact":
            cost -= 2 * _sums(q, lifted) @ value.T
        dialect = cost.argmin(-1, keepdim=True)
    return _joined(torch.copysign(value[dialect, q] * unit, blocks), x)


def _two_stage(q: torch.Tensor) -> torch.Tensor:
    """Pair by the block's maximum, then the dialect with more elements where it is nearer; ties to the odd one."""
    pair = 15 - ((q.amax(-1, keepdim=True) + 1) >> 1).clamp(8, 15)
    ranges = torch.tensor(BENEFICIAL, device=q.device)[pair]  # [..., 1, 2, 2]
    even, odd = (((q >= ranges[..., i, 0]) & (q < ranges[..., i, 1])).sum(-1, keepdim=True) for i in (0, 1))
    return 2 * pair + (odd >= even)


def _sums(q: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over the elements of each block that have each q, [..., 32]."""
    return values.new_zeros(*q.shape[:-1], Q_VALUES).scatter_add_(-1, q, values)


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    return functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))


def _joined(blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return blocks.flatten(-2)[..., : like.shape[-1]]


def _dialect_peer(block: int, select: str) -> Peer:
    exact = partial(dialectfp4, block=block, select="exact")
    chosen = partial(dialectfp4, block=block, select=select)
    return Peer(f"DialectFP4-16 B={block}, {select}", exact, chosen, Bits(4, 9, block))


FP8_ROWS = Peer("FP8 rows", fp8_rows, fp8_rows, Bits(8, row=32))
MXFP4 = Peer("MXFP4-32", mxfp4, mxfp4, Bits(4, 8, 32))
NVFP4 = Peer("NVFP4-16", nvfp4, nvfp4, Bits(4, 8, 16))
FOUR_OVER_SIX = Peer("NVFP4-16, 4/6", four_over_six, four_over_six, Bits(4, 8, 16))
INT4 = Peer("INT4-g64", int4, int4, Bits(4, 16, 64))
DIALECTFP4 = tuple(_dialect_peer(block, select) for block in (16, 32) for select in ("two-stage", "table"))
PEERS = (FP8_ROWS, MXFP4, NVFP4, FOUR_OVER_SIX, INT4, *DIALECTFP4)
