"""The job: run prompts through a 16-bit pipeline and keep what its linears read, as moments."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import SeDialectConfig
from ..errors import InputError
from ..inspection.denoisers import denoisers
from ..progress import Watch
from ..quantize.checks import check_ready
from ..storage.paths import folder_to_write
from ..video.sampling import Request, generate
from .cache import RESOLUTION, CalibrationCache
from .fingerprint import fingerprint_of
from .gathering import SAVE_EVERY, Run, gather, inputs_of
from .prompts import GLANCE, SELF, requests_of


def calibrate(
    pipe: Any,
    prompts: str | Sequence[str | Request] = SELF,
    *,
    config: SeDialectConfig | None = None,
    size: Mapping[str, int] | None = None,
    folder: str | Path | None = None,
    every: int = 2,
    memory: float | None = None,
    device: str | None = None,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
    watch: Watch | None = None,
) -> CalibrationCache:
    """Learn what the linears of a 16-bit pipeline read. The pipeline is not changed.

    Args:
        prompts: "self" for those that come with sedialect, or texts or requests; a text is sampled in 20 steps at the
            pipeline's own size. "glance": one of those that come with sedialect, in a few steps, all of which are looked
            at, and only the root mean square of each channel, by which layers are equalized.
        config: which layers will be quantized.
        size: `height`, `width` or `num_frames` of the videos, in place of the requests'.
        folder: keep it there, and go on there after an interruption; in memory when not given.
        every: look at every `every`-th sampling step.
        memory: GB (10^9 bytes) of moments at once; half of what is free when not given.
        device: where moments are summed up, such as "cpu"; where each layer computes when not given.
        save_every: seconds after which an unfinished pass is saved, between prompts.
        watch: is told each prompt as a stage, and each forward.

    Raises:
        InputError: too few tokens, a non-finite input, too little memory or room, or a folder with another calibration, or
            in which another process is writing.
        ModelError: the pipeline has no transformer, or is in a state in which it cannot be quantized.

    Example:
        >>> cache = calibrate(pipe, ["a red ball rolls", "rain on a lake"], folder="wan-calibration")
        >>> pipe.enable_sedialect(calibration=cache)
    """
    requests = _resized(requests_of(pipe, prompts), size or {})
    models = denoisers(pipe)
    for name, model in models.items():
        check_ready(name, model)
    place = torch.device(device if device is not None else getattr(pipe, "_execution_device", "cpu"))

    def sample(request: Request) -> None:
        generate(pipe, request, "", "latent", progress=False)

    glance = prompts == GLANCE
    run = Run(models, requests, sample, 1 if glance else every, device)
    cache = _planned(pipe, run, config or SeDialectConfig(), None if folder is None else folder_to_write(folder), glance)
    with _own_bar(pipe):
        return gather(run, cache, place, memory, save_every=save_every, progress=progress, watch=watch)


def calibration_of(
    pipe: Any,
    given: CalibrationCache | str | Path | Sequence[str | Request],
    config: SeDialectConfig,
    progress: bool | Watch = True,
) -> CalibrationCache:
    """The calibration that `enable_sedialect(calibration=...)` asks for: made now, or one that there is.

    Raises:
        InputError: there is none in the folder, or it is of another model; or as `calibrate` says.
        ModelError: as `calibrate` says.
    """
    if isinstance(given, Path) or (isinstance(given, str) and given not in (SELF, GLANCE)):
        given = CalibrationCache.load(given)
    if not isinstance(given, CalibrationCache):
        watch = progress if isinstance(progress, Watch) else None
        return calibrate(pipe, given, config=config, progress=progress is True, watch=watch)
    models = denoisers(pipe)
    given.check_models(models)
    for name in models:
        given.component(name)  # which raises where it is not finished
    return given


def _resized(requests: list[Request], size: Mapping[str, Any]) -> list[Request]:
    if unknown := sorted(size.keys() - set(RESOLUTION)):
        raise InputError(f"size holds {unknown[0]!r}; give {', '.join(RESOLUTION)}, or some of them")
    return [replace(request, **size) for request in requests]


def _planned(pipe: Any, run: Run, config: SeDialectConfig, folder: Path | None, glance: bool) -> CalibrationCache:
    """The calibration to be made."""
    inputs = tuple(entry for name, model in run.models.items() for entry in inputs_of(name, model, config))
    inputs = tuple(replace(entry, diagonal=glance) for entry in inputs)
    sizes = {tuple(getattr(request, name) for name in RESOLUTION) for request in run.prompts}
    if len(sizes) > 1:
        raise InputError("the requests have several resolutions; calibrate at one")
    fingerprint = {**fingerprint_of(pipe, run.models, run.prompts), "every": str(run.every)}
    return CalibrationCache(fingerprint, sizes.pop(), inputs, folder)


@contextmanager
def _own_bar(pipe: Any) -> Iterator[None]:
    """The pipeline's progress bar, which sampling for us switches off, is as it was afterwards."""
    before = pipe.__dict__.get("_progress_bar_config")
    try:
        yield
    finally:
        pipe.__dict__.pop("_progress_bar_config", None)
        if before is not None:
            pipe._progress_bar_config = before
