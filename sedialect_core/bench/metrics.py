"""Distances between two videos, computed by scikit-image; what is ours is only how frames are averaged."""

from dataclasses import dataclass

import numpy as np

from ..video import Frames

IDENTICAL_DB = 100.0  # in place of infinity, so that means and JSON stay finite; far above what 8-bit frames can differ by


@dataclass(frozen=True)
class Fidelity:
    """How near a video is to its reference."""

    psnr: float
    """Peak signal-to-noise ratio in dB over all frames at once."""
    ssim: float
    """Structural similarity (Wang et al. 2004, Gaussian window of 1.5 pixels), the mean over the frames."""


def fidelity(video: Frames, reference: Frames) -> Fidelity:
    """PSNR and SSIM of frames [T, H, W, 3] against frames of the same shape."""
    from skimage.metrics import structural_similarity

    error = np.mean((video.astype(np.float64) - reference) ** 2)
    psnr = IDENTICAL_DB if error == 0 else min(IDENTICAL_DB, 10 * np.log10(255**2 / error))
    ssim = [
        structural_similarity(a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for a, b in zip(video, reference, strict=True)
    ]
    return Fidelity(float(psnr), float(np.mean(ssim)))
