"""Results as JSON, as Markdown and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ...sedialect_core.environment import environment, machine_line
from ...sedialect_core.storage.atomic import write_text
from .job import Job
from .runner import Result
from .statistics import Interval, bootstrap, paired_difference

PART = "bench quality"  # the name of its marks in a document


class Column(NamedTuple):
    """How a metric is printed: its heading, its digits, and whether the difference to the base has a column, too."""

    metric: str
    heading: str
    digits: int
    paired: bool


COLUMNS = {
    "velocity": Column("velocity", "velocity error", 4, True),
    "psnr": Column("psnr", "PSNR, dB", 2, True),
    "ssim": Column("ssim", "SSIM", 4, False),
    "cvvdp": Column("cvvdp", "cvvdp, JOD", 3, True),
    "flicker": Column("flicker", "flicker error", 3, True),
    "warping": Column("warping", "warping error", 3, True),
    "accuracy": Column("accuracy", "prompt accuracy", 3, True),
    "same_code": Column("same_code", "same-code rate", 3, False),
    "difference_error": Column("difference_error", "difference error", 5, True),
}
OF_TRAJECTORY = ("velocity", "same_code", "difference_error")
NOTES = {
    "velocity": "*Velocity error*: relative L2 distance of the guided velocity to the 16-bit one, on the 16-bit latents, "
    "the mean over the steps; *by thirds*: the mean over the first, middle and last third of the steps looked at.",
    "same_code": "*Same-code rate*: of numbers that are equal (to 1/64) in one place of neighbouring latent frames, how "
    "many are coded alike; *difference error*: squared error of the difference of these tokens, by their energy.",
    "psnr": "*PSNR*, *SSIM*: to the 16-bit video.",
    "cvvdp": "*cvvdp*: ColorVideoVDP on a full-HD display; 10 is no visible difference.",
    "flicker": "*Flicker error*: how much the error changes from frame to frame, levels of 255.",
    "warping": "*Warping error*: change along the 16-bit video's optical flow, levels of 255.",
    "accuracy": "*Prompt accuracy*: the part of the attributes in the prompt that a small classifier sees in the video.",
}


def to_dict(job: Job, results: Sequence[Result], base: str) -> dict[str, Any]:
    """Everything: settings, machine, versions, date, every pair's values, and the means with their intervals."""
    by_name = {result.arm.name: result for result in results}
    return {
        **environment(),
        "job": asdict(job),
        "base": base,
        "arms": [
            {
                **result.arm.key(),
                "group": result.arm.group,
                "weight_bits": result.bits.weight,
                "activation_bits": result.bits.activation,
                "seconds": result.seconds,
                "worst_tenth": {c.metric: w for c in COLUMNS.values() if (w := result.worst_tenth(c.metric)) is not None},
                "means": {c.metric: bootstrap(v) for c in COLUMNS.values() if (v := result.column(c.metric))},
                "minus_base": {c.metric: d for c in COLUMNS.values() if (d := difference(result, by_name[base], c.metric))},
                "velocity_by_step": result.curve(),
                "pairs": result.pairs,
            }
            for result in results
        ],
    }


def difference(result: Result, base: Result, metric: str) -> Interval | None:
    """An arm's paired difference to the base, or None where one of them lacks the metric or they are the same."""
    values, others = result.column(metric), base.column(metric)
    return paired_difference(values, others) if values and others and result.arm.name != base.arm.name else None


