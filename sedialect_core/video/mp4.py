"""Videos on disk: H.264 in MP4, so that any browser plays them, and labelled side-by-side pictures."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError, shown

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3], RGB
CODEC = "libx264"
MAX_RATE = 1000  # frames a second
LABEL_HEIGHT = 28
SIDE_HEIGHT = 384  # smaller videos are enlarged to about this for the side-by-side picture
GAP = 8


def check_codec() -> None:
    """Fail early, before minutes of sampling, where no H.264 encoder is installed.

    Raises:
        InputError: PyAV is missing, or was built without libx264.
    """
    try:
        import av
    except ImportError:
        raise InputError("writing videos needs PyAV; install it: pip install 'sedialect[demo]'") from None
    if CODEC not in av.codecs_available:
        raise InputError(f"this PyAV has no encoder {CODEC}; install the one from PyPI: pip install --force-reinstall av")


def check_rate(fps: int) -> None:
    """Refuse, before minutes of sampling, a number of frames a second with which no video can be written.

    Raises:
        InputError: that is so.
    """
    if not 1 <= fps <= MAX_RATE:
        raise InputError(f"--fps is {shown(fps)}; give a whole number from 1 to {MAX_RATE}")


def write_mp4(path: Path, frames: Frames, fps: int) -> None:
    """Write frames [T, H, W, 3] to `path`; odd sizes lose their last row or column, as 4:2:0 colour demands."""
    import av

    check_codec()
    height, width = (size - size % 2 for size in frames.shape[1:3])
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(CODEC, rate=Fraction(fps), options={"crf": "12", "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def side_by_side(videos: Sequence[Frames], labels: Sequence[str]) -> Frames:
    """Videos of equal length next to each other, each under its label; small ones are enlarged."""
    from PIL import Image, ImageDraw, ImageFont

    count, height, width = videos[0].shape[:3]
    factor = max(1, round(SIDE_HEIGHT / height))
    size = (width * factor, height * factor)
    canvas_size = (len(videos) * size[0] + (len(videos) - 1) * GAP, size[1] + LABEL_HEIGHT)
    font = ImageFont.load_default(size=16)
    pictures = []
    for number in range(count):
        canvas = Image.new("RGB", canvas_size, "black")
        draw = ImageDraw.Draw(canvas)
        for place, (video, label) in enumerate(zip(videos, labels, strict=True)):
            left = place * (size[0] + GAP)
            canvas.paste(Image.fromarray(video[number]).resize(size, Image.Resampling.BICUBIC), (left, LABEL_HEIGHT))
            draw.text((left + 8, LABEL_HEIGHT // 2), label, fill="white", font=font, anchor="lm")
        pictures.append(np.asarray(canvas))
    return np.stack(pictures)


def write_still(path: Path, frame: Frames) -> None:
    """Write one frame [H, W, 3] as a PNG."""
    from PIL import Image

    Image.fromarray(frame).save(path)


def to_bytes(frames: npt.NDArray[np.floating]) -> Frames:
    """Floats in 0..1 as bytes."""
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)
