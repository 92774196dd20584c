"""Numbers as colours: maps over the frames of a video, and matrices."""

import base64
import io
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from html import escape

import numpy as np
import numpy.typing as npt

from ...sedialect_core.charts.saliency import colours
from ...sedialect_core.video.mp4 import Frames

Numbers = npt.NDArray[np.floating]
NONE = (118, 124, 138)  # of what belongs to no group
GOLDEN = 0.61803398875  # hues of numbers that name things: neighbours far apart


def pictures(values: Numbers) -> Frames:
    """A map [T, H, W] as colours [T, H, W, 3]: from its least to its largest number over all frames."""
    values = np.nan_to_num(values.astype(float))
    low, high = values.min(), values.max()
    return colours((values - low) / (high - low if high > low else 1.0))


def named(values: Numbers) -> Frames:
    """Whole numbers as colours that tell them apart; -1 is grey."""
    numbers = values.astype(int)
    palette = {number: list(_hue(number)) for number in np.unique(numbers).tolist()}
    palette[-1] = list(NONE)
    found = np.empty((*numbers.shape, 3), np.uint8)
    for number, colour in palette.items():
        found[numbers == number] = colour
    return found


def colour_of(number: int) -> str:
    """The colour of a number in `named`, for CSS."""
    red, green, blue = NONE if number == -1 else _hue(number)
    return f"rgb({red},{green},{blue})"


def _hue(number: int) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in hsv_to_rgb(number * GOLDEN % 1, 0.62, 0.9))
    return red, green, blue


def strip(thumbnails: Sequence[str], frames: Frames, title: str) -> str:
    """Frames side by side, each under the picture of the video at its time."""
    cells = []
    for number, frame in enumerate(frames):
        above = f'<img src="{escape(thumbnails[number])}" alt="">' if number < len(thumbnails) else ""
        name = f"{title} {number + 1}"
        cells.append(f'<div>{above}<img class="sd-pixels" src="{png(frame)}" alt="{escape(name)}"></div>')
    return f'<div class="sd-strip">{"".join(cells)}</div>'


def matrix(values: Numbers, marked: int, title: str) -> str:
    """A matrix as heat, its columns the steps; `marked` is framed."""
    rows, columns = values.shape
    picture = png(pictures(values[None])[0])
    left, width = 100 * marked / columns, 100 / columns
    return (
        f'<div class="sd-matrix" role="img" aria-label="{escape(title)}" style="aspect-ratio:{3 * columns}/{2 * rows}">'
        f'<img class="sd-pixels" src="{picture}" alt=""><span style="left:{left:.2f}%;width:{width:.2f}%"></span></div>'
    )


def png(picture: Frames) -> str:
    """A picture [H, W, 3] as a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
