"""Does the video still show what the prompt asked for? A small network, trained on clips of the toy world, reads it back.

What it reads are the words of the captions' grammar: the object's shape, colour, texture, size, motion and change, the
background's pattern and colour, and the camera. In clips with two objects "the object" is ambiguous to a network that sees
the picture alone, so that only the background and the camera are read there.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ...training.captions import (
    BACKDROPS,
    CAMERAS,
    CHANGES,
    COLOURS,
    MOTIONS,
    PATTERNS,
    SHAPES,
    SIZES,
    TEXTURES,
    ClipSpec,
    evaluation_specs,
)

OBJECT = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "motion": MOTIONS,
    "change": CHANGES,
}
SCENE = {"pattern": PATTERNS, "backdrop": BACKDROPS, "camera": CAMERAS}
ATTRIBUTES = OBJECT | SCENE
UNKNOWN = -1  # an attribute that is not read
FRAMES, SIDE = 9, 64  # what the network looks at of a clip
Size = tuple[int, int, int]
WEIGHTS = Path(__file__).parent / "recognizer.safetensors"


class Recognizer(nn.Module):
    """Logits for every attribute of a clip. Its input has two more channels, the coordinates: motions begin somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(5, 20, (1, 5, 5), (1, 2, 2)),
            _layer(20, 48, (1, 3, 3), (1, 2, 2)),
            _layer(48, 64, (3, 3, 3), (1, 2, 2)),
            _layer(64, 96, (3, 3, 3), (2, 2, 2)),
            nn.Conv3d(96, 32, 1),
            nn.Flatten(),
            nn.SiLU(),
            nn.Linear(32 * 5 * 4 * 4, 64),
            nn.SiLU(),
        )
        self.heads = nn.Linear(64, sum(map(len, ATTRIBUTES.values())))

    def forward(self, clips: torch.Tensor) -> dict[str, torch.Tensor]:
        """Clips [B, 3, 9, 64, 64] in -1..1 to logits [B, classes] of each attribute."""
        steps = torch.linspace(-1, 1, SIDE, device=clips.device, dtype=clips.dtype)
        shape = (len(clips), 1, FRAMES, SIDE, SIDE)
        places = [steps.view(1, 1, 1, 1, SIDE).expand(shape), steps.view(1, 1, 1, SIDE, 1).expand(shape)]
        logits = self.heads(self.body(torch.cat([clips, *places], dim=1)))
        return dict(zip(ATTRIBUTES, logits.split([len(words) for words in ATTRIBUTES.values()], dim=1), strict=True))


def _layer(inputs: int, outputs: int, size: Size, stride: Size) -> nn.Sequential:
    padding = (size[0] // 2, size[1] // 2, size[2] // 2)
    return nn.Sequential(nn.Conv3d(inputs, outputs, size, stride, padding), nn.GroupNorm(4, outputs), nn.SiLU())


def glimpse(videos: torch.Tensor) -> torch.Tensor:
    """What the network looks at: videos [B, T, 3, H, W] in 0..1 as clips [B, 3, 9, 64, 64] in -1..1.

    Frames are picked, evenly from the first to the last; pixels are averaged.
    """
    picked = torch.linspace(0, videos.shape[1] - 1, FRAMES, device=videos.device).round().long()
    clips = videos[:, picked].float()
    small = functional.interpolate(clips.flatten(0, 1), size=(SIDE, SIDE), mode="area")
    return small.view(*clips.shape[:3], SIDE, SIDE).transpose(1, 2) * 2 - 1


def labels_of(spec: ClipSpec) -> dict[str, int]:
    """Class of every attribute of a clip; UNKNOWN for those of the object where there are two."""
    single = spec.other is None
    found = {name: words.index(getattr(spec.main, name)) if single else UNKNOWN for name, words in OBJECT.items()}
    return found | {name: words.index(getattr(spec, name)) for name, words in SCENE.items()}


def right(logits: dict[str, torch.Tensor], labels: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
    """Where each attribute was read rightly, float [B] of 0 and 1; NaN where it is not read."""
    found = {}
    for name, scores in logits.items():
        wanted = torch.tensor([label[name] for label in labels], device=scores.device)
        found[name] = (scores.argmax(1) == wanted).float().masked_fill(wanted == UNKNOWN, torch.nan)
    return found


@cache
def _evaluation_labels() -> dict[str, dict[str, int]]:
    return {caption: labels_of(spec) for caption, spec in evaluation_specs()}


def knows(prompts: Sequence[str]) -> bool:
    """Whether each of these prompts is one whose clip is known."""
    return set(prompts) <= _evaluation_labels().keys()


def prompt_accuracy(recognizer: Recognizer, videos: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """The part of the attributes of each evaluation prompt that its video [T, 3, H, W] in 0..1 shows, float [B]."""
    labels = [_evaluation_labels()[prompt] for prompt in prompts]
    with torch.no_grad():
        found = right(recognizer(glimpse(videos)), labels)
    return torch.stack(list(found.values())).nanmean(0)


@cache
def load_recognizer(device: str) -> Recognizer:
    """The trained network that ships with the bench."""
    from safetensors.torch import load_file

    network = Recognizer()
    network.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return network.to(device).eval()
