"""Distances between videos and their references, for whole batches and on whatever device the videos are.

Videos are bytes [B, T, 3, H, W], as users see them; every metric gives one float64 for each of them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from .mp4 import Frames

IDENTICAL_DB = 100.0  # in place of infinity, so that means and JSON stay finite; far above what 8-bit frames can differ by
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
SSIM_CONSTANTS = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
OCCLUSION = 12.0  # levels of 255 by which the flow misses the reference itself; such pixels are covered or uncovered
DISPLAY = "standard_fhd"  # ColorVideoVDP's name for a 24-inch 1920x1080 display at 200 cd/m2, seen from 0.6 m


@dataclass(frozen=True)
class Fidelity:
    """How near a video is to its reference."""

    psnr: float
    """Peak signal-to-noise ratio in dB over all frames at once."""
    ssim: float
    """Structural similarity (Wang et al. 2004, Gaussian window of 1.5 pixels), the mean over the frames."""


def fidelity(video: Frames, reference: Frames) -> Fidelity:
    """PSNR and SSIM of frames [T, H, W, 3] against frames of the same shape."""
    pair = [torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).unsqueeze(0) for frames in (video, reference)]
    return Fidelity(psnr(*pair).item(), ssim(*pair).item())


def relative_error(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Relative L2 distance of each sample of a batch: |v - r| / |r|."""
    v, r = values.double().flatten(1), reference.double().flatten(1)
    return (v - r).norm(dim=1) / r.norm(dim=1)