def markdown(job: Job, results: Sequence[Result], base: str) -> str:
    """The tables, what their columns mean, and what they were measured on."""
    by_name = {result.arm.name: result for result in results}
    present = [column for column in COLUMNS.values() if any(result.column(column.metric) for result in results)]
    of_trajectory = [column for column in present if column.metric in OF_TRAJECTORY]
    of_videos = [column for column in present if column.metric not in OF_TRAJECTORY]
    parts = []
    for columns in (of_trajectory, of_videos):
        rows = [result for result in results if any(result.column(column.metric) for column in columns)]
        if columns and rows:
            parts.append(_table(rows, columns, by_name[base]))
    notes = [NOTES[column.metric] for column in present if column.metric in NOTES]
    notes.insert(
        0,
        "Means over the pairs with 95 % bootstrap intervals; *worst tenth*: the mean over the worst tenth of the pairs; "
        f"*minus base*: paired difference to {base}.",
    )
    return "\n\n".join([*parts, " ".join(notes), _conditions(job)])


def _table(results: Sequence[Result], columns: Sequence[Column], base: Result) -> str:
    heads = ["arm", "weight bits", "activation bits"]
    for column in columns:
        heads += [column.heading, "worst tenth"]
        heads += ["minus base"] if column.paired else []
        heads += ["by thirds"] if column.metric == "velocity" else []
    lines = [table_line(heads), table_line(["---"] * len(heads))]
    group = None
    for result in results:
        if result.arm.group != group:
            group = result.arm.group
            lines.append(table_line([f"**{group}**", *[""] * (len(heads) - 1)]))
        lines.append(table_line(_cells(result, columns, base)))
    return "\n".join(lines)


def _cells(result: Result, columns: Sequence[Column], base: Result) -> list[str]:
    cells = [result.arm.name, f"{result.bits.weight:.2f}", f"{result.bits.activation:.2f}"]
    for column in columns:
        values = result.column(column.metric)
        worst = result.worst_tenth(column.metric)
        cells.append(interval_text(bootstrap(values), column.digits) if values else "")
        cells.append("" if worst is None else f"{worst:.{column.digits}f}")
        if column.paired:
            apart = difference(result, base, column.metric)
            cells.append(interval_text(apart, column.digits, sign="+") if apart else "base" if result is base else "")
        if column.metric == "velocity":
            cells.append(" / ".join(f"{value:.3f}" for value in _thirds(result.curve())))
    return cells


def _thirds(curve: Sequence[float]) -> list[float]:
    ends = [round(part * len(curve) / 3) for part in range(4)]
    parts = [curve[start:stop] for start, stop in pairwise(ends)]
    return [sum(part) / len(part) for part in parts if part]


def interval_text(interval: Interval, digits: int, sign: str = "") -> str:
    """A mean and its interval."""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _conditions(job: Job) -> str:
    first = job.requests[0]
    size = f"{first.steps} steps"
    if first.num_frames and first.width and first.height:
        size = f"{first.num_frames} frames of {first.width}x{first.height}, {size}"
    if first.guidance_scale is not None:
        size += f", guidance {first.guidance_scale:g}"
    looked = "all" if job.forced_steps is None else f"{job.forced_steps} of them"
    pairs = f"{len(job.requests)} pairs of prompt and seed in batches of {job.batch}, {size}; velocity at {looked}"
    return f"{_model_text(job)}: {pairs}; {job.dtype}. {machine_line(environment())}"


def _model_text(job: Job) -> str:
    """The model, and what was done to it before anything was measured."""
    text = Path(job.model).name
    if job.fast:
        text += " with its LoRA for few steps"
    if job.lora is not None:
        text += f" with {Path(job.lora).name}"
    return text if job.planted == 1 else f"{text}, outlier channels x{job.planted} planted"


def write_results(job: Job, results: Sequence[Result], base: str, folder: Path) -> list[Path]:
    """Write `quality.json`, `quality.md` and `quality.png` to the folder, and return their paths.

    Raises:
        InputError: the folder cannot be written, or Pillow is missing.
    """
    from .chart import draw

    data = json.dumps(to_dict(job, results, base), indent=1) + "\n"
    text = markdown(job, results, base) + "\n"
    return [
        write_text(folder / "quality.json", data),
        write_text(folder / "quality.md", text),
        draw(results, base, folder / "quality.png"),
    ]
