"""Writes the model card from the record of the run, so that every number in it is a measured one."""

from pathlib import Path
from typing import Any

from .assemble import DEFAULT_PROMPT, DEFAULT_SEED
from .settings import Settings

_TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [wan, toy, demonstration]
---

# The demonstration model of sedialect

A very small, really trained text-to-video model in the format of Wan 2.1: `WanPipeline.from_pretrained` loads it, and
{bytes:,} bytes hold all of it. It exists so that quantization can be watched on any computer: 16-bit next to 4-bit,
on a CPU.

```python
import torch
from diffusers import WanPipeline

pipeline = WanPipeline.from_pretrained(MODEL_DIRECTORY, dtype=torch.bfloat16)
frames = pipeline(
    "{prompt}",
    height={size}, width={size}, num_frames={frames},
    num_inference_steps={sample_steps}, guidance_scale={guidance:g},
    generator=torch.Generator("cpu").manual_seed({prompt_seed}),
).frames[0]
```

## What it knows

A toy world drawn by a program (`training`): nine shapes in nine colours, plain, striped, spotted
or checkered, small to large, in thirteen motions (still, eight directions, circling both ways, bouncing, swinging),
sometimes turning, growing or shrinking, sometimes with a second object in front or behind, over five kinds of
background in eight colours, with a still, panning or zooming camera. Captions are written by a grammar of
{vocabulary} words in varying phrasings, with parts left out at random, so that short prompts
such as "a red ball moves left" are part of what it was trained on.
No photographs, no videos, no text from anywhere else, no pretrained weights were used.

About one in seventeen combinations of shape, colour, texture and motion never occurred in training (`is_held_out`
in `captions.py`). The 64 prompts in `prompts.json` are full captions of such combinations.

## Parts

| part | class | size |
| --- | --- | --- |
| autoencoder | `AutoencoderKLWan`, base_dim {base_dim}, z_dim 16 | {vae_size} |
| denoiser | `WanTransformer3DModel`, {layers} layers, {heads} x {head_dim} wide, feed-forward {ffn_dim} | {denoiser_size} |
| text encoder | `UMT5EncoderModel`, {text_layers} layers of width {text_dim}, trained with the denoiser | {text_size} |
| scheduler | `UniPCMultistepScheduler`, flow sigmas, shift {sample_shift:g} | |

The latents have, channel by channel, the mean and deviation that Wan 2.1 has (folded into the autoencoder's 1x1
convolutions), so programs that know the Wan latent format need no special case.

## Training

| | autoencoder | denoiser and text encoder |
| --- | --- | --- |
| data | new clips in every step | {bank_clips:,} clips encoded once, {captions_per_clip} captions each |
| steps x batch | {vae_steps} | {denoiser_steps:,} x {denoiser_batch}, then {refine_steps:,} more from a warm restart |
| optimizer, peak rates | {vae_optimizer} | {dit_optimizer} |
| loss | L1 + squares + L1 of differences in space and time + {kl_weight:g} KL | flow matching, squared error |
| loss, first to last record | {vae_first:.3f} to {vae_last:.4f} | {dit_first:.3f} to {dit_last:.4f} |
| time | {vae_seconds:.0f} s | {dit_seconds:.0f} s (and {bank_seconds:.0f} s for the bank) |{first_phase}

Reconstruction by the autoencoder of 64 clips never trained on: **{psnr:.1f} dB** PSNR. Denoiser loss at evenly spread
noise levels: {validation:.4f} on clips never trained on, {trained:.4f} on clips of the bank.

Noise levels are logit-normal shifted by {train_shift:g}; {dropout:.0%} of the captions are empty, for guidance; shipped
weights are moving averages. One {device}, torch {torch}, diffusers {diffusers}, transformers {transformers}, {date}.

Again, in under half an hour on one GPU:

```
python -m sedialect.training --output DIRECTORY
```

## Limits

It knows its toy world and nothing else: other words are unknown to it, other sizes and lengths than
{size} x {size} x {frames} are outside its training. Outlines wobble, above all of triangles and stars and of what turns or
moves fast (bouncing, swinging); two textured objects that overlap run into each other; numbers of spots and stripes
are not exact. It says nothing about the quality of large models; it shows what number formats do to one and the same
network.

Licence: Apache-2.0, like the package it comes with.
"""


_FIRST_PHASE = """

The first {denoiser_steps:,} denoiser steps and the autoencoder were trained on an earlier version of the clips, with faster
motion and backgrounds of random phase (`--start-from` took them over); the rest, and all measurements of the denoiser, on
the clips as they are drawn now. The command below does both phases on the latter."""


def _denoiser_seconds(record: dict[str, Any]) -> float:
    earlier: float = record["first_phase"]["seconds"]["denoiser"] if "first_phase" in record else 0.0
    return earlier + float(record["seconds"]["denoiser"])


def _megabytes(directory: Path) -> str:
    return f"{sum(path.stat().st_size for path in directory.glob('*.safetensors')) / 1e6:.1f} MB"


def _schedules(settings: Settings) -> dict[str, str]:
    crops, size, frames = settings.crop_clips * settings.crops_per_clip, settings.crop_size, settings.crop_frames
    first = f"{settings.crop_steps:,} x {crops} crops of {size} x {size} x {frames}"
    return {
        "vae_steps": f"{first}, then {settings.autoencoder_steps:,} x {settings.autoencoder_batch} clips",
        "vae_optimizer": f"Muon {settings.autoencoder_muon_lr:g} (kernels), AdamW {settings.autoencoder_lr:g} (rest)",
        "dit_optimizer": f"Muon {settings.muon_lr:g} (block matrices), AdamW {settings.adam_lr:g} (rest)",
    }


def write_card(path: Path, record: dict[str, Any], settings: Settings) -> None:
    """Fill the card with the settings and the measurements of the run that made the model next to it."""
    seconds, model = record["seconds"], path.parent
    fields = dict(record["settings"]) | {key: record[key] for key in ("bytes", "device", "torch", "diffusers")}
    fields |= {"transformers": record["transformers"], "date": record["date"], "psnr": record["autoencoder_psnr"]}
    fields |= {"vae_first": record["autoencoder_curve"][0][1], "vae_last": record["autoencoder_curve"][-1][1]}
    fields |= {"dit_first": record["denoiser_curve"][0][1], "dit_last": record["refine_curve"][-1][1]}
    fields |= {"vae_seconds": seconds["autoencoder"], "dit_seconds": _denoiser_seconds(record)}
    fields["first_phase"] = _FIRST_PHASE.format(**fields) if "first_phase" in record else ""
    fields |= {"bank_seconds": seconds["bank"], "dropout": settings.caption_dropout}
    fields |= _schedules(settings)
    fields |= {"validation": record["denoiser_validation"], "trained": record["denoiser_on_trained_clips"]}
    fields |= {"vocabulary": record["vocabulary"], "vae_size": _megabytes(model / "vae")}
    fields |= {"denoiser_size": _megabytes(model / "transformer"), "text_size": _megabytes(model / "text_encoder")}
    path.write_text(_TEXT.format(prompt=DEFAULT_PROMPT, prompt_seed=DEFAULT_SEED, **fields), encoding="utf-8")
