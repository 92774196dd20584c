"""Measures one arm on one batch: led along the 16-bit trajectory, and with its own videos."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...sedialect_core.errors import InputError, first_line
from ...sedialect_core.inspection.denoisers import denoisers
from ...sedialect_core.video import metrics
from ...sedialect_core.video.sampling import Request
from .arms import Arm
from .codes import CodeWatch
from .job import Job
from .recognition import load_recognizer, prompt_accuracy
from .trajectory import Trajectory, forced, recording, spread

Values = dict[str, float | list[float]]
CODE_STEPS = 3  # at which codes are compared: they are alike at neighbouring steps, and comparing takes time


@dataclass(frozen=True)
class Reference:
    """What the 16-bit pipeline made of a batch; videos as bytes [B, T, 3, H, W] and flows where metrics need them."""

    requests: tuple[Request, ...]
    trajectory: Trajectory
    videos: torch.Tensor | None
    flows: torch.Tensor | None


def make_reference(pipe: Any, job: Job, requests: tuple[Request, ...]) -> Reference:
    """Sample a batch in 16 bit and keep what the metrics compare with, on the CPU."""
    with recording(denoisers(pipe)) as calls:
        videos = sample_batch(pipe, requests, decode=job.sampled)
    guidance = float(getattr(pipe, "guidance_scale", None) or 1)
    flows = None
    if videos is not None and "warping" in job.metrics:
        flows = metrics.optical_flow(videos).cpu()
    kept = None if videos is None else videos.cpu()
    return Reference(requests, Trajectory(len(requests), guidance, tuple(calls)), kept, flows)


def measure_batch(pipe: Any, job: Job, arm: Arm, reference: Reference) -> list[Values]:
    """The metrics of each pair of a batch, by the arm that is in the pipeline."""
    size = -(-len(reference.requests) // arm.parts)
    values: list[Values] = []
    for start in range(0, len(reference.requests), size):
        rows = slice(start, start + size)
        part = Reference(
            reference.requests[rows],
            reference.trajectory.part(rows),
            None if reference.videos is None else reference.videos[rows],
            None if reference.flows is None else reference.flows[rows],
        )
        found = _velocity_errors(pipe, job, arm, part) if job.led else [{} for _ in part.requests]
        if arm.sampled and part.videos is not None:
            for pair, of_video in zip(found, _video_metrics(pipe, job, part), strict=True):
                pair.update(of_video)
        values += found
    return [{name: _rounded(value) for name, value in pair.items()} for pair in values]


def sample_batch(pipe: Any, requests: Sequence[Request], decode: bool) -> torch.Tensor | None:
    """Videos of a batch as bytes [B, T, 3, H, W] where `decode`. The noise of each depends on its seed alone.

    Raises:
        InputError: the pipeline refuses the requests.
    """
    pipe.set_progress_bar_config(disable=True)
    arguments = {**requests[0].arguments(), "prompt": [request.prompt for request in requests]}
    unknown = sorted(arguments.keys() - inspect.signature(pipe.__call__).parameters.keys())
    if unknown:
        raise InputError(f"{type(pipe).__name__} takes no {', '.join(unknown)}; leave it out")
    noise = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    try:
        with torch.no_grad():
            made = pipe(**arguments, generator=noise, output_type="pt" if decode else "latent").frames
    except ValueError as error:
        raise InputError(f"{type(pipe).__name__} refuses this request: {first_line(error)}") from error
    return (made.clamp(0, 1) * 255).round().to(torch.uint8) if decode else None


def _rounded(value: float | list[float]) -> float | list[float]:
    """Six digits: more than mean anything, and files of half the size."""
    return [float(f"{one:.6g}") for one in value] if isinstance(value, list) else float(f"{value:.6g}")


def _velocity_errors(pipe: Any, job: Job, arm: Arm, reference: Reference) -> list[Values]:
    trajectory = reference.trajectory
    seen = spread(trajectory.steps, job.forced_steps)
    models = denoisers(pipe)
    with CodeWatch(models, len(reference.requests), job.metrics) as codes:
        codes.steps = spread(trajectory.steps, CODE_STEPS) & seen
        with forced(models, trajectory, seen, codes.at_step, skip=not arm.every_step) as calls:
            sample_batch(pipe, reference.requests, decode=False)
    own = Trajectory(trajectory.size, trajectory.guidance, tuple(calls)).velocities(job.device, seen)
    wanted = trajectory.velocities(job.device, seen)
    errors: dict[str, list[torch.Tensor]] = {}
    for step in sorted(seen):
        for branch, velocity in own[step].items():
            errors.setdefault(branch, []).append(metrics.relative_error(velocity, wanted[step][branch]).cpu())
    by_step = {branch: torch.stack(parts, 1).tolist() for branch, parts in errors.items()}
    return [_pair_values(by_step, pair) | found for pair, found in enumerate(codes.values())]


def _pair_values(by_step: dict[str, list[list[float]]], pair: int) -> Values:
    found: Values = {"velocity_by_step": by_step["guided"][pair]}
    for branch, errors in by_step.items():
        name = "velocity" if branch == "guided" else f"velocity_{branch}"
        found[name] = sum(errors[pair]) / len(errors[pair])
    return found


def _video_metrics(pipe: Any, job: Job, reference: Reference) -> list[Values]:
    videos = sample_batch(pipe, reference.requests, decode=True)
    assert videos is not None and reference.videos is not None
    wanted = reference.videos.to(videos.device)
    found: dict[str, torch.Tensor] = {}
    for name in job.metrics:
        if name == "psnr":
            found[name] = metrics.psnr(videos, wanted)
        elif name == "ssim":
            found[name] = metrics.ssim(videos, wanted)
        elif name == "flicker":
            found[name] = metrics.flicker(videos, wanted)
        elif name == "warping" and reference.flows is not None:
            found[name] = metrics.warping(videos, wanted, reference.flows.to(videos.device))
        elif name == "cvvdp":
            found[name] = metrics.perceptual(videos, wanted, job.fps)
        elif name == "accuracy":
            prompts = [request.prompt for request in reference.requests]
            found[name] = prompt_accuracy(load_recognizer(str(videos.device)), videos.float() / 255, prompts)
    columns = {name: values.cpu().tolist() for name, values in found.items()}
    return [{name: column[pair] for name, column in columns.items()} for pair in range(len(videos))]
