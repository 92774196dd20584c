"""The matrix products of video transformers at the token counts that their pipelines ask for.

Tokens are counted from pixels: the VAE keeps one frame and then every `time`-th, and every `space`-th pixel each way; the
transformer takes patches of `patch` x `patch` of what remains. Sizes in pixels are the defaults of diffusers' pipelines, but
for those of which it is said.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Video:
    """What is generated, and how much smaller the latents are."""

    width: int
    height: int
    frames: int
    space: int = 8
    time: int = 4
    patch: int = 2

    @property
    def grid(self) -> tuple[int, int, int]:
        """Video tokens along time, height and width."""
        cell = self.space * self.patch
        return (self.frames - 1) // self.time + 1, self.height // cell, self.width // cell

    @property
    def tokens(self) -> int:
        """Video tokens of one sample."""
        frames, height, width = self.grid
        return frames * height * width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames"


@dataclass(frozen=True)
class Layers:
    """One linear, or several that read the same input: [rows, width_in] -> `readers` times [rows, width_out]."""

    model: str
    name: str
    rows: int
    width_in: int
    width_out: int
    readers: int = 1
    compiled: bool = False
    """Whether it is measured compiled as well; compiling takes longer than all of the rest."""

    def __str__(self) -> str:
        return f"{self.model} {self.name}"

    @property
    def shape(self) -> str:
        """M x K x N."""
        times = f" ({self.readers} readers)" if self.readers > 1 else ""
        return f"{self.rows} x {self.width_in} x {self.width_out}{times}"

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.width_in * self.width_out * self.readers


WAN_480P = Video(832, 480, 81)
WAN_720P = Video(1280, 720, 81)  # what the 14B model is made for; the pipeline's default is 480p
HUNYUAN_720P = Video(1280, 720, 129)
HUNYUAN_544P = Video(960, 544, 61)  # smaller than the default, so that attention leaves something to be seen
LTX = Video(704, 512, 161, space=32, time=8, patch=1)
LTX_13B = Video(1216, 704, 121, space=32, time=8, patch=1)  # the size its model card shows
WAN_TEXT, HUNYUAN_TEXT = 512, 256  # text tokens, padded


def _wan(model: str, width: int, hidden: int, compiled: bool) -> tuple[Layers, ...]:
    rows = WAN_480P.tokens
    return (
        Layers(model, "q, k, v", rows, width, width, 3, compiled),
        Layers(model, "feed-forward up", rows, width, hidden, 1, compiled),
        Layers(model, "out", rows, width, width, 1, compiled),
        Layers(model, "feed-forward down", rows, hidden, width, 1, compiled),
    )


def _ltx(model: str, video: Video, width: int) -> tuple[Layers, ...]:
    return (
        Layers(model, "q, k, v", video.tokens, width, width, 3),
        Layers(model, "feed-forward up", video.tokens, width, 4 * width),
        Layers(model, "feed-forward down", video.tokens, 4 * width, width),
    )


# A single-stream block sees video and text in one sequence.
_HUNYUAN_ROWS = HUNYUAN_720P.tokens + HUNYUAN_TEXT
LAYERS: tuple[Layers, ...] = (
    *_wan("wan-14b", 5120, 13824, True),
    Layers("wan-14b", "text k, v", WAN_TEXT, 5120, 5120, 2),
    Layers("wan-14b", "feed-forward up, 720p", WAN_720P.tokens, 5120, 13824),
    *_wan("wan-1.3b", 1536, 8960, False),
    Layers("hunyuan", "q, k, v", _HUNYUAN_ROWS, 3072, 3072, 3),
    Layers("hunyuan", "feed-forward up", _HUNYUAN_ROWS, 3072, 12288),
    Layers("hunyuan", "single-stream out", _HUNYUAN_ROWS, 15360, 3072),
    *_ltx("ltx-2b", LTX, 2048),
    *_ltx("ltx-13b", LTX_13B, 4096),
)
QUICK_LAYERS: tuple[Layers, ...] = (
    Layers("tiny", "q, k, v", 96, 128, 128, 3, True),
    Layers("tiny", "feed-forward up", 96, 128, 256),
)
VIDEOS = {
    "wan-14b, wan-1.3b": WAN_480P,
    "wan-14b, 720p": WAN_720P,
    "hunyuan": HUNYUAN_720P,
    "hunyuan blocks": HUNYUAN_544P,
    "ltx-2b": LTX,
    "ltx-13b": LTX_13B,
}
