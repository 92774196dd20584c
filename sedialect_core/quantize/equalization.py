"""Which power of two each channel of a layer's input gives to the weight, so that no channel sets the scale of all others.

Of the weights alone, columns that are far from the median say where the input has outlier channels: what was scaled up on
one side of a product was scaled down on the other. Smaller differences say nothing, and following them costs more than it
gains; hence a dead zone. With inputs in view, the scale of both sides counts (SmoothQuant, arXiv 2211.10438, section 4);
there, too, following small differences lessens the error of single layers and not that of the model.
"""

from collections.abc import Iterable

import torch

from ...kernels.transform import LARGEST_EXPONENT

DEAD_ZONE = 1.5  # in powers of two: channels nearer to the median than this stay as they are
MIGRATIONS = ((0.5, 0.5), (0.35, 0.65))  # how much the input's scale and the weight's count: tried where inputs are known
GAIN = 0.97  # exponents are taken if at most this part of the error is left: less may be chance
CHUNK_ELEMENTS = 1 << 19  # that are made float64 together: beside a large weight, there may be no room for many


def column_norms(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """Root mean squares of the columns of weights [N, K] that read one input, together: float64 [K].

    Summed in float64, so that roundings of different devices decide no exponent.
    """
    total, rows = torch.zeros(0), 0
    for weight in weights:
        for part in weight.split(max(1, CHUNK_ELEMENTS // weight.shape[1])):
            squares = part.double().square().sum(0)
            total = total + squares if rows else squares
            rows += len(part)
    return (total / max(1, rows)).sqrt()


def by_weights(norms: torch.Tensor) -> torch.Tensor | None:
    """Exponents, int8 [K], from column norms alone; None where all are 0."""
    return _exponents(norms, -_log2(norms), DEAD_ZONE)


def by_inputs(rms: torch.Tensor, norms: torch.Tensor) -> list[torch.Tensor]:
    """Exponents to choose from, each int8 [K], from root mean squares of the input channels and column norms, [K]."""
    rms = rms.to(norms)
    found = [
        _exponents(rms * norms, of_input * _log2(rms) - of_weight * _log2(norms), DEAD_ZONE)
        for of_input, of_weight in MIGRATIONS
    ]
    return [exponents for exponents in found if exponents is not None]


def _log2(values: torch.Tensor) -> torch.Tensor:
    return values.clamp_min(torch.finfo(torch.float32).tiny).log2()


def _exponents(size: torch.Tensor, scale: torch.Tensor, dead_zone: float) -> torch.Tensor | None:
    """`scale`, log2 [K], from its median on as integers; 0 for channels without a size, which say nothing."""
    told = size.isfinite() & (size > 0)
    if not bool(told.any()):
        return None
    scale = torch.where(told, scale - scale[told].median(), 0.0)
    rounded = torch.where(scale.abs() < dead_zone, 0.0, scale.round())
    exponents = rounded.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).to(torch.int8)
    return exponents if bool(exponents.any()) else None
