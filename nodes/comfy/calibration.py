"""ComfyUI's sampler run to learn what a MODEL's linears read."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import torch

from ...sedialect_core.calibration.cache import CalibrationCache
from ...sedialect_core.calibration.fingerprint import fingerprint
from ...sedialect_core.calibration.gathering import Run, gather, inputs_of
from ...sedialect_core.calibration.prompts import GLANCE_STEPS
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError
from ...sedialect_core.video.sampling import Watch
from .checks import check_quantizable, linear_types

COMPONENT = "diffusion_model"
SAMPLER, SCHEDULER = "euler", "simple"  # what is read depends little on them


@dataclass(frozen=True)
class Sampling:
    """How videos are sampled: one for each conditioning of `positive`.

    diagonal  only root mean squares are collected, in place of moments
    """

    positive: Sequence[Any]
    negative: Sequence[Any]
    latent: Mapping[str, Any]
    seed: int
    steps: int
    cfg: float
    every: int
    diagonal: bool = False

    def glance(self) -> "Sampling":
        """The first of the videos in a few steps, all of which are looked at."""
        steps = min(self.steps, GLANCE_STEPS)
        return replace(self, positive=self.positive[:1], steps=steps, every=1, diagonal=True)

    def described(self) -> list[Any]:
        """All of it as JSON values, prompt by prompt."""
        size = [list(self.latent["samples"].shape), _digest(self.latent["samples"]), _digest(self.negative)]
        return [[_digest(one), self.seed, self.steps, self.cfg, *size] for one in self.positive]


class _Interruptible(Watch):
    def on_forward(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()


def calibrate(patcher: Any, sampling: Sampling, folder: Path, watch: Callable[[int, int], None]) -> CalibrationCache:
    """What the linears of a MODEL read; the MODEL is not changed.

    Moments are summed up in main memory, and kept in a folder of their own in `folder`, where a run that was cancelled
    goes on.

    Args:
        watch: told how many sampling steps are done, of how many.

    Raises:
        ModelError: it cannot be quantized as it is connected.
        InputError: there is no prompt, too few tokens, a non-finite input, too little memory, or the folder fails.
    """
    if not sampling.positive:
        raise InputError("positive holds no conditioning to sample with; connect one, or several by Conditioning (Combine)")
    check_quantizable(patcher)
    network = patcher.model.diffusion_model
    comfy.model_management.unload_model_and_clones(patcher)  # its own weights are looked at, not those with LoRAs
    models = {COMPONENT: network}
    found = inputs_of(COMPONENT, network, SeDialectConfig(), linear_types(network))
    inputs = tuple(replace(entry, diagonal=sampling.diagonal) for entry in found)
    known = {**fingerprint(type(network).__name__, models, sampling.described()), "every": str(sampling.every)}
    place = folder / f"{known['model']}-{known['weights'][:8]}-{known['prompts'][:8]}-{sampling.every}"
    place = place.with_name(f"{place.name}-glance") if sampling.diagonal else place
    cache = CalibrationCache(known, _resolution(patcher, sampling.latent["samples"]), inputs, place)
    run = Run(models, range(len(sampling.positive)), _sampler(patcher, sampling, watch), sampling.every, "cpu")
    return gather(run, cache, torch.device("cpu"), progress=False, watch=_Interruptible())


def _sampler(patcher: Any, sampling: Sampling, watch: Callable[[int, int], None]) -> Callable[[int], None]:
    total = sampling.steps * len(sampling.positive)

    def sample(number: int) -> None:
        def step(done: int, *_: object) -> None:
            watch(number * sampling.steps + done + 1, total)

        latent = comfy.sample.fix_empty_latent_channels(patcher, sampling.latent["samples"])
        comfy.sample.sample(
            patcher,
            comfy.sample.prepare_noise(latent, sampling.seed + number),
            sampling.steps,
            sampling.cfg,
            SAMPLER,
            SCHEDULER,
            [sampling.positive[number]],
            sampling.negative,
            latent,
            callback=step,
            disable_pbar=True,
            seed=sampling.seed + number,
        )

    return sample


def _resolution(patcher: Any, latent: torch.Tensor) -> tuple[int, int, int]:
    """Height, width and frames of the video that a latent [B, C, T, H, W] stands for."""
    frames, height, width = latent.shape[-3:]
    form = patcher.model.latent_format
    return (
        height * form.spacial_downscale_ratio,
        width * form.spacial_downscale_ratio,
        (frames - 1) * form.temporal_downscale_ratio + 1,
    )


def _digest(value: Any) -> str:
    """Of tensors, numbers and texts, also in lists and dictionaries; of other objects, their kind."""
    digest = hashlib.sha256()
    if isinstance(value, torch.Tensor):
        digest.update(repr(tuple(value.shape)).encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, Mapping):
        digest.update("".join(f"{key}={_digest(value[key])};" for key in sorted(value, key=str)).encode())
    elif isinstance(value, list | tuple):
        digest.update("".join(map(_digest, value)).encode())
    elif isinstance(value, str | int | float | bool | None):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
    return digest.hexdigest()
