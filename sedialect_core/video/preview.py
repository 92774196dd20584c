"""What a video will look like, while it is sampled: colours straight from the latents, without decoding them.

A video autoencoder's latents are nearly a linear function of the colours that they stand for. The map back is fitted once,
by least squares, on a few smooth colour clips that the autoencoder encodes; then a preview costs one small matrix product.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ..errors import ModelError, first_line
from .mp4 import Frames, to_bytes

PICTURES, SIDE = 16, 64  # the pictures that the map is fitted on
RIDGE = 1e-3  # keeps the map small where there are more latent channels than the pictures tell apart
TEMPORAL_RATIO = 4  # frames in one latent frame, where the pipeline does not say


class LinearMap(NamedTuple):
    """From latent channels to red, green and blue in 0..1: weight [C, 3], bias [3]."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class LatentPreview:
    """The map of a video's first latent frame, which stands for one picture, and of the later ones, for several each."""

    first: LinearMap
    later: LinearMap

    @classmethod
    def fit(cls, pipe: Any) -> "LatentPreview":
        """The maps of a pipeline's autoencoder, in the normalisation in which its pipeline samples.

        Raises:
            ModelError: the pipeline has no video autoencoder that encodes short clips.
        """
        vae = getattr(pipe, "vae", None)
        if vae is None or not hasattr(vae, "encode"):
            raise ModelError(f"{type(pipe).__name__} has no autoencoder that encodes; its latents cannot be previewed")
        pictures = _pictures()
        try:
            latents = _encode(vae, pictures, 1 + getattr(pipe, "vae_scale_factor_temporal", TEMPORAL_RATIO))
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise ModelError(f"{type(vae).__name__} encodes no short clips ({first_line(error)}): no preview") from error
        small = functional.interpolate(pictures, size=latents.shape[-2:], mode="area")
        return cls(*(_least_squares(latents[:, :, frame], small) for frame in (0, -1)))

    def frames(self, latents: torch.Tensor) -> Frames | None:
        """The first video of latents [N, C, T, H, W] or [N, T, C, H, W] as frames [T, H, W, 3]; None for packed ones."""
        channels = self.first.weight.shape[0]
        if latents.ndim != 5:
            return None
        video = latents[0].detach().float().cpu()
        if video.shape[0] != channels:
            video = video.movedim(1, 0)
        if video.shape[0] != channels:
            return None
        video = video.movedim(0, -1)
        parts = [part @ of.weight + of.bias for part, of in ((video[:1], self.first), (video[1:], self.later))]
        return to_bytes(torch.cat(parts).numpy())


def _least_squares(latents: torch.Tensor, colours: torch.Tensor) -> LinearMap:
    """The map from latents [N, C, h, w] to colours [N, 3, h, w] with the least squared error."""
    x, y = (part.movedim(1, -1).flatten(0, 2).double() for part in (latents, colours))
    centre, mean = x.mean(0), y.mean(0)
    gram = (x - centre).T @ (x - centre)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, (x - centre).T @ (y - mean))
    return LinearMap(weight.float(), (mean - centre @ weight).float())


class CleanLatents:
    """Estimates, step by step, the latents that a sampling run will end with: without them early previews are noise.

    A flow's velocity is the change of its latents over that of its noise level, so two neighbouring steps tell where the
    line between them ends. Samplers of other kinds are shown as they are.
    """

    def __init__(self, scheduler: Any) -> None:
        self._sigmas = getattr(scheduler, "sigmas", None) if _is_flow(scheduler) else None
        self._before: torch.Tensor | None = None

    def after_step(self, step: int, latents: torch.Tensor) -> torch.Tensor | None:
        """The estimate after the sampler's step number `step`, from 1; None where there is not enough yet to tell."""
        if self._sigmas is None or step >= len(self._sigmas):
            return latents
        before, self._before = self._before, latents.detach().clone()
        sigma, sigma_before = float(self._sigmas[step]), float(self._sigmas[step - 1])
        if sigma == 0:
            return latents
        if before is None or sigma == sigma_before:
            return None
        return latents - sigma * (latents - before) / (sigma - sigma_before)


def _is_flow(scheduler: Any) -> bool:
    config = getattr(scheduler, "config", {})
    return "Flow" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"


def _pictures() -> torch.Tensor:
    """Smooth colour fields in 0..1, [N, 3, SIDE, SIDE], the same every time; the first few are flat."""
    random = torch.Generator().manual_seed(0)
    flat = torch.rand(PICTURES // 3, 3, 1, 1, generator=random).expand(-1, -1, SIDE, SIDE)
    coarse = torch.rand(PICTURES - len(flat), 3, 5, 5, generator=random)
    return torch.cat([flat, functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)])


@torch.no_grad()
def _encode(vae: Any, pictures: torch.Tensor, frames: int) -> torch.Tensor:
    """Latents [N, C, t, h, w] on the CPU of clips that stand still, scaled as diffusers' pipelines scale them."""
    parameter = next(vae.parameters())
    clips = (2 * pictures - 1).unsqueeze(2).expand(-1, -1, frames, -1, -1).to(parameter.device, parameter.dtype)
    latents = torch.cat([vae.encode(clip).latent_dist.mode() for clip in clips.split(4)]).float().cpu()

    def setting(name: str) -> Any:
        buffers = dict(vae.named_buffers(recurse=False))  # LTX keeps its mean as a buffer
        return buffers[name] if name in buffers else vae.config.get(name)

    mean, std, factor = setting("latents_mean"), setting("latents_std"), vae.config.get("scaling_factor") or 1.0
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1, 1)
        mean, std = (torch.as_tensor(value).float().cpu().view(shape) for value in (mean, std))
        latents = (latents - mean) / std
    return latents * factor
