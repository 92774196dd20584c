"""Puts frames of many clips on one picture, because looking is the only test of a picture's quality."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_contact_sheet(videos: Tensor, path: Path, columns: int = 6, scale: int = 1) -> None:
    """Write one row of evenly spaced frames per clip; `videos` is (clip, 3, frame, height, width) in [-1, 1]."""
    frames = videos.shape[2]
    picks = torch.linspace(0, frames - 1, min(columns, frames)).round().long()
    chosen = videos[:, :, picks.to(videos.device)].float().cpu().clamp(-1, 1)
    rows = torch.cat([torch.cat(list(clip.unbind(1)), dim=-1) for clip in chosen], dim=-2)
    array = ((rows + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
