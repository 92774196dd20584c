"""The bundled model: a tiny text-to-video Wan pipeline, trained by this project on clips that it draws itself.

`training/` makes it, `model/` is the result in diffusers' layout with its card, `prompts.json` holds 64 prompts that it was
not trained on, and `defaults.json` the settings it looks best with. `few_steps.safetensors` is a LoRA for 4 steps without
guidance.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line
from ..video.sampling import Request

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
FEW_STEPS = FOLDER / "few_steps.safetensors"
FAST: dict[str, Any] = {"steps": 4, "guidance_scale": 1.0}


@cache
def defaults() -> dict[str, Any]:
    """Recommended settings: prompt, steps, guidance_scale, height, width, num_frames, fps."""
    settings: dict[str, Any] = json.loads((FOLDER / "defaults.json").read_text(encoding="utf-8"))
    return settings


def request(prompt: str, seed: int, steps: int | None = None, fast: bool = False) -> Request:
    """What to ask of the bundled model: a prompt and a seed, at the recommended settings.

    Args:
        fast: those for few steps, which want `use_few_steps`.
    """
    settings = {name: defaults()[name] for name in ("steps", "guidance_scale", "height", "width", "num_frames")}
    settings |= FAST if fast else {}
    return Request(prompt=prompt, seed=seed, **{**settings, **({} if steps is None else {"steps": steps})})


def use_few_steps(pipe: Any) -> None:
    """Fuse the LoRA for 4 steps without guidance into the bundled model's pipeline, and give it the solver that it learnt.

    That is the pipeline's own scheduler in first order, uncorrected: a step along a straight line.

    Raises:
        InputError: the LoRA is not there, or peft is not installed.
    """
    if not FEW_STEPS.is_file():
        raise InputError(
            f"the LoRA for few steps, {FEW_STEPS}, is missing; get the whole repository, or train it: "
            "python -m sedialect.training.few_steps --output DIR"
        )
    try:
        pipe.load_lora_weights(str(FEW_STEPS.parent), weight_name=FEW_STEPS.name)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    except (ImportError, ValueError) as error:  # diffusers raises the latter where peft is missing
        raise InputError(f"cannot load the LoRA for few steps: {first_line(error)}; pip install 'sedialect[demo]'") from None
    config = {**pipe.scheduler.config, "solver_order": 1, "disable_corrector": list(range(FAST["steps"]))}
    pipe.scheduler = type(pipe.scheduler).from_config(config)


@cache
def evaluation_prompts() -> tuple[tuple[str, int], ...]:
    """The standard evaluation set: 64 pairs of prompt and seed, none of them seen in training."""
    items = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    return tuple((item["prompt"], item["seed"]) for item in items)


def unknown_words(prompt: str, tokenizer: Any) -> list[str]:
    """The words of a prompt that the bundled model never saw, in order."""
    return [word for word in prompt.lower().split() if tokenizer.unk_token_id in tokenizer(word).input_ids]
