"""What a pipeline is asked for when it calibrates itself."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import demo
from ..errors import InputError
from ..video.sampling import Request

SELF = "self"
GLANCE = "glance"
GLANCE_STEPS = 4
STEPS = 20
FIRST_SEED = 5000  # far from the seeds of the evaluation prompts
PROMPTS = Path(__file__).parent / "prompts.json"


def requests_of(pipe: Any, prompts: str | Sequence[str | Request]) -> list[Request]:
    """The requests that prompts stand for; a text becomes one with the pipeline's own settings, and its place as the seed.

    Args:
        prompts: "self" for those that come with sedialect: the bundled model has its own, of words that it knows; "glance"
            for the first of these, in a few steps.

    Raises:
        InputError: there is none, or a text that is no list of prompts.
    """
    if prompts == GLANCE:
        return [replace(requests_of(pipe, SELF)[0], steps=GLANCE_STEPS)]
    if prompts == SELF:
        texts: dict[str, list[str]] = json.loads(PROMPTS.read_text(encoding="utf-8"))
        if _is_bundled(pipe):
            return [demo.request(text, FIRST_SEED + i) for i, text in enumerate(texts["bundled"])]
        prompts = texts["general"]
    if isinstance(prompts, str):
        raise InputError(f"prompts are {prompts!r}; pass 'self', 'glance', or a list of texts or requests")
    if not prompts:
        raise InputError("there are no prompts to calibrate with; pass some, or calibration='self'")
    return [p if isinstance(p, Request) else Request(p, seed=FIRST_SEED + i, steps=STEPS) for i, p in enumerate(prompts)]


def _is_bundled(pipe: Any) -> bool:
    path = str(getattr(pipe.config, "_name_or_path", "") or "")
    return bool(path) and os.path.exists(path) and Path(path).resolve() == demo.MODEL.resolve()
