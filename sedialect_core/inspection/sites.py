"""What inspection says about one linear layer: where it lies and whose tokens its input rows are."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["attention", "feed_forward", "modulation", "embedder", "head", "norm", "other"]
"""What a linear does. Only "attention" and "feed_forward" carry whole token sequences and most of the weights;
"modulation" turns a step's vector into shifts, scales and gates; the others stay as they are."""

Stream = Literal["video", "text", "joint", "either", "frame", "place", "image", "audio", "vector", "other"]
"""Whose tokens the rows of a linear's input are.

video   video tokens, in the order of the model's `TokenLayout`, with history tokens where the layout has them
text    text tokens, with whatever a model appends to its text stream
joint   text and video (and audio) in one sequence
either  called twice a forward: once with the video tokens, once with the text tokens
frame   video tokens as [B * T, H * W, C]: a sequence is one frame
place   video tokens as [B * H * W, T, C]: a sequence is one place over time
image   condition tokens that are neither text nor the video being made: CLIP image features, faces, identities
audio   audio tokens
vector  one row a sample, step or frame: no token sequence
other   unknown, or not worth a name: nothing may be assumed about the rows
"""


@dataclass(frozen=True)
class LinearSite:
    """A linear layer of a model, classified. Pure data: it holds no module and no tensor."""

    name: str
    """Dotted name of the `nn.Linear` itself, so under peft it ends in `.base_layer`."""
    in_features: int
    out_features: int
    role: Role
    stream: Stream
    block: str | None
    """Dotted name of the transformer block it lies in (`blocks.3`), None outside of blocks."""
    shared_input: str | None
    """The same for linears of one block that read equal inputs in every forward, so that one encoding serves all
    of them; None for a linear that has its input for itself. Equal values, not always the same tensor, and a forward
    may leave some of them out. Inputs of different blocks have different keys even where they are equal, as the text
    states that every block's cross-attention reads."""
    linear: bool = False
    """Whether its attention is linear or a recurrence: there is no softmax that could be looked at."""
