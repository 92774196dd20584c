"""Files that a browser plays, labels that can be read, and distances that are what they say."""

import av
import numpy as np
import pytest

from sedialect.sedialect_core.errors import InputError
from sedialect.sedialect_core.video.metrics import fidelity
from sedialect.sedialect_core.video.mp4 import check_codec, side_by_side, to_bytes, write_mp4


def clip(frames: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """A bright square that moves over a gradient."""
    y, x = np.mgrid[0:height, 0:width]
    video = np.stack([np.stack([x + y, x, y], axis=-1) for _ in range(frames)]).astype(np.uint8)
    for number in range(frames):
        video[number, 20:36, 4 + 6 * number : 20 + 6 * number] = (250, 200, 30)
    return video


def read(path) -> tuple[np.ndarray, av.container.InputContainer]:
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return frames, container.streams.video[0]


def test_videos_are_h264_in_420_at_their_rate_and_close_to_what_was_written(tmp_path):
    path = tmp_path / "video.mp4"
    video = clip()
    write_mp4(path, video, fps=12)
    frames, stream = read(path)
    assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p" and stream.average_rate == 12
    assert frames.shape == video.shape
    assert fidelity(frames, video).psnr > 30
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat"), "a browser should start before the whole file is there"


def test_odd_sizes_lose_a_line_rather_than_fail(tmp_path):
    write_mp4(tmp_path / "odd.mp4", clip(height=65, width=97), fps=8)
    assert read(tmp_path / "odd.mp4")[0].shape == (9, 64, 96, 3)


def test_side_by_side_holds_both_videos_in_order_and_their_labels():
    dark, bright = np.full((3, 128, 128, 3), 40, np.uint8), np.full((3, 128, 128, 3), 200, np.uint8)
    both = side_by_side([dark, bright], ["16 bit", "w4a4"])
    assert both.shape == (3, 28 + 384, 2 * 384 + 8, 3)
    assert (both[:, 28:, :384] == 40).all() and (both[:, 28:, 392:] == 200).all()
    assert both[:, :28, :384].max() == 255 and both[:, :28, 392:].max() == 255, "labels are drawn in white"


def test_large_videos_are_not_enlarged():
    video = np.zeros((1, 480, 832, 3), np.uint8)
    assert side_by_side([video, video], ["a", "b"]).shape == (1, 508, 1672, 3)


def test_a_missing_encoder_is_named(monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with pytest.raises(InputError, match="no encoder libx264; install"):
        check_codec()
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match="needs PyAV; install it: pip install"):
        check_codec()


def test_psnr_is_what_its_formula_says():
    reference = clip()
    shifted = np.clip(reference.astype(int) + 10, 0, 255).astype(np.uint8)
    error = np.mean((shifted.astype(float) - reference) ** 2)
    assert fidelity(shifted, reference).psnr == pytest.approx(10 * np.log10(255**2 / error))


def test_identical_videos_score_the_best_and_noise_lowers_both_numbers():
    reference = clip()
    rng = np.random.default_rng(0)

    def noisy(strength):
        return np.clip(reference + rng.normal(0, strength, reference.shape), 0, 255).astype(np.uint8)

    perfect, slight, strong = fidelity(reference, reference), fidelity(noisy(4), reference), fidelity(noisy(32), reference)
    assert (perfect.psnr, perfect.ssim) == (100.0, pytest.approx(1.0))
    assert perfect.psnr > slight.psnr > strong.psnr and perfect.ssim > slight.ssim > strong.ssim


def test_floats_become_bytes_by_rounding_within_the_range():
    assert to_bytes(np.array([-1.0, 0.0, 0.5, 0.999, 2.0])).tolist() == [0, 0, 128, 255, 255]
