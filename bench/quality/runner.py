"""Carries out a job: references first, then one arm after the other; every batch of every arm is kept in a file of its own.

An interrupted run goes on where it stopped: what has a file is not measured again.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...sedialect_core.calibration.moments import calibrate
from ...sedialect_core.errors import InputError, first_line
from ...sedialect_core.progress import shown_bar
from ...sedialect_core.storage.atomic import write_text
from .arms import Arm, EffectiveBits, installed
from .job import Job
from .measuring import Reference, Values, make_reference, measure_batch
from .statistics import worst_tenth
from .variants import input_sizes, pipeline_of

HIGHER_IS_NEARER = frozenset({"psnr", "ssim", "cvvdp", "accuracy", "same_code"})


@dataclass(frozen=True)
class Result:
    """One arm's values, pair by pair in the job's order, its effective bits, and the seconds that measuring took."""

    arm: Arm
    bits: EffectiveBits
    pairs: tuple[Values, ...]
    seconds: float

    def column(self, name: str) -> list[float]:
        """One metric of every pair; empty where the arm has not all of it."""
        return column(self.pairs, name)

    def worst_tenth(self, name: str) -> float | None:
        """The mean of one metric over the tenth of the pairs where it is worst; None where the arm has not all of it."""
        values = self.column(name)
        return worst_tenth(values, higher_is_nearer=name in HIGHER_IS_NEARER) if values else None

    def curve(self) -> list[float]:
        """The velocity error at each step that was looked at, the mean over the pairs."""
        rows = [row for pair in self.pairs if isinstance(row := pair.get("velocity_by_step"), list)]
        return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def column(pairs: Sequence[Values], name: str) -> list[float]:
    """One metric of every pair; empty where not all have it."""
    values = [pair[name] for pair in pairs if name in pair]
    return [float(value) for value in values if not isinstance(value, list)] if len(values) == len(pairs) else []


def run(job: Job, arms: Sequence[Arm], output: Path, pipe: Any = None, failed: dict[str, str] | None = None) -> list[Result]:
    """Measure what has not been measured yet, and return the results of all arms that have them.

    Args:
        output: results lie in a folder of it that is named by the job's digest.
        pipe: the job's pipeline, where it is loaded already, with whatever the job plants or fuses.
        failed: where given, an arm that fails is put here with the reason, and the others go on: a run may take an hour, and
            arms are independent of one another.

    Raises:
        InputError: the folder cannot be written, or the pipeline cannot be loaded or refuses the requests.
    """
    folder, chunks = output / job.digest(), job.chunks()
    write_text(folder / "job.json", json.dumps(asdict(job), indent=1) + "\n")
    missing = {arm.name: [n for n in range(len(chunks)) if not place(folder, arm, n).is_file()] for arm in arms}
    needed = sorted({number for numbers in missing.values() for number in numbers})
    if needed:
        pipe = pipe if pipe is not None else pipeline_of(job)
        with shown_bar("16 bit", len(needed) + sum(map(len, missing.values())), "batch") as bar:
            references = {}
            for number in needed:
                bar.set_description("16 bit")
                references[number] = make_reference(pipe, job, chunks[number])
                bar.update()
            calibration = None
            if any(arm.calibrated and missing[arm.name] for arm in arms):
                bar.set_description("calibrating")
                calibration = calibrate(pipe, folder=folder / "calibration", progress=False)
            sizes = input_sizes(pipe, job) if any(arm.smoothed and missing[arm.name] for arm in arms) else None
            for arm in arms:
                bar.set_description(arm.name)
                try:
                    with installed(pipe, arm, calibration, sizes) if missing[arm.name] else nullcontext() as bits:
                        wanted = {number: references[number] for number in missing[arm.name]}
                        _measure(pipe, job, arm, bits, wanted, folder, bar)
                except Exception as error:  # whatever it is, the other arms do not depend on it
                    if failed is None:
                        raise
                    failed[arm.name] = f"{type(error).__name__}: {first_line(error)}"
    whole = [arm for arm in arms if failed is None or arm.name not in failed]
    return [_result(arm, [place(folder, arm, number) for number in range(len(chunks))]) for arm in whole]


def place(folder: Path, arm: Arm, number: int) -> Path:
    """The file of one arm's values on one batch."""
    name = re.sub(r"[^a-z0-9]+", "-", arm.name.lower()).strip("-")
    return folder / f"{name}-{arm.digest()}" / f"batch-{number:03d}.json"


def _measure(
    pipe: Any, job: Job, arm: Arm, bits: EffectiveBits | None, references: Mapping[int, Reference], folder: Path, bar: Any
) -> None:
    """Measure the arm that is in the pipeline on each batch."""
    for number, reference in references.items():
        start = time.perf_counter()
        pairs = measure_batch(pipe, job, arm, reference)
        kept = {"arm": arm.key(), "bits": bits, "seconds": round(time.perf_counter() - start, 2), "pairs": pairs}
        write_text(place(folder, arm, number), json.dumps(kept) + "\n")
        bar.update()


def _result(arm: Arm, paths: Sequence[Path]) -> Result:
    parts = []
    for path in paths:
        try:
            parts.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the results {path}: {error}; remove the file, and it is measured again") from None
    pairs = tuple(pair for part in parts for pair in part["pairs"])
    return Result(arm, EffectiveBits(*parts[0]["bits"]), pairs, sum(part["seconds"] for part in parts))
