"""What was measured before and is shown in the last tab: read from `measured/`, and put there.

python -m sedialect.web.kept_results FOLDER...   # of `sedialect bench quality --output` or `sedialect bench speed --output`
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..bench.speed.results import Part, read_parts
from ..sedialect_core.environment import machine_line
from ..sedialect_core.errors import InputError, SeDialectError
from ..sedialect_core.storage.atomic import write_text

MEASURED = Path(__file__).parent / "measured"
QUALITY, SPEED = "quality.json", "speed"
CONDITIONS = (
    "steps",
    "num_frames",
    "height",
    "width",
    "guidance_scale",
)  # of the videos; their prompts are in the documents


class Interval(NamedTuple):
    """A mean over the pairs with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmQuality:
    """How near to 16 bit one arm stays: intervals by metric, and effective bits."""

    name: str
    group: str
    weight_bits: float
    activation_bits: float
    means: dict[str, Interval]


@dataclass(frozen=True)
class Quality:
    """All arms of one run of `sedialect bench quality`, the arm that others are held against, and where it was measured."""

    arms: tuple[ArmQuality, ...]
    base: str
    conditions: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that some arm has."""
        return tuple(dict.fromkeys(metric for arm in self.arms for metric in arm.means))

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of arms, in order."""
        return tuple(dict.fromkeys(arm.group for arm in self.arms))


def read_quality(folder: Path = MEASURED) -> Quality | None:
    """The quality results that lie in a folder, if there are any.

    Raises:
        InputError: the file is none of ours.
    """
    path = folder / QUALITY
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        arms = tuple(_arm(arm) for arm in data["arms"])
        return Quality(arms, data["base"], _conditions(data))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _none_of_ours(path, error) from None


def read_speed(folder: Path = MEASURED) -> dict[str, Part]:
    """The parts of the speed results that lie below a folder; none if it holds none.

    Raises:
        InputError: a file is none of ours.
    """
    return read_parts([folder / SPEED]) if (folder / SPEED).is_dir() else {}


def keep(sources: Sequence[Path], folder: Path = MEASURED) -> list[Path]:
    """Put the results of folders where the page shows them: of quality the means alone, without each pair's values.

    Raises:
        InputError: a folder holds no results, or they are of different GPUs.
    """
    written = []
    speed = [source for source in sources if not (source / QUALITY).is_file()]
    for source in sources:
        if source not in speed:
            written.append(write_text(folder / QUALITY, json.dumps(_without_pairs(source / QUALITY), indent=1) + "\n"))
    if speed:
        (folder / SPEED).mkdir(parents=True, exist_ok=True)
        written += [part.save(folder / SPEED) for part in read_parts(speed).values()]
    return written


def _without_pairs(path: Path) -> dict[str, Any]:
    kept = ("name", "group", "weight_bits", "activation_bits", "means")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        requests = data["job"]["requests"]
        shared = {name: requests[0][name] for name in CONDITIONS if requests[0].get(name) is not None}
        where = {name: data[name] for name in ("device", "python", "versions", "date", "base")}
        arms = [{name: arm[name] for name in kept} for arm in data["arms"]]
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise _none_of_ours(path, error) from None
    return {**where, "job": {"model": Path(data["job"]["model"]).name, "pairs": len(requests), **shared}, "arms": arms}


def _none_of_ours(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is no result of `sedialect bench quality`: {error!r}")


def _arm(data: dict[str, Any]) -> ArmQuality:
    means = {metric: Interval(*map(float, interval)) for metric, interval in data["means"].items()}
    return ArmQuality(data["name"], data["group"], float(data["weight_bits"]), float(data["activation_bits"]), means)


def _conditions(data: dict[str, Any]) -> str:
    job = data["job"]
    videos = f"{job['pairs']} pairs of prompt and seed"
    if {"num_frames", "width", "height"} <= job.keys():
        videos += f", {job['num_frames']} frames of {job['width']}x{job['height']}"
    if "steps" in job:
        videos += f", {job['steps']} steps"
    return f"{videos}. {machine_line(data)}"


def main() -> int:
    """Keep results, and say where."""
    parser = argparse.ArgumentParser(description="put results of the benches where the app shows them")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    try:
        for path in keep(parser.parse_args().folders):
            print(path)
    except SeDialectError as error:
        print(f"sedialect: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
