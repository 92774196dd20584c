"""What is to be measured: on which pipeline, with which prompts and seeds, by which metrics; and the digest of all that."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...sedialect_core import demo
from ...sedialect_core.environment import package_versions
from ...sedialect_core.errors import InputError
from ...sedialect_core.video.compute_dtype import choose_dtype
from ...sedialect_core.video.sampling import Request
from . import recognition

ROOT = Path(__file__).parents[2]
# What the numbers come from: where it changes, old results are not gone on with.
SOURCES = (
    "kernels",
    "sedialect_core/codec",
    "sedialect_core/formatbook",
    "sedialect_core/inspection",
    "sedialect_core/semantics",
    "sedialect_core/calibration",
    "sedialect_core/integrations",
    "sedialect_core/plan",
    "sedialect_core/quantize",
    "sedialect_core/linear.py",
    "sedialect_core/shared_input.py",
    "sedialect_core/video/metrics.py",
    "bench/peers",
    "bench/quality/codes.py",
    "bench/quality/measuring.py",
    "bench/quality/recognition.py",
    "bench/quality/trajectory.py",
)
METRICS = ("velocity", "psnr", "ssim", "flicker", "warping", "cvvdp", "accuracy", "same_code")
OF_TRAJECTORY = ("velocity", "same_code")  # these need no video
SETS = {"all": METRICS, "video": ("psnr", "ssim", "flicker", "warping", "cvvdp", "accuracy")}
SEED_STRIDE = 1000  # prompts that are used again have other seeds


@dataclass(frozen=True)
class Job:
    """Everything that decides the numbers, but the arm."""

    model: str
    requests: tuple[Request, ...]
    metrics: tuple[str, ...]
    forced_steps: int | None
    """At how many steps the velocity is measured; None: at all."""
    batch: int
    device: str
    fps: int
    dtype: str
    """That the pipeline computes in."""
    dtype_reason: str = "asked for"
    planted: int = 1
    """How many times larger planted outlier channels are; 1: none are planted."""
    lora: str | None = None
    """A LoRA's file or folder, or its name on the Hub, fused into the 16-bit model before anything is measured."""
    fast: bool = False
    """Whether the bundled model runs with its LoRA for few steps."""

    @property
    def sampled(self) -> bool:
        """Whether a metric needs videos."""
        return any(name not in OF_TRAJECTORY for name in self.metrics)

    @property
    def led(self) -> bool:
        """Whether a metric needs the arms to be led along the 16-bit trajectory."""
        return any(name in OF_TRAJECTORY for name in self.metrics)

    def chunks(self) -> list[tuple[Request, ...]]:
        """The requests, `batch` at a time."""
        return [self.requests[start : start + self.batch] for start in range(0, len(self.requests), self.batch)]

    def digest(self) -> str:
        """Of everything that decides the numbers, but the arm: versions and the code that computes included."""
        versions = package_versions(("torch", "diffusers"))
        data = {"code": source_digest(), "versions": versions, "weights": self._loras(), **asdict(self)}
        del data["dtype_reason"]  # holds times, which differ from run to run
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def _loras(self) -> list[str]:
        """Digests of the LoRA files on this machine: one that is trained again has its old name."""
        path = demo.FEW_STEPS if self.fast else Path(self.lora or "")
        files = sorted(path.glob("*.safetensors")) if self.lora and path.is_dir() else [path]
        return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files if file.is_file()]


def source_digest() -> str:
    """Of the files that the numbers come from."""
    files = [path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py")) or [ROOT / source]]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.is_file())).hexdigest()[:16]


def metrics_of(text: str, requests: Sequence[Request]) -> tuple[str, ...]:
    """Metrics from a list such as `velocity,psnr`, or `all`, or `video`; in their own order.

    Of `all` and `video` what these prompts cannot have is left out.

    Raises:
        InputError: a name is unknown, or accuracy is asked for of prompts whose clips are unknown.
    """
    wanted: set[str] = set()
    for name in text.split(","):
        if name not in SETS and name not in METRICS:
            raise InputError(f"no metric {name!r}; there are {', '.join((*METRICS, *SETS))}")
        wanted |= set(SETS.get(name, (name,)))
    if not recognition.knows([request.prompt for request in requests]):
        if "accuracy" in text.split(","):
            raise InputError("prompt accuracy is known for the bundled model's evaluation prompts alone; leave it out")
        wanted.discard("accuracy")
    return tuple(name for name in METRICS if name in wanted)


def requests_of(pairs: int, prompts: Sequence[tuple[str, int]], template: Request) -> tuple[Request, ...]:
    """`pairs` requests; prompts are used again, with other seeds, where there are fewer.

    Raises:
        InputError: fewer than 2 pairs, from which nothing can be concluded.
    """
    if pairs < 2:
        raise InputError(f"--pairs is {pairs}; take 2 or more, better 64")
    found = []
    for number in range(pairs):
        prompt, seed = prompts[number % len(prompts)]
        found.append(replace(template, prompt=prompt, seed=seed + SEED_STRIDE * (number // len(prompts))))
    return tuple(found)


def bundled_job(pairs: int, changes: Mapping[str, Any], **settings: Any) -> Job:
    """The bundled model with its evaluation prompts at its recommended settings, some of them changed.

    With `fast=True` these are the settings for few steps.
    """
    template = replace(demo.request("-", 0, fast=settings.get("fast", False)), **changes)
    requests = requests_of(pairs, demo.evaluation_prompts(), template)
    return job_of(str(demo.MODEL), requests, fps=demo.defaults()["fps"], **settings)


def job_of(
    model: str, requests: tuple[Request, ...], *, metrics: str, device: str, dtype: str | None = None, **settings: Any
) -> Job:
    """A job whose metrics are given as text, and whose dtype, where none is given, is the one that suits the device.

    Raises:
        InputError: a setting is out of range.
    """
    for name in ("batch", "forced_steps"):
        value = settings.get(name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    choice = choose_dtype(device, dtype)
    settings |= {"device": device, "dtype": choice.name, "dtype_reason": choice.reason}
    return Job(model, requests, metrics_of(metrics, requests), **settings)
