"""Two videos in one player."""

from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import io

from ..sedialect_core.errors import InputError
from ..sedialect_core.video.differences import series
from ..sedialect_core.video.mp4 import Frames, write_mp4
from .progress import Progress
from .saving import check_prefix, place_for
from .sockets import CATEGORY

UI_KEY = "sedialect_compare"  # what web/js listens for
SMALLEST = 12  # pixels: the window of SSIM


class SeDialectCompare(io.ComfyNode):
    """Saves two videos, measures them frame by frame, and shows them in sync."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        videos = [io.Image, io.Video]
        return io.Schema(
            node_id="SeDialectCompare",
            display_name="SeDialect Compare",
            category=CATEGORY,
            description="Plays two videos in sync inside the node: a slider between them, side by side, or their "
            "difference, with PSNR, SSIM and flicker of every frame. Both are saved.",
            search_aliases=["compare videos", "side by side", "wipe", "A/B"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("left", types=videos, tooltip="The reference: frames or a video."),
                io.MultiType.Input("right", types=videos, tooltip="What is compared with it."),
                io.Float.Input("fps", default=16.0, min=1.0, max=240.0, step=0.01, tooltip="Frames a second."),
                io.String.Input("left_label", default="16 bit", optional=True, tooltip="Written on the left video."),
                io.String.Input(
                    "right_label", default="SemanticDialect", optional=True, tooltip="Written on the right video."
                ),
                io.String.Input(
                    "filename_prefix", default="sedialect/compare", optional=True, tooltip="In the output folder."
                ),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Whether videos can be written, before they are sampled."""
        return check_prefix(filename_prefix)

    @classmethod
    def execute(
        cls,
        left: Any,
        right: Any,
        fps: float = 16.0,
        left_label: str = "16 bit",
        right_label: str = "SemanticDialect",
        filename_prefix: str = "sedialect/compare",
    ) -> io.NodeOutput:
        """Write, measure, and tell the player."""
        reference, video = _frames(left), _frames(right)
        _check(reference, video)
        with Progress("writing") as progress:
            payload = {
                "left": _written(reference, fps, f"{filename_prefix}_left"),
                "right": _written(video, fps, f"{filename_prefix}_right"),
                "labels": [left_label, right_label],
                "fps": fps,
                "frames": len(reference),
            }
            progress.on_phase("measuring")
            payload["series"] = series(_planes(video), _planes(reference))
        return io.NodeOutput(ui={UI_KEY: [payload]})


def _frames(given: Any) -> Frames:
    """Bytes [T, H, W, 3] of an IMAGE batch or a VIDEO."""
    images: torch.Tensor = given if isinstance(given, torch.Tensor) else given.get_components().images
    rounded: Frames = (images[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return rounded


def _planes(frames: Frames) -> torch.Tensor:
    return torch.from_numpy(frames).movedim(-1, 1)


def _check(reference: Frames, video: Frames) -> None:
    if reference.shape != video.shape:
        (a, b, c, _), (d, e, f, _) = reference.shape, video.shape
        raise InputError(
            f"left has {a} frames of {c}x{b} and right {d} of {f}x{e}; make both with the same length and size, as from "
            "one empty latent"
        )
    if min(reference.shape[1:3]) < SMALLEST:
        raise InputError(f"frames of {reference.shape[2]}x{reference.shape[1]} are too small to compare; use larger ones")


def _written(frames: Frames, fps: float, prefix: str) -> dict[str, str]:
    """The place of a saved video, as the browser asks for it."""
    height, width = frames.shape[1:3]
    folder, name, subfolder = place_for(prefix, image_width=width, image_height=height)
    filename = f"{name}.mp4"
    try:
        write_mp4(folder / filename, frames, Fraction(fps).limit_denominator(1001))
    except OSError as error:
        raise InputError(f"cannot write {filename} to {folder}: {error.strerror or error}; make room there") from error
    return {"filename": filename, "subfolder": subfolder, "type": "output"}