def psnr(videos: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, over all frames of a video at once; 100 where they are equal."""
    error = _error(videos, references).square().flatten(1).mean(1, dtype=torch.float64)
    return (10 * torch.log10(255**2 / error)).clamp(max=IDENTICAL_DB)


def ssim(videos: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Structural similarity, the mean over frames and colours (Wang et al. 2004): a Gaussian window of 1.5 pixels, 11 wide,
    where it lies wholly inside the picture."""
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, device=videos.device, dtype=torch.float64)
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = window / window.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))

    def of_one(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        a, b = (frames.double().flatten(0, 1).unsqueeze(1) for frames in (video, reference))
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
        c1, c2 = SSIM_CONSTANTS
        similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
        return (similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()

    return torch.stack([of_one(a, b) for a, b in zip(videos, references, strict=True)])


def flicker(videos: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """How much the error changes from frame to frame: the mean of |e(t+1) - e(t)| in levels of 255.

    An error that stands still does not flicker, however large it is.
    """
    return _error(videos, references).diff(dim=1).abs().flatten(1).mean(1, dtype=torch.float64)


def optical_flow(references: torch.Tensor) -> torch.Tensor:
    """Where each pixel of a frame was in the frame before, in pixels (dy, dx): float32 [B, T-1, 2, H, W].

    Dense inverse search (Kroeger et al. 2016; OpenCV's, at its medium preset) on the grey reference videos.

    Raises:
        InputError: OpenCV is missing.
    """
    try:
        cv2 = import_module("cv2")
    except ImportError:
        raise InputError("optical flow needs OpenCV; install it: pip install 'sedialect[bench]'") from None
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = references.float().mean(2).round().to(torch.uint8).cpu().numpy()
    flows = [[search.calc(after, before, None) for before, after in pairwise(video)] for video in grey]
    return torch.from_numpy(np.array(flows)[..., ::-1].copy()).permute(0, 1, 4, 2, 3).to(references.device)


def warping(videos: torch.Tensor, references: torch.Tensor, flows: torch.Tensor) -> torch.Tensor:
    """Warping error in levels of 255: the mean of |v(t+1) - v(t) moved by the flow| where the flow explains the reference.

    The flow and where it holds are the reference's (Lai et al. 2018, without their occlusion detector), so that all videos
    of one reference are asked the same; the reference's own warping error is not 0.
    """
    held = (_warp_residual(references, flows).mean(2, keepdim=True) < OCCLUSION).double()
    residual = (_warp_residual(videos, flows) * held).flatten(1).sum(1)
    return residual / (3 * held.flatten(1).sum(1)).clamp_min(1)


def _warp_residual(videos: torch.Tensor, flows: torch.Tensor) -> torch.Tensor:
    """|v(t+1) - v(t) moved by the flow|, [B, T-1, 3, H, W]."""
    height, width = flows.shape[-2:]
    rows = torch.arange(height, device=flows.device, dtype=torch.float32).view(-1, 1) + flows[:, :, 0]
    columns = torch.arange(width, device=flows.device, dtype=torch.float32) + flows[:, :, 1]
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
    frames = videos.float()
    moved = functional.grid_sample(
        frames[:, :-1].flatten(0, 1), grid.flatten(0, 1), padding_mode="border", align_corners=True
    )
    return (frames[:, 1:] - moved.view_as(frames[:, 1:])).abs()


def perceptual(videos: torch.Tensor, references: torch.Tensor, fps: float) -> torch.Tensor:
    """ColorVideoVDP (Mantiuk et al. 2024): quality in just-objectionable differences, 10 where no difference is seen.

    Raises:
        InputError: cvvdp is missing.
    """
    metric = _color_video_vdp(str(videos.device))
    with torch.no_grad():
        quality, _ = metric.predict(videos, references, dim_order="BFCHW", frames_per_second=fps)
    return quality.double().reshape(-1)


@cache
def _color_video_vdp(device: str) -> Any:
    try:
        with _instead_of_torchvision():
            pycvvdp = import_module("pycvvdp")
    except ImportError as error:
        raise InputError(f"cvvdp needs {error.name}; install what the bench uses: pip install 'sedialect[bench]'") from None
    return pycvvdp.cvvdp(display_name=DISPLAY, quiet=True, device=torch.device(device))


class GaussianBlur(nn.Module):
    """Blurs pictures [..., H, W] with a Gaussian window of `size` pixels; borders are mirrored."""

    def __init__(self, size: int, sigma: float) -> None:
        super().__init__()
        offsets = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        window = torch.exp(-0.5 * (offsets / sigma) ** 2)
        self.window = window / window.sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., H, W] -> [..., H, W]."""
        window, margin = self.window.to(x), len(self.window) // 2
        padded = functional.pad(x.reshape(-1, 1, *x.shape[-2:]), [margin] * 4, mode="reflect")
        rows = functional.conv2d(padded, window.view(1, 1, 1, -1))
        return functional.conv2d(rows, window.view(1, 1, -1, 1)).view(x.shape)


@contextmanager
def _instead_of_torchvision() -> Iterator[None]:
    """For importing cvvdp: the one function that it takes from torchvision. The path that it appends is taken away.

    torchvision must match torch to the build, or importing it fails, and PyPI's is for CUDA, whichever torch is there.
    """
    names = ("torchvision", "torchvision.transforms", "torchvision.ops")
    before, path = {name: sys.modules.get(name) for name in names}, list(sys.path)
    modules = {name: ModuleType(name) for name in names}
    modules["torchvision.transforms"].GaussianBlur = GaussianBlur  # type: ignore[attr-defined]
    modules["torchvision.ops"].MLP = nn.Module  # type: ignore[attr-defined]  # of its trained variants, which are not used
    sys.modules.update(modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def same_code_rate(
    values: torch.Tensor, quantized: torch.Tensor, groups: torch.Tensor, tolerance: float = 2.0**-6
) -> torch.Tensor:
    """How often equal values of two tokens of one group get equal codes, for each sample [B].

    Two numbers of neighbouring members of a group, in the same channel, count as equal where they differ by no more than
    `tolerance` of the larger one, and so does what their codes decode to: scales that differ a little are no other code. NaN
    where no two numbers are equal.

    Args:
        values, quantized: [B, N, K], what a layer reads and what its quantizer makes of it.
        groups: int64 [N]; the group of each token, -1 for none. Members are compared with the next one in order.
    """
    first, second = neighbours(groups)

    def alike(x: torch.Tensor) -> torch.Tensor:
        a, b = x[:, first], x[:, second]
        return (a - b).abs() <= tolerance * torch.maximum(a.abs(), b.abs())

    equal = alike(values) & (values[:, first] != 0)
    return (alike(quantized) & equal).flatten(1).sum(1) / equal.flatten(1).sum(1)


def difference_error(values: torch.Tensor, quantized: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Squared error of the *difference* of two neighbouring tokens of a group, by their energy, for each sample [B].

    E |(Q(a) - Q(b)) - (a - b)|^2 / (E |a|^2 + E |b|^2) * 2. Arguments as in `same_code_rate`.
    """
    first, second = neighbours(groups)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return x.float().square().flatten(1).sum(1)

    error = quantized - values
    return 2 * energy(error[:, first] - error[:, second]) / (energy(values[:, first]) + energy(values[:, second]))


def neighbours(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the tokens that have a next one in their group, and of those next ones."""
    order = torch.argsort(groups, stable=True)
    ordered = groups[order]
    linked = (ordered[:-1] == ordered[1:]) & (ordered[:-1] >= 0)
    return order[:-1][linked], order[1:][linked]


def _error(videos: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    return videos.float() - references.float()
