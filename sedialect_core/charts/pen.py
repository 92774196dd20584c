"""Pictures of numbers, drawn with Pillow: the pen, its colours, and files that are whole or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..storage.atomic import replacing

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SCALE = 2  # everything is drawn at twice its size and scaled down, for Pillow's shapes have hard edges
INK, PALE, PAPER, GRID = "#1d2433", "#8a93a6", "#ffffff", "#e6e9f0"
COLOURS = ("#3b5bdb", "#0c9a8d", "#e8930c", "#d6336c")


@contextmanager
def picture(path: Path, width: int, height: int) -> Iterator["Pen"]:
    """A pen on white paper; what it drew is written as PNG when the block ends well, whole or not at all.

    Raises:
        InputError: Pillow is missing, or the file cannot be written.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise InputError("drawing needs Pillow; install it: pip install 'sedialect[demo]'") from None
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    yield Pen(canvas, ImageDraw.Draw(canvas))
    with replacing(path) as temporary:
        canvas.resize((width, height), Image.Resampling.LANCZOS).save(temporary, format="PNG")


class Pen:
    """Draws in units of the finished picture."""

    def __init__(self, canvas: "Image.Image", draw: "ImageDraw.ImageDraw") -> None:
        self._canvas, self._draw = canvas, draw

    def text(
        self, x: float, y: float, text: str, size: int = 13, fill: str = INK, anchor: str = "lm", paper: str | None = None
    ) -> None:
        """`paper` is a colour behind it, where something else has been drawn."""
        from PIL import ImageFont

        place, font = (x * SCALE, y * SCALE), ImageFont.load_default(size * SCALE)
        if paper is not None:
            self._draw.rectangle(self._draw.textbbox(place, text, font=font, anchor=anchor), fill=paper)
        self._draw.text(place, text, fill=fill, font=font, anchor=anchor)

    def line(self, x0: float, y0: float, x1: float, y1: float, fill: str = GRID, width: float = 1) -> None:
        self._draw.line((x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE), fill=fill, width=round(width * SCALE))

    def dot(self, x: float, y: float, radius: float, fill: str, ring: str) -> None:
        box = tuple(value * SCALE for value in (x - radius, y - radius, x + radius, y + radius))
        self._draw.ellipse(box, fill=fill, outline=ring, width=2 * SCALE)

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        box = tuple(value * SCALE for value in (x, y - height / 2, x + width, y + height / 2))
        self._draw.rounded_rectangle(box, radius=3 * SCALE, fill=fill)

    def pixels(self, x: float, y: float, width: float, height: float, colours: npt.NDArray[np.uint8]) -> None:
        """A picture [H, W, 3], each of its pixels a rectangle with sharp edges."""
        from PIL import Image

        size = (round(width * SCALE), round(height * SCALE))
        image = Image.fromarray(np.ascontiguousarray(colours)).resize(size, Image.Resampling.NEAREST)
        self._canvas.paste(image, (round(x * SCALE), round(y * SCALE)))
