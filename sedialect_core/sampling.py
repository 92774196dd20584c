"""One video out of any diffusers video pipeline, with the time that its transformers took."""

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .errors import InputError, SeDialectError, first_line
from .video import Frames, to_bytes


@dataclass(frozen=True)
class Request:
    """What to generate. None leaves a setting to the pipeline."""

    prompt: str
    seed: int = 0
    steps: int = 20
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("the prompt is empty; say what the video shows, as in --prompt 'a red ball moves to the left'")
        for name in ("steps", "height", "width", "num_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a pipeline's call, without the generator."""
        optional = ("negative_prompt", "guidance_scale", "height", "width", "num_frames")
        given = {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        return {"prompt": self.prompt, "num_inference_steps": self.steps, **given}


class Watch:
    """Follows a run while it is made. This one does nothing; what a method raises stops the run and reaches the caller."""

    def on_stage(self, label: str) -> None:
        """A part of the run begins."""

    def on_forward(self) -> None:
        """A transformer is about to be called: at least once a step, and the finest place to stop at."""

    def on_step(self, step: int, latents: torch.Tensor) -> None:
        """The sampler has made its step number `step`, from 1, with these latents. Not every pipeline tells its steps."""


@dataclass(frozen=True)
class Sample:
    """A generated video [T, H, W, 3] and the seconds that the transformers took for one step."""

    frames: Frames
    seconds_per_step: float


def sample(pipe: Any, models: dict[str, nn.Module], request: Request, label: str, watch: Watch | None = None) -> Sample:
    """Generate. The noise depends on the seed alone, whatever the device: it is drawn on the CPU.

    Args:
        watch: follows the run, in place of a progress bar.

    Raises:
        InputError: the pipeline refuses the request's size or arguments.
    """
    if watch is not None:
        watch.on_stage(label)
    with _timed(models, watch) as seconds:
        frames = generate(pipe, request, label, progress=watch is None, watch=watch).frames[0]
    return Sample(to_bytes(frames), sum(seconds) / request.steps)


def generate(
    pipe: Any,
    request: Request,
    label: str,
    output_type: str = "np",
    progress: bool = True,
    watch: Watch | None = None,
) -> Any:
    """What the pipeline returns for a request; `output_type="latent"` leaves the decoding out.

    Args:
        watch: is told the steps, where the pipeline tells them.

    Raises:
        InputError: the pipeline refuses the request's size or arguments.
    """
    arguments = request.arguments()
    known = inspect.signature(pipe.__call__).parameters.keys()
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise InputError(f"{type(pipe).__name__} takes no {', '.join(unknown)}; leave it out")
    pipe.set_progress_bar_config(desc=label, disable=not progress)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    if watch is not None and "callback_on_step_end" in known:
        arguments["callback_on_step_end"] = _step_callback(watch)
    try:
        return pipe(**arguments, generator=generator, output_type=output_type)
    except SeDialectError:  # also a ValueError; it says what it means already
        raise
    except ValueError as error:
        raise InputError(f"{type(pipe).__name__} refuses this request: {first_line(error)}") from error


def load_pipeline(model: str | Path, dtype: torch.dtype, device: str) -> Any:
    """A diffusers pipeline from a folder or from the Hub, on `device`.

    Raises:
        InputError: there is no such pipeline, or it cannot be loaded.
    """
    path = Path(model)
    if path.exists() and not (path / "model_index.json").is_file():
        raise InputError(f"{path} is no diffusers pipeline: it has no model_index.json; pass the folder that holds one")
    try:
        from diffusers import DiffusionPipeline
    except ImportError:
        raise InputError("pipelines need diffusers; install it: pip install 'sedialect[demo]'") from None
    try:
        return DiffusionPipeline.from_pretrained(str(model), dtype=dtype).to(device)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot load the pipeline {str(model)!r}: {first_line(error)}") from error


def pick_device(name: str) -> str:
    """`auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        InputError: the device is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {first_line(error)}") from None
    return name


def _step_callback(watch: Watch) -> Callable[..., dict[str, Any]]:
    """What diffusers calls after each step."""

    def tell(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        watch.on_step(step + 1, tensors["latents"])
        return {}

    return tell


@contextmanager
def _timed(models: dict[str, nn.Module], watch: Watch | None = None) -> Iterator[list[float]]:
    """Seconds of every forward of the models while the block runs; `watch` is told before each."""
    seconds: list[float] = []
    started: list[float] = []

    def begin(*_: object) -> None:
        if watch is not None:
            watch.on_forward()
        started.append(_now())

    def end(*_: object) -> None:
        seconds.append(_now() - started.pop())

    handles: list[RemovableHandle] = [model.register_forward_pre_hook(begin) for model in models.values()]
    handles += [model.register_forward_hook(end) for model in models.values()]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
