"""What is measured between the two videos of a comparison, as a table of rows: a new metric is a new entry of MEASURES."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..sedialect_core.bench import metrics
from ..sedialect_core.comparison import Comparison
from ..sedialect_core.errors import InputError
from ..sedialect_core.report import megabytes
from ..sedialect_core.video import Frames

Distance = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Measure:
    """One metric: videos and references as bytes [B, T, 3, H, W] and frames a second -> one number for each video."""

    key: str
    label: str
    unit: str
    digits: int
    meaning: str
    distance: Distance
    by_frame: bool = False


MEASURES = (
    Measure("psnr_db", "PSNR", "dB", 1, "higher is nearer", lambda v, r, fps: metrics.psnr(v, r), by_frame=True),
    Measure("ssim", "SSIM", "", 3, "1 is equal", lambda v, r, fps: metrics.ssim(v, r), by_frame=True),
    Measure("cvvdp_jod", "ColorVideoVDP", "JOD", 2, "10 is no visible difference", metrics.perceptual),
    Measure("flicker", "Flicker of the error", "of 255", 2, "0 is none", lambda v, r, fps: metrics.flicker(v, r)),
)


@dataclass(frozen=True)
class Measured:
    """Numbers by key, series by label for the plot under the videos, and why a metric is missing, by key."""

    values: dict[str, float]
    series: tuple[dict[str, Any], ...]
    missing: dict[str, str]


def measure(video: Frames, reference: Frames, fps: float) -> Measured:
    """All metrics of a video [T, H, W, 3] against its reference; one whose library is missing is named as such."""
    ours, theirs = (torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).unsqueeze(0) for frames in (video, reference))
    values, missing, series = {}, {}, []
    for one in MEASURES:
        try:
            values[one.key] = one.distance(ours, theirs, fps).item()
        except InputError as error:
            missing[one.key] = str(error)
            continue
        if one.by_frame:
            by_frame = one.distance(ours.movedim(1, 0), theirs.movedim(1, 0), fps).tolist()  # every frame a video of its own
            series.append({"name": one.label, "unit": one.unit, "values": [round(value, 4) for value in by_frame]})
    return Measured(values, tuple(series), missing)


def rows(comparison: Comparison, measured: Measured) -> list[tuple[str, str, str, str]]:
    """Label, 16 bit, quantized, and a remark: what is shown under the videos."""
    models = comparison.report.models
    before, after = (sum(getattr(model, name) for model in models) for name in ("bytes_before", "bytes_after"))
    original, quantized = comparison.original.seconds_per_step, comparison.quantized.seconds_per_step
    cost = [
        ("Transformer memory", f"{megabytes(before)} MB", f"{megabytes(after)} MB", f"{before / after:.1f} times smaller"),
        ("Seconds a step", f"{original:.2f}", f"{quantized:.2f}", models[0].implementation),
        ("Bits a weight", "16", f"{comparison.weight_bits:.2f}", "effective, scales and dialect ids included"),
        ("Bits an activation", "16", f"{comparison.activation_bits:.2f}", "effective, in the quantized layers"),
    ]
    return cost + [_row(one, measured) for one in MEASURES]


def _row(one: Measure, measured: Measured) -> tuple[str, str, str, str]:
    if one.key in measured.missing:
        return one.label, "", "not measured", measured.missing[one.key]
    value = f"{measured.values[one.key]:.{one.digits}f} {one.unit}".strip()
    return one.label, "reference", value, one.meaning
