"""Metrics against other implementations, closed forms and what they must tell apart."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sedialect.sedialect_core.video import metrics

HAVE_CVVDP = importlib.util.find_spec("pycvvdp") is not None


def moving(shift: int = 1, frames: int = 6, size: int = 48) -> torch.Tensor:
    """A smooth picture that moves to the right by `shift` pixels a frame, as bytes [1, T, 3, H, W]."""
    rng = np.random.default_rng(0)
    wide = gaussian_filter(rng.normal(size=(3, size, size + shift * frames)), (0, 3, 3))
    wide = np.clip(128 + 400 * wide, 0, 255)
    cut = [wide[:, :, shift * (frames - t) : shift * (frames - t) + size] for t in range(frames)]
    return torch.from_numpy(np.stack(cut).round().astype(np.uint8)).unsqueeze(0)


def noisy(video: torch.Tensor, amount: float, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
    return (video + amount * noise).clamp(0, 255).round().to(torch.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image():
    reference = torch.cat([moving(), moving(2)])
    video = torch.cat([noisy(reference[:1], 4), noisy(reference[1:], 20)])
    a, b = (v.permute(0, 1, 3, 4, 2).numpy() for v in (video, reference))
    wanted = [peak_signal_noise_ratio(y, x, data_range=255) for x, y in zip(a, b, strict=True)]
    assert metrics.psnr(video, reference).tolist() == pytest.approx(wanted)
    settings = {"channel_axis": -1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = [list(zip(x, y, strict=True)) for x, y in zip(a, b, strict=True)]
    wanted = [np.mean([structural_similarity(p, q, **settings) for p, q in pair]) for pair in pairs]
    assert metrics.ssim(video, reference).tolist() == pytest.approx(wanted, abs=1e-9)
    one = metrics.fidelity(a[0], b[0])
    assert (one.psnr, one.ssim) == pytest.approx((metrics.psnr(video, reference)[0].item(), wanted[0]))


def test_equal_videos_are_equal_by_every_metric():
    video = moving()
    assert metrics.psnr(video, video).tolist() == [metrics.IDENTICAL_DB]
    assert metrics.ssim(video, video).tolist() == [pytest.approx(1)]
    assert metrics.flicker(video, video).tolist() == [0]


def test_relative_error_is_by_sample():
    reference = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    assert metrics.relative_error(reference + torch.tensor([0.0, 1.0]), reference).tolist() == pytest.approx([0.2, 0.1])


def test_only_errors_that_change_flicker():
    video = moving().float().clamp(20, 230)
    still = video + 10
    alternating = video + 10 * torch.tensor([1, -1] * 3).view(1, 6, 1, 1, 1)
    assert metrics.flicker(still, video).tolist() == [0]
    assert metrics.flicker(alternating, video).tolist() == [20]


def test_flow_finds_a_known_motion_and_warping_undoes_it():
    video = moving(shift=2)
    flow = metrics.optical_flow(video)
    assert flow.shape == (1, 5, 2, 48, 48)
    inside = flow[..., 8:-8, 8:-8]
    assert float((inside[:, :, 0]).abs().mean()) < 0.2 and float((inside[:, :, 1] + 2).abs().mean()) < 0.3
    own = metrics.warping(video, video, flow)
    assert float(own) < 0.4 * float(metrics.flicker(video, torch.zeros_like(video)))  # against no motion compensation
    assert (
        float(own)
        < float(metrics.warping(noisy(video, 3), video, flow))
        < float(metrics.warping(noisy(video, 9), video, flow))
    )


def test_an_exact_flow_leaves_no_warping_error():
    video = moving(shift=2)
    flow = torch.zeros(1, 5, 2, 48, 48)
    flow[:, :, 1] = -2  # the pixel was two columns to the left
    residual = metrics._warp_residual(video, flow)
    assert float(residual[..., 2:].max()) < 1e-3


@pytest.mark.skipif(not HAVE_CVVDP, reason="cvvdp is not installed")
def test_cvvdp_sees_flicker_that_psnr_does_not():
    video = moving(frames=9, size=64).float().clamp(20, 230)
    flickering = video + 5 * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1]).view(1, 9, 1, 1, 1)
    sign = torch.sign(torch.randn(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    videos = torch.cat([video, flickering, video + 5 * sign]).to(torch.uint8)
    references = video.to(torch.uint8).expand(3, -1, -1, -1, -1)
    same, flicker, noise = metrics.perceptual(videos, references, 16).tolist()
    assert same == pytest.approx(10, abs=1e-3) and flicker < noise - 0.5
    levels = metrics.psnr(videos, references)
    assert float((levels[1] - levels[2]).abs()) < 0.1
    alone = metrics.perceptual(videos[1:2], references[:1], 16).item()
    assert alone == pytest.approx(flicker, abs=1e-3), "videos of a batch do not change each other"


def test_the_blur_is_a_gaussian_with_mirrored_borders():
    x = torch.randn(2, 3, 20, 24)
    blur = metrics.GaussianBlur(13, 3)
    wanted = gaussian_filter(x.numpy(), (0, 0, 3, 3), radius=(0, 0, 6, 6), mode="mirror")
    assert torch.allclose(blur(x), torch.from_numpy(wanted), atol=1e-5)


def test_equal_values_are_counted_where_their_codes_are_equal():
    values = torch.tensor([[1.0, 2, 3, 0], [1.0, 2, 9, 0], [1.0, 5, 9, 0], [1.0, 2, 3, 4]])
    quantized = torch.tensor([[1.0, 2, 3, 0], [1.0, 1, 9, 0], [1.5, 5, 8, 0], [7.0, 7, 7, 7]])
    groups = torch.tensor([0, 0, 0, -1])
    # first and second token: 1 and 2 are equal, 1 keeps its code; second and third: 1 and 9, neither does
    batch = metrics.same_code_rate(torch.stack([values, values]), torch.stack([quantized, values]), groups)
    assert batch.tolist() == pytest.approx([1 / 4, 1])
    first, second = metrics.neighbours(torch.tensor([1, 0, -1, 1, 0, 1]))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(1, 4), (0, 3), (3, 5)]


def test_the_error_of_differences_is_zero_where_errors_are_shared():
    values = torch.randn(4, 8)
    groups = torch.tensor([0, 0, 1, 1])
    independent = torch.cat([values[:1] + 1, values[1:2] - 1, values[2:]])
    found = metrics.difference_error(torch.stack([values, values]), torch.stack([values + 1, independent]), groups)
    assert found.tolist() == pytest.approx([0, 4 * 8 / (float(values.square().sum()) / 2)], rel=1e-5, abs=1e-10)
