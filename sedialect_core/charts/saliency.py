"""Saliency of a video's tokens as a picture: its latent frames side by side, in one scale of colours."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .pen import INK, PALE, Pen, picture

WIDTH, MARGIN, HEAD, FOOT = 1120, 40, 84, 56
GAP, COLUMNS, LARGEST = 12, 8, 40  # the last: pixels a token
KEY_STEPS, KEY_WIDTH, KEY_HEIGHT = 64, 220, 12
# Dark blue over teal to yellow: ordered by lightness, so that it also reads without colours.
STOPS = np.array([(22, 20, 60), (48, 62, 138), (34, 120, 142), (62, 178, 120), (246, 226, 88)], dtype=float)


def draw_saliency(values: npt.NDArray[np.floating] | None, says: str, path: Path) -> Path:
    """Write the picture as PNG, whole or not at all, and return its path.

    Args:
        values: [T, H, W], one number a token; None where there are none, and `says` is then why.

    Raises:
        InputError: Pillow is missing, or the file cannot be written.
    """
    if values is None:
        with picture(path, WIDTH, HEAD + FOOT) as pen:
            pen.text(MARGIN, 36, "Saliency", size=24)
            pen.text(MARGIN, 72, says, fill=PALE)
        return path
    frames, height, width = values.shape
    columns = min(frames, COLUMNS)
    cell = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    side = min(cell / width, LARGEST)
    row = side * height + GAP + 20
    with picture(path, WIDTH, round(HEAD + math.ceil(frames / columns) * row + FOOT)) as pen:
        pen.text(MARGIN, 36, f"Saliency of {frames} x {height} x {width} tokens", size=24)
        pen.text(MARGIN, 66, says, fill=PALE)
        low, high = float(values.min()), float(values.max())
        shares = (values - low) / (high - low if high > low else 1.0)
        for frame in range(frames):
            x, y = MARGIN + frame % columns * (side * width + GAP), HEAD + frame // columns * row
            pen.pixels(x, y, side * width, side * height, colours(shares[frame]))
            pen.text(x, y + side * height + 12, f"latent frame {frame}", size=11, fill=PALE)
        _draw_key(pen, HEAD + math.ceil(frames / columns) * row + FOOT / 2, low, high)
    return path


def colours(shares: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Numbers in 0..1 as colours, one axis more."""
    place = np.clip(shares, 0, 1) * (len(STOPS) - 1)
    lower = np.minimum(place.astype(int), len(STOPS) - 2)
    part = (place - lower)[..., None]
    return (STOPS[lower] * (1 - part) + STOPS[lower + 1] * part).round().astype(np.uint8)


def _draw_key(pen: Pen, y: float, low: float, high: float) -> None:
    pen.pixels(MARGIN, y - KEY_HEIGHT / 2, KEY_WIDTH, KEY_HEIGHT, colours(np.linspace(0, 1, KEY_STEPS)[None]))
    pen.text(MARGIN + KEY_WIDTH + 12, y, f"{low:.3g} to {high:.3g}", size=12, fill=INK)
