"""What differs between two videos: numbers, where a new metric is a new entry of MEASURES, and curves by frame."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError
from . import metrics
from .mp4 import Frames

Distance = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Measure:
    """One metric: videos and references as bytes [B, T, 3, H, W] and frames a second -> one number for each video."""

    key: str
    label: str
    unit: str
    digits: int
    meaning: str
    distance: Distance
    by_frame: bool = False


MEASURES = (
    Measure("psnr_db", "PSNR", "dB", 1, "higher is nearer", lambda v, r, fps: metrics.psnr(v, r), by_frame=True),
    Measure("ssim", "SSIM", "", 3, "1 is equal", lambda v, r, fps: metrics.ssim(v, r), by_frame=True),
    Measure("cvvdp_jod", "ColorVideoVDP", "JOD", 2, "10 is no visible difference", metrics.perceptual),
    Measure("flicker", "Flicker of the error", "of 255", 2, "0 is none", lambda v, r, fps: metrics.flicker(v, r)),
)


@dataclass(frozen=True)
class Measured:
    """Numbers by key, series by label for the plot under the videos, and why a metric is missing, by key."""

    values: dict[str, float]
    series: tuple[dict[str, Any], ...]
    missing: dict[str, str]


def measure(video: Frames, reference: Frames, fps: float) -> Measured:
    """All metrics of a video [T, H, W, 3] against its reference; one whose library is missing is named as such."""
    ours, theirs = (torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).unsqueeze(0) for frames in (video, reference))
    values, missing, curves = {}, {}, []
    for one in MEASURES:
        try:
            values[one.key] = one.distance(ours, theirs, fps).item()
        except InputError as error:
            missing[one.key] = str(error)
            continue
        if one.by_frame:
            by_frame = one.distance(ours.movedim(1, 0), theirs.movedim(1, 0), fps).tolist()  # every frame a video of its own
            curves.append({"name": one.label, "unit": one.unit, "values": [round(value, 4) for value in by_frame]})
    return Measured(values, tuple(curves), missing)


def series(video: torch.Tensor, reference: torch.Tensor) -> list[dict[str, Any]]:
    """PSNR, SSIM and flicker (how much the error changed since the frame before, of 255) of every frame, as the player
    takes them.

    Args:
        video, reference: bytes [T, 3, H, W].
    """
    frames, originals = video.unsqueeze(1), reference.unsqueeze(1)  # every frame a video of its own
    decibels = [None if value >= metrics.IDENTICAL_DB else value for value in _rounded(metrics.psnr(frames, originals))]
    pairs = [torch.stack([part[:-1], part[1:]], dim=1) for part in (video, reference)]  # and every step between two
    flicker = _rounded(metrics.flicker(*pairs)) if len(video) > 1 else []
    return [
        {"name": "PSNR", "unit": "dB", "values": decibels},
        {"name": "SSIM", "unit": "", "values": _rounded(metrics.ssim(frames, originals))},
        {"name": "Flicker", "unit": "", "values": [None, *flicker]},
    ]


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
