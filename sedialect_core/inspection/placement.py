"""Where in the input of a layer the video tokens stand, and what therefore can be done for it."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ModelError
from . import TokenLayout
from .sites import Stream

Where = Literal["all", "first", "last", "either", "none"]

REARRANGED = {"frame": "its sequences are single frames", "place": "its sequences are single places over time"}
JOINT: dict[str, Where] = {"text_video": "last", "video_text": "first", "history_video": "last"}


@dataclass(frozen=True)
class Placement:
    """Rows of a sequence that are the video tokens being made.

    where   "all", the "first" or the "last" of the sequence; "either": all of them or, in another call, none; "none": text
    others  whether the remaining rows are text
    """

    where: Where
    others: bool = False

    def fits(self, length: int, video_tokens: int) -> bool:
        """Whether a sequence of this length can hold the grid's tokens, so that `span` has an answer."""
        if self.where == "none":
            return True
        if self.where == "all" and length != video_tokens:
            return False
        return video_tokens > 0 and (self.where == "either" or length >= video_tokens)

    def span(self, length: int, video_tokens: int) -> tuple[int, int]:
        """Rows start .. stop - 1 of a sequence of this length.

        Raises:
            ModelError: the sequence is shorter than the grid, or has rows that nothing accounts for.
        """
        if self.where == "none":
            return 0, 0
        if not video_tokens:
            raise ModelError(
                "the token grid is not known: this forward lacks the arguments that tell it; pass them, or switch "
                "salient_ratio and semantic off"
            )
        if self.where == "either" and length != video_tokens:
            return 0, 0
        if length < video_tokens or (self.where == "all" and length != video_tokens):
            raise ModelError(
                f"a layer reads {length} tokens where the grid has {video_tokens}; switch salient_ratio and semantic off if "
                "the sequence is split over devices, or pass the model's TokenLayout"
            )
        return (length - video_tokens, length) if self.where == "last" else (0, video_tokens)


def placement_of(stream: Stream | str, layout: TokenLayout) -> Placement | str:
    """Where the video tokens stand in an input of this stream; or, where that cannot be told, the reason in a sentence."""
    if stream == "text":
        return Placement("none", others=True)
    if stream in REARRANGED:
        return REARRANGED[stream]
    if layout.order == "unknown":
        return "where its video tokens stand is unknown"
    if layout.order == "packed":
        return "its tokens are packed, and where the video's stand differs from call to call"
    if stream == "video":
        return Placement("last" if layout.order.startswith("history") else "all")
    if stream == "joint" and layout.order in JOINT:
        return Placement(JOINT[layout.order], others=not layout.order.startswith("history"))
    if stream == "joint":
        return f"the order {layout.order!r} does not tell how many tokens stand around the video's"
    if stream == "either":
        return Placement("either", others=True)
    if stream == "other" and layout.order == "video":
        return Placement("either", others=True)  # of a model that no table knows; sequences of the grid's size are the video
    return f"its tokens are neither video nor text ({stream})"


def attention_placement(layout: TokenLayout) -> Placement | str:
    """Where the video tokens stand among the keys of their self-attention: text joins them in some models."""
    joint = layout.order in JOINT or layout.order.endswith("text")
    return placement_of("joint" if joint else "video", layout)


def grid_is_told(layout: TokenLayout) -> bool:
    """Whether the T x H x W grid is known, or will be from the arguments of a forward."""
    return layout.grid is not None or layout.axes != "unknown"
