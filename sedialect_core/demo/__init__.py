"""The bundled model: a tiny text-to-video Wan pipeline, trained by this project on clips that it draws itself.

`training/` makes it, `model/` is the result in diffusers' layout with its card, `prompts.json` holds 64 prompts that it was
not trained on, and `defaults.json` the settings it looks best with.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..sampling import Request

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"


@cache
def defaults() -> dict[str, Any]:
    """Recommended settings: prompt, steps, guidance_scale, height, width, num_frames, fps."""
    settings: dict[str, Any] = json.loads((FOLDER / "defaults.json").read_text(encoding="utf-8"))
    return settings


def request(prompt: str, seed: int, steps: int | None = None) -> Request:
    """What to ask of the bundled model: a prompt and a seed, at the recommended settings."""
    settings = {name: defaults()[name] for name in ("steps", "guidance_scale", "height", "width", "num_frames")}
    return Request(prompt=prompt, seed=seed, **{**settings, **({} if steps is None else {"steps": steps})})


@cache
def evaluation_prompts() -> tuple[tuple[str, int], ...]:
    """The standard evaluation set: 64 pairs of prompt and seed, none of them seen in training."""
    items = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
    return tuple((item["prompt"], item["seed"]) for item in items)


def unknown_words(prompt: str, tokenizer: Any) -> list[str]:
    """The words of a prompt that the bundled model never saw, in order."""
    return [word for word in prompt.lower().split() if tokenizer.unk_token_id in tokenizer(word).input_ids]
