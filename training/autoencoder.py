"""Training of the video autoencoder (diffusers' `AutoencoderKLWan`, small).

diffusers runs this network chunk by chunk with caches, which is right for long videos and slow for training. The
same function is written here over the whole sequence at once; a test holds both against each other.
"""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanMidBlock, WanResample, WanResidualBlock
from torch import Tensor, nn

from .averaging import Average
from .captions import sample_spec
from .clips import render
from .graphed import GraphedStep
from .optimizer import build_optimizers, make_update, rate_at, set_rates
from .progress import Log, Progress
from .settings import Settings


def build_autoencoder(settings: Settings) -> AutoencoderKLWan:
    """The Wan 2.1 layout with fewer channels; readers of that format recognise it by its layout."""
    return AutoencoderKLWan(base_dim=settings.base_dim, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2)


def _norm_silu_pad(x: Tensor, gamma: Tensor) -> Tensor:
    """Channel norm, SiLU and the next convolution's causal padding in one go, which a compiler fuses to one pass."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scaled = x * (gamma.numel() ** 0.5 / norm.clamp_min(1e-12)).to(x.dtype)
    return F.pad(F.silu(scaled * gamma.to(x.dtype)), (1, 1, 1, 1, 2, 0))


def _fused(x: Tensor, gamma: Tensor) -> Tensor:
    """Compile only for large tensors: each further shape costs seconds of compilation and saves little."""
    if x.is_cuda and torch.is_grad_enabled() and x.numel() > 8_000_000:
        return _compiled_norm()(x, gamma)
    return _norm_silu_pad(x, gamma)


@lru_cache(maxsize=1)
def _compiled_norm() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(_norm_silu_pad, dynamic=False)


def _convolve(layer: nn.Conv3d, padded: Tensor) -> Tensor:
    return F.conv3d(padded, layer.weight, layer.bias)


def _residual(block: WanResidualBlock, x: Tensor) -> Tensor:
    """A residual block, equal to its own forward."""
    hidden = _convolve(block.conv1, _fused(x, block.norm1.gamma))
    return _convolve(block.conv2, _fused(hidden, block.norm2.gamma)) + block.conv_shortcut(x)


def _middle(block: WanMidBlock, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, residual in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(residual, attention(x))
    return x


def _per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a 2D layer to every frame."""
    batch, _, frames, _, _ = x.shape
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (batch, frames)).transpose(1, 2)


