"""Pictures as ComfyUI wants them: IMAGE, float32 [1, H, W, 3] in 0..1."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..sedialect_core.charts.dialects import Use, draw
from ..sedialect_core.charts.saliency import draw_saliency
from ..sedialect_core.formatbook import Formatbook


def chart(book: Formatbook, use: Use) -> torch.Tensor:
    """The chart of a formatbook and of how often each dialect is used."""
    return _image(lambda path: draw(book, use, path))


def saliency(values: torch.Tensor | None, says: str) -> torch.Tensor:
    """Saliency [T, H, W] frame by frame, or in its place a sentence."""
    return _image(lambda path: draw_saliency(None if values is None else values.numpy(), says, path))


def _image(paint: Callable[[Path], object]) -> torch.Tensor:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        paint(path)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).unsqueeze(0)
