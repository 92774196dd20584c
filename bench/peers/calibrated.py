"""Peers' weights rounded by the same compensating loop as ours, so that a comparison of formats is one of formats."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from ...kernels.compensation import DAMPING, compensate, factorize, output_error, refine
from ...kernels.rotation import rotate_moment, rotate_rows
from ...sedialect_core.errors import InputError
from ...sedialect_core.quantize.weights import InputStatistics
from .formats import (
    E2M1_EXPONENT,
    E2M1_MAX,
    E4M3_MAX,
    FOUR_OVER_SIX,
    FOUR_OVER_SIX_SCALE,
    INT4,
    INT4_MAX,
    MXFP4,
    NVFP4,
    SMALLEST,
    Peer,
    e2m1,
)

# Block maxima tried, as parts of the true one: our dialects are chosen among 32, so their scales are chosen, too.
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


class ScaledBlocks:
    """A format of blocks with one scale each, as a `BlockFormat`; of several scales, the block's weighted error decides."""

    def __init__(
        self,
        block_size: int,
        scale_of: Callable[[torch.Tensor], torch.Tensor],
        round_to: Callable[[torch.Tensor], torch.Tensor],
        shrinks: tuple[float, ...] = SHRINKS,
    ) -> None:
        """
        Args:
            scale_of: scales, of any shape, from block maxima.
            round_to: the nearest values of the format to numbers in units of the scale.
        """
        self.block_size, self.scale_of, self.round_to = block_size, scale_of, round_to
        self.shrinks = shrinks
        self.scales: dict[int, torch.Tensor] = {}
        self.scale = torch.empty(0)  # of the block that was chosen or resumed last

    def choose(self, block: int, weight: torch.Tensor, upper: torch.Tensor) -> None:
        """Take the scale by which the block's columns, rounded one after another, lose least."""
        parts = torch.tensor(self.shrinks, device=weight.device)
        scales = self.scale_of(weight.abs().amax(0).unsqueeze(1) * parts)
        left = weight.unsqueeze(2).repeat(1, 1, len(parts))
        loss = torch.zeros_like(scales)
        for i, column in enumerate(left):
            lost = (column - self.round_to(column / scales) * scales) / upper[i, i]
            loss += lost.square()
            left[i + 1 :] -= upper[i, i + 1 :].view(-1, 1, 1) * lost
        self.scale = self.scales[block] = scales.gather(1, loss.argmin(1, keepdim=True)).squeeze(1)

    def resume(self, block: int) -> None:
        """Take up the scale that was chosen for a block."""
        self.scale = self.scales[block]

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Values of a column."""
        return self.round_to(weight / self.scale) * self.scale


def blocks_of(peer: Peer, weight: torch.Tensor) -> ScaledBlocks:
    """A peer's format for a weight [N, K].

    Raises:
        InputError: the peer has no blocks to be calibrated, or K is not a multiple of its block.
    """
    formats: dict[str, Callable[[torch.Tensor], ScaledBlocks]] = {
        NVFP4.name: _nvfp4,
        FOUR_OVER_SIX.name: _four_over_six,
        MXFP4.name: _mxfp4,
        INT4.name: _int4,
    }
    if peer.name not in formats or weight.shape[1] % peer.bits.block:
        raise InputError(f"{peer.name} cannot be calibrated on {weight.shape[1]} inputs; there are {', '.join(formats)}")
    return formats[peer.name](weight)


def calibrated_weight(weight: torch.Tensor, statistics: InputStatistics, peer: Peer, rotation: int = 0) -> torch.Tensor:
    """A weight [N, K] as a calibrated peer would decode it, float32; rotated, if it is to meet rotated activations.

    Rows whose output on the calibration rows would be further off than by the peer's own rounding keep that; all do where
    the moment is of no use.

    Raises:
        InputError: as `blocks_of` says.
    """
    weight, moment = weight.float(), statistics.moment.to(weight.device)
    if rotation:
        weight, moment = rotate_rows(weight, rotation), rotate_moment(moment, rotation)
    form, plain = blocks_of(peer, weight), peer.weight(weight)
    factor = factorize(moment, form.block_size, DAMPING * max(1.0, len(moment) / max(1, statistics.count)))
    if factor is None:
        return plain
    calibrated = refine(weight, compensate(weight, factor, form), moment, factor, form)
    better = output_error(calibrated - weight, moment) < output_error(plain - weight, moment)
    return torch.where(better.unsqueeze(1), calibrated, plain)


def rotated(peer: Peer, size: int) -> Peer:
    """The peer on weights and activations that are rotated first."""
    return replace(
        peer,
        name=f"{peer.name}, rotated by {size}",
        weight=partial(_after_rotation, peer.weight, size),
        activation=partial(_after_rotation, peer.activation, size),
    )


def _after_rotation(quantize: Callable[[torch.Tensor], torch.Tensor], size: int, x: torch.Tensor) -> torch.Tensor:
    return quantize(rotate_rows(x.reshape(-1, x.shape[-1]), size).view(x.shape))


def _nvfp4(weight: torch.Tensor) -> ScaledBlocks:
    return _scaled_e2m1(weight, E4M3_MAX, SHRINKS)


def _four_over_six(weight: torch.Tensor) -> ScaledBlocks:
    """A maximum that becomes 4 is a scale 1.5 times larger."""
    return _scaled_e2m1(weight, FOUR_OVER_SIX_SCALE, (*SHRINKS, E2M1_MAX / 4))


def _scaled_e2m1(weight: torch.Tensor, largest: float, shrinks: tuple[float, ...]) -> ScaledBlocks:
    whole = (weight.abs().amax() / (largest * E2M1_MAX)).clamp_min(SMALLEST)

    def scale_of(top: torch.Tensor) -> torch.Tensor:
        scale = (top / E2M1_MAX / whole).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float() * whole
        return scale.clamp_min(SMALLEST)

    return ScaledBlocks(NVFP4.bits.block, scale_of, e2m1, shrinks)


def _mxfp4(weight: torch.Tensor) -> ScaledBlocks:
    def scale_of(top: torch.Tensor) -> torch.Tensor:
        _, exponent = torch.frexp(top)
        return torch.exp2((exponent - 1 - E2M1_EXPONENT).clamp(-126, 127).float())

    return ScaledBlocks(MXFP4.bits.block, scale_of, e2m1)


def _int4(weight: torch.Tensor) -> ScaledBlocks:
    def scale_of(top: torch.Tensor) -> torch.Tensor:
        return (top / INT4_MAX).clamp_min(SMALLEST).bfloat16().float()

    def round_to(x: torch.Tensor) -> torch.Tensor:
        return torch.round(x).clamp(-INT4_MAX, INT4_MAX)

    return ScaledBlocks(INT4.bits.block, scale_of, round_to)