def _down(layer: WanResample, x: Tensor) -> Tensor:
    """Halve the picture and, where the layer does so, the frames after the first, which stays untouched."""
    x = _per_frame(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


def _up(layer: WanResample, x: Tensor) -> Tensor:
    """Double the picture and, where the layer does so, the frames after the first, seen through a causal filter."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        later = layer.time_conv(x[:, :, 1:])
        later = later.unflatten(1, (2, x.shape[1])).movedim(1, 3).flatten(2, 3)
        x = torch.cat([x[:, :, :1], later], dim=2)
    return _per_frame(lambda frames: layer.resample[1](F.interpolate(frames, scale_factor=2.0, mode="nearest-exact")), x)


def encode_whole(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Moments (means and log variances stacked) of a whole clip, equal to `vae.encode(video)`'s parameters."""
    encoder = vae.encoder
    x = encoder.conv_in(video)
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else _residual(layer, x)
    x = _fused(_middle(encoder.mid_block, x), encoder.norm_out.gamma)
    return vae.quant_conv(_convolve(encoder.conv_out, x))


def decode_whole(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The clip of a latent, equal to `vae.decode(latents)` before that clamps its output."""
    decoder = vae.decoder
    x = _middle(decoder.mid_block, decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for layer in block.resnets:
            x = _residual(layer, x)
        for layer in block.upsamplers or ():
            x = _up(layer, x)
    return _convolve(decoder.conv_out, _fused(x, decoder.norm_out.gamma))


def _steps(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.diff(dim=-1), x.diff(dim=-2), x.diff(dim=-3)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 on values keeps colours, L1 on differences to neighbours (in space and time) keeps edges crisp.

    A small squared term punishes the few large errors that L1 leaves in moving textures.
    """
    loss = F.l1_loss(output, target) + F.mse_loss(output, target)
    for mine, wanted in zip(_steps(output), _steps(target), strict=True):
        loss = loss + 0.5 * F.l1_loss(mine, wanted)
    return loss


def _autoencoder_loss(vae: AutoencoderKLWan, video: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    mean, log_variance = encode_whole(vae, video).float().chunk(2, dim=1)
    log_variance = log_variance.clamp(-20, 10)
    latents = mean + noise * torch.exp(0.5 * log_variance)
    output = decode_whole(vae, latents.to(video.dtype)).float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction_loss(output, video.float()) + kl_weight * kl


def _batch(settings: Settings, rng: random.Random, device: torch.device, count: int) -> Tensor:
    specs = [sample_spec(rng) for _ in range(count)]
    return render(specs, rng, device, settings.frames, settings.size).contiguous(memory_format=torch.channels_last_3d)


def _training_batch(settings: Settings, rng: random.Random, device: torch.device, step: int) -> Tensor:
    """Small crops of many clips while the network learns the basics, whole clips in the last part of the run."""
    if step > settings.crop_steps:
        return _batch(settings, rng, device, settings.autoencoder_batch)
    video, size, frames = _batch(settings, rng, device, settings.crop_clips), settings.crop_size, settings.crop_frames
    crops = []
    for clip in video:
        for _ in range(settings.crops_per_clip):
            y, x = rng.randint(0, settings.size - size), rng.randint(0, settings.size - size)
            t = rng.randint(0, settings.frames - frames)
            crops.append(clip[:, t : t + frames, y : y + size, x : x + size])
    return torch.stack(crops).contiguous(memory_format=torch.channels_last_3d)


def _rendered_ahead(settings: Settings, rng: random.Random, device: torch.device, steps: int) -> Iterator[Tensor]:
    """All batches of the run; on a GPU each is drawn on a stream of its own while the step before is computed.

    Rendering copies many small tables to the GPU, and each copy waits for its stream: on the main stream that
    would be for the whole training step.
    """
    if device.type != "cuda":
        yield from (_training_batch(settings, rng, device, step) for step in range(1, steps + 1))
        return
    stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
    upcoming: Tensor | None = None
    for step in range(1, steps + 2):
        current = upcoming
        if current is not None:
            main.wait_stream(stream)
            current.record_stream(main)
            yield current
        if step <= steps:
            with torch.cuda.stream(stream):
                upcoming = _training_batch(settings, rng, device, step)


def _channels_last(vae: AutoencoderKLWan) -> None:
    """Store kernels with the channels innermost, the order in which the GPU's convolutions are fast."""
    for parameter in vae.parameters():
        if parameter.ndim >= 4:
            order = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
            parameter.data = parameter.data.contiguous(memory_format=order)


def train_autoencoder(
    vae: AutoencoderKLWan, settings: Settings, device: torch.device, log: Log
) -> tuple[AutoencoderKLWan, list[tuple[int, float]]]:
    """Train `vae` on ever new clips and return it with averaged weights, and its loss curve."""
    rng = random.Random(settings.seed)
    vae = vae.to(device)
    _channels_last(vae)
    inner = ("vae.encoder", "vae.decoder")
    optimizers = build_optimizers({"vae": vae}, settings.autoencoder_muon_lr, settings.autoencoder_lr, 0.01, inner)
    steps = settings.crop_steps + settings.autoencoder_steps
    average = Average(vae, 0.998)

    def loss(video: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            return _autoencoder_loss(vae, video, noise, settings.kl_weight)

    on_crops, on_clips = (GraphedStep(make_update(loss, [vae], optimizers), device) for _ in range(2))
    progress = Progress("autoencoder", steps, log)
    for step, video in enumerate(_rendered_ahead(settings, rng, device, steps), start=1):
        shape = (video.shape[0], 16, (video.shape[2] + 3) // 4, video.shape[3] // 8, video.shape[4] // 8)
        set_rates(optimizers, rate_at(step, steps, warmup=100))
        update = on_crops if step <= settings.crop_steps else on_clips
        progress.add(step, update(video, torch.randn(shape, device=device)))
        average.update(vae)
    average.copy_to(vae)
    return vae.eval(), progress.curve


@torch.no_grad()
def encode_means(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Latent means of a batch of clips in float32."""
    with torch.autocast(video.device.type, torch.bfloat16, enabled=video.device.type == "cuda"):
        moments = encode_whole(vae, video)
    return moments.float()[:, : vae.config.z_dim]


@torch.no_grad()
def fold_statistics(vae: AutoencoderKLWan, settings: Settings, device: torch.device, clips: int = 512) -> None:
    """Rescale the latent channels, inside the 1x1 layers, to the statistics that `latents_mean/std` promise.

    Programs that know the Wan format subtract those fixed numbers; with them being true of this autoencoder too,
    the denoiser sees channels of mean 0 and deviation 1 everywhere. The reconstruction does not change.
    """
    rng = random.Random(settings.seed + 1)
    size = min(settings.autoencoder_batch, clips)
    latents = torch.cat(
        [encode_means(vae, _batch(settings, rng, device, size)).double() for _ in range(max(1, clips // size))]
    )
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)).clamp_min(1e-6)
    wanted_mean = torch.tensor(vae.config.latents_mean, dtype=torch.float64, device=device)
    wanted_std = torch.tensor(vae.config.latents_std, dtype=torch.float64, device=device)
    apply_affine(vae, wanted_std / std, wanted_mean - wanted_std / std * mean)


@torch.no_grad()
def apply_affine(vae: AutoencoderKLWan, scale: Tensor, offset: Tensor) -> None:
    """Make the latents `scale * z + offset` per channel and let the decoder undo it, exactly."""
    z_dim = vae.config.z_dim
    first, second = vae.quant_conv, vae.post_quant_conv
    weight, bias = first.weight.double(), first.bias.double()
    weight[:z_dim] *= scale.view(-1, 1, 1, 1, 1)
    bias[:z_dim] = bias[:z_dim] * scale + offset
    bias[z_dim:] += 2 * scale.log()
    first.weight.copy_(weight)
    first.bias.copy_(bias)
    weight, bias = second.weight.double(), second.bias.double()
    bias = bias - (weight.flatten(1) * (offset / scale)).sum(dim=1)
    second.weight.copy_(weight / scale.view(1, -1, 1, 1, 1))
    second.bias.copy_(bias)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, settings: Settings, device: torch.device) -> float:
    """Mean PSNR in dB, over clips never trained on, of what diffusers' own encode and decode give back."""
    rng = random.Random(settings.seed + 2)
    values = []
    for _ in range(settings.fresh_clips // 4):
        video = _batch(settings, rng, device, 4)
        output = vae.decode(vae.encode(video.to(vae.dtype)).latent_dist.mode()).sample.float()
        error = ((output - video) / 2).square().mean(dim=(1, 2, 3, 4))
        values += (-10 * error.log10()).tolist()
    return sum(values) / len(values)
