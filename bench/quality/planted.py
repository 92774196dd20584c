"""The same arms on models with outlier channels of several sizes: one table of what each size costs each arm."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...sedialect_core.storage.atomic import write_text
from .job import Job
from .rendering import interval_text, markdown, table_line, to_dict, write_results
from .runner import Result
from .statistics import bootstrap

METRIC, DIGITS = "velocity", 4
ByJob = Mapping[Job, Sequence[Result]]


def write_variants(by_job: ByJob, base: str, folder: Path) -> list[Path]:
    """Each variant's results in a folder of its own, and all together as `planted.json` and `planted.md`.

    Raises:
        InputError: the folder cannot be written, or Pillow is missing.
    """
    paths = [path for job, results in by_job.items() for path in write_results(job, results, base, folder / folder_of(job))]
    data: dict[str, Any] = {str(job.planted): to_dict(job, results, base) for job, results in by_job.items()}
    return [
        *paths,
        write_text(folder / "planted.json", json.dumps({"planted": data}, indent=1) + "\n"),
        write_text(folder / "planted.md", variants_markdown(by_job, base) + "\n"),
    ]


def folder_of(job: Job) -> str:
    """The name of a variant's folder."""
    return f"planted-x{job.planted}"


def variants_markdown(by_job: ByJob, base: str) -> str:
    """One line an arm: its velocity error at each size of outliers, its worst tenth, and the ratio of largest to smallest
    size; below, the tables of each variant."""
    jobs = sorted(by_job, key=lambda job: job.planted)
    found = {job: {result.arm.name: result for result in by_job[job]} for job in jobs}
    heads = ["arm", "weight bits", "activation bits"]
    for job in jobs:
        heads += ["none planted" if job.planted == 1 else f"x{job.planted}", "worst tenth"]
    heads.append(f"x{jobs[-1].planted} / {'none' if jobs[0].planted == 1 else f'x{jobs[0].planted}'}")
    lines = [heads, ["---"] * len(heads)]
    for name, first in found[jobs[0]].items():
        results = [found[job].get(name) for job in jobs]
        if first.column(METRIC) and all(results):
            lines.append(_line(name, [result for result in results if result is not None]))
    table = "\n".join(map(table_line, lines))
    title = "Velocity error by the size of planted outlier channels."
    return "\n\n".join([title, table, *(f"**{folder_of(job)}**\n\n{markdown(job, by_job[job], base)}" for job in jobs)])


def _line(name: str, results: Sequence[Result]) -> list[str]:
    cells = [name, f"{results[0].bits.weight:.2f}", f"{results[0].bits.activation:.2f}"]
    means = [bootstrap(result.column(METRIC)) for result in results]
    for result, mean in zip(results, means, strict=True):
        cells += [interval_text(mean, DIGITS), f"{result.worst_tenth(METRIC):.{DIGITS}f}"]
    ratio = means[-1].mean / means[0].mean if means[0].mean else 0.0
    return [*cells, f"{ratio:.2f}" if ratio else ""]
