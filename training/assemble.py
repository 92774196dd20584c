"""Puts the trained parts together as a `WanPipeline` directory, samples from it and writes what users read."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from .captions import evaluation_items
from .denoiser import build_denoiser
from .settings import Settings

DEFAULT_PROMPT, DEFAULT_SEED = (
    "a striped purple star moves right, over an orange background with clouds, the camera pans down",
    1004,
)


def build_scheduler(settings: Settings) -> UniPCMultistepScheduler:
    """The solver Wan itself uses: of second order, so that few steps suffice."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=settings.sample_shift,
        num_train_timesteps=1000,
        final_sigmas_type="zero",
    )


def build_pipeline(
    vae: AutoencoderKLWan,
    denoiser: WanTransformer3DModel,
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
) -> WanPipeline:
    """A pipeline of bfloat16 parts; the denoiser is rebuilt so that nothing of its training stays attached."""
    plain = build_denoiser(settings)
    plain.load_state_dict(denoiser.state_dict())
    for parameter in vae.parameters():
        parameter.data = parameter.data.contiguous()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.to(torch.bfloat16).eval(),
        vae=vae.to(torch.bfloat16).eval(),
        scheduler=build_scheduler(settings),
        transformer=plain.to(torch.bfloat16).eval(),
        transformer_2=None,
    )


def save_pipeline(pipeline: WanPipeline, directory: Path) -> int:
    """Save and return the size in bytes; `_name_or_path` entries would name this machine's folders, so they go."""
    pipeline.save_pretrained(directory, safe_serialization=True)
    for path in directory.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n")
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@torch.no_grad()
def sample(pipeline: WanPipeline, prompts: list[str], seeds: list[int], settings: Settings, device: torch.device) -> Tensor:
    """Videos of prompts as (clip, 3, frame, height, width) in [-1, 1], with noise that is the same on any device."""
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        prompt=prompts,
        height=settings.size,
        width=settings.size,
        num_frames=settings.frames,
        num_inference_steps=settings.sample_steps,
        guidance_scale=settings.guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).frames
    return video.transpose(1, 2).float() * 2 - 1


def write_prompts(directory: Path) -> list[dict[str, Any]]:
    """Write the held-out evaluation set as prompts.json and return it."""
    items = evaluation_items()
    lines = ",\n".join("  " + json.dumps(item) for item in items)
    (directory / "prompts.json").write_text(f"[\n{lines}\n]\n")
    return items


def write_defaults(directory: Path, settings: Settings) -> None:
    """Write the sampling settings this model was looked at with as defaults.json."""
    values = {
        "prompt": DEFAULT_PROMPT,
        "steps": settings.sample_steps,
        "guidance_scale": settings.guidance,
        "height": settings.size,
        "width": settings.size,
        "num_frames": settings.frames,
        "fps": 16,
        "shift": settings.sample_shift,
        "seed": DEFAULT_SEED,
    }
    (directory / "defaults.json").write_text(json.dumps(values, indent=2) + "\n")
