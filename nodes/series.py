"""What differs between two videos, frame by frame: the plot under the player."""

from typing import Any

import torch

from ..sedialect_core.bench import metrics


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
