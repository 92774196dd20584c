"""Draws the pictures beside the example workflows, which ComfyUI's template browser shows, and icon and banner of the pack.

    python tests/helpers/make_thumbnails.py --write

It needs pillow with FreeType.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from make_workflows import CALIBRATE_LOAD, EXAMPLES, FOLDER, LOAD
from PIL import Image, ImageDraw, ImageFont

from sedialect import Formatbook

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
TWICE = 2  # drawn so much larger, for smooth edges
NIGHT, PANEL, EDGE, PALE, GREY = "#14161c", "#232733", "#3a4052", "#f2f4f8", "#9aa3b5"
BLUE, GREEN, AMBER, ROSE = "#5b8cff", "#46c08a", "#e0a63e", "#e56b8c"

# Model, what it does, accent, and the steps from left to right; "!" marks ours.
CARDS: dict[str, tuple[str, str, str, list[str]]] = {
    "Wan 2.1 text to video in 4 bit": ("Wan 2.1", "text to video", BLUE, ["16-bit model", "!Quantize", "video"]),
    "Wan 2.1 16 bit and 4 bit side by side": ("16 bit | 4 bit", "one noise, two videos", AMBER, ["both models", "!Compare"]),
    "Wan 2.2 14B text to video in 4 bit": ("Wan 2.2 14B", "text to video", BLUE, ["two experts", "!Quantize", "video"]),
    "Wan 2.2 14B image to video in 4 bit": ("Wan 2.2 14B", "image to video", GREEN, ["image", "!Quantize", "video"]),
    "Wan 2.2 5B in 4 bit": ("Wan 2.2 5B", "text or image", GREEN, ["model", "!Quantize", "video"]),
    CALIBRATE_LOAD: ("Calibrate", "quantize, save and load", ROSE, ["!Calibrate", "!Quantize", "!Save", "!Load"]),
    LOAD: ("Load", "a quantized model", ROSE, ["4-bit file", "!Load", "video"]),
}  # fmt: skip


def font(size: float) -> Any:
    """Pillow's own."""
    return ImageFont.load_default(size * TWICE)


class Board:
    """A picture to draw on, in px of the finished one."""

    def __init__(self, width: int, height: int, accent: str) -> None:
        self.size, self.accent = (width, height), accent
        self.image = Image.new("RGB", (width * TWICE, height * TWICE), NIGHT)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, left: float, top: float, width: float, height: float, fill: str, edge: str, radius: float = 10) -> None:
        """A rounded rectangle."""
        corners = [value * TWICE for value in (left, top, left + width, top + height)]
        self.draw.rounded_rectangle(corners, radius * TWICE, fill, edge, 2 * TWICE)

    def text(self, x: float, y: float, said: str, size: float, colour: str = PALE, anchor: str = "la") -> None:
        """A line of text."""
        self.draw.text((x * TWICE, y * TWICE), said, fill=colour, font=font(size), anchor=anchor)

    def rule(self, left: float, y: float, right: float, colour: str, width: float) -> None:
        """A horizontal line."""
        self.draw.line([(left * TWICE, y * TWICE), (right * TWICE, y * TWICE)], colour, int(width * TWICE))

    def dots(self, left: float, top: float, step: float, rows: int) -> None:
        """Dialects of the default formatbook: a row each, a dot for each magnitude."""
        for row, half_units in enumerate(Formatbook.builtin().half_units[:rows].tolist()):
            for value in half_units:
                x, y, r = left + value * step, top + row * step, step * 0.32
                self.draw.ellipse([(v * TWICE) for v in (x - r, y - r, x + r, y + r)], fill=self.accent)

    def finished(self) -> Image.Image:
        """The picture in its own size."""
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


def card(name: str) -> Image.Image:
    """The picture of a workflow, 640 x 400."""
    model, task, accent, steps = CARDS[name]
    board = Board(640, 400, accent)
    board.rule(0, 3, 640, accent, 6)
    board.text(40, 52, model, 58)
    board.text(42, 128, task, 30, GREY)
    width = (560 - 30 * (len(steps) - 1)) / len(steps)
    for number, step in enumerate(steps):
        x, ours = 40 + number * (width + 30), step.startswith("!")
        board.box(x, 222, width, 76, PANEL, accent if ours else EDGE)
        board.text(x + width / 2, 260, step.lstrip("!"), 22 if len(steps) < 4 else 20, PALE, "mm")
        if number:
            board.rule(x - 26, 260, x - 4, GREY, 3)
    board.text(40, 344, "SeDialect", 22, accent)
    board.text(600, 344, "4-bit video models", 22, GREY, "ra")
    return board.finished()


def icon() -> Image.Image:
    """The pack's icon, 400 x 400."""
    board = Board(400, 400, BLUE)
    board.dots(56, 56, 19.2, 16)
    return board.finished()


def banner() -> Image.Image:
    """The pack's banner, 21 to 9."""
    board = Board(1260, 540, BLUE)
    board.dots(770, 96, 27, 13)
    board.text(80, 150, "SeDialect", 118)
    board.text(84, 296, "4-bit video models in ComfyUI", 40, GREY)
    board.text(84, 352, "Wan, HunyuanVideo, LTX and more", 32, GREY)
    return board.finished()


def pictures() -> dict[Path, Callable[[], Image.Image]]:
    """All files, and what draws them."""
    cards = {FOLDER / f"{name}.jpg": (lambda name=name: card(name)) for name in EXAMPLES}
    return {**cards, PICTURES / "icon.png": icon, PICTURES / "banner.png": banner}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into example_workflows/ and docs/pictures/")
    if parser.parse_args().write:
        PICTURES.mkdir(exist_ok=True)
        for path, drawn in pictures().items():
            drawn().save(path, quality=88, optimize=True)
            print(f"{path.stat().st_size:7,} bytes  {path.relative_to(ROOT)}")
