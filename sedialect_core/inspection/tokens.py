"""Where a model's video and text tokens stand in its sequences, and the T x H x W grid of the video tokens.

Saliency and grouping speak of places in space and time; linear layers see rows of a sequence. `TokenLayout` is the
map between the two. A template of it belongs to each model family; `for_inputs` adds the grid of one call.

Every model known here orders its video tokens frame by frame, then row by row: index = (t * H + h) * W + w. Two
order the tokens of a frame by square tiles instead, which `tile` tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import ModelError

Grid = tuple[int, int, int]
Index = TypeVar("Index", int, Tensor)

ORDERS = ("video", "text_video", "video_text", "history_video", "history_video_text", "packed")
"""What stands before and after the video tokens. "rest": tokens whose number only the grid tells (past frames in
several compressions; text and audio of a packed sequence): the video tokens are the last ones before the text."""

AXES: dict[str, str] = {
    "CTHW": "latents, channels first",
    "TCHW": "latents, frames first",
    "THWC": "latents, channels last",
    "sizes": "three numbers: the grid itself",
    "shapes": "a list of grids, of which the first",
    "positions": "integer (t, h, w) of every token, [..., N, 3]",
    "unknown": "not to be read from a call's inputs",
}
"""How a forward's arguments tell the grid."""


@dataclass(frozen=True)
class TokenLayout:
    """Order of tokens in a sequence, and the grid of the video tokens once it is known."""

    order: str
    patch: Grid
    """Latent frames, rows and columns that make one token."""
    axes: str = "CTHW"
    """Which of `AXES` the forward's arguments are; for latents the last four axes, whatever comes before."""
    sources: tuple[str, ...] = ("hidden_states",)
    """Names of the forward's arguments that tell the grid."""
    tile: int = 0
    """Side of the square tiles by which the tokens of a frame are ordered; 0: row by row."""
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS and self.order != "unknown":
            raise ModelError(f"token order {self.order!r} is none of {', '.join(ORDERS)}, unknown")
        if self.axes not in AXES:
            raise ModelError(f"axes {self.axes!r} are none of {', '.join(AXES)}")

    @property
    def video_tokens(self) -> int:
        """How many tokens the grid holds."""
        return prod(self._known_grid())

    def with_grid(self, grid: Sequence[int]) -> "TokenLayout":
        """The layout of sequences whose video tokens form this T x H x W grid."""
        frames, height, width = grid
        if self.tile and (height % self.tile or width % self.tile):
            raise ModelError(f"a frame of {height} x {width} tokens cannot be cut into tiles of {self.tile}")
        return replace(self, grid=(_size(frames), _size(height), _size(width)))

    def for_inputs(self, arguments: Mapping[str, Any]) -> "TokenLayout":
        """The layout of one forward, from its arguments by name; without a grid where they do not tell it."""
        values = [arguments.get(name) for name in self.sources]
        if self.axes == "unknown" or any(value is None for value in values):
            return self
        if self.axes == "sizes":
            return self.with_grid([int(value) for value in values if value is not None])
        first: Any = values[0]
        if self.axes == "shapes":
            return self.with_grid(first[0])
        if self.axes == "positions":
            return self.with_grid((first.reshape(-1, 3).amax(dim=0) + 1).tolist())
        latents = first[0] if isinstance(first, list | tuple) else first
        return self.with_grid(self.grid_of(latents.shape))

    def grid_of(self, latent_shape: Sequence[int]) -> Grid:
        """The token grid of latents of this shape; leading axes before the four that `axes` names do not matter."""
        if len(self.axes) != 4 or len(latent_shape) < 4:
            raise ModelError(f"a grid cannot be read from shape {tuple(latent_shape)} with axes {self.axes!r}")
        sizes = dict(zip(self.axes, latent_shape[-4:], strict=True))
        frames, height, width = (sizes[axis] // step for axis, step in zip("THW", self.patch, strict=True))
        return frames, height, width

    def token_index(self, t: Index, h: Index, w: Index) -> Index:
        """Place of the token at (t, h, w) among the video tokens; ints, or integer tensors that broadcast."""
        _, height, width = self._known_grid()
        if not self.tile:
            return (t * height + h) * width + w
        side = self.tile
        tile = h // side * (width // side) + w // side
        return t * (height * width) + tile * side**2 + h % side * side + w % side

    def _known_grid(self) -> Grid:
        if self.grid is None:
            raise ModelError(f"the token grid is not known yet; order {self.order!r} needs it")
        return self.grid


def _size(number: Any) -> Any:
    """A whole number; export's symbols stay what they are, so that its graph holds for other sizes."""
    return number if isinstance(number, torch.SymInt) else int(number)
