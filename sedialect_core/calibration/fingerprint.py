"""What something was learned from: which model, which prompts, which versions."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ..environment import package_versions, today
from ..formatbook.matching import config_digest, weights_digest
from ..storage.hub import is_repo_id
from ..video.sampling import Request

PACKAGES = ("sedialect", "torch", "diffusers")


def fingerprint_of(pipe: Any, models: Mapping[str, nn.Module], requests: Sequence[Request]) -> dict[str, str]:
    """What was sampled. `weights` has one digest for each transformer, with commas between them."""
    return fingerprint(_model_name(pipe), models, [asdict(request) for request in requests])


def fingerprint(model: str, models: Mapping[str, nn.Module], prompts: Sequence[Any]) -> dict[str, str]:
    """The same of whatever was run: the prompts are JSON values, of which the digest is kept."""
    asked = json.dumps(prompts, sort_keys=True)
    return {
        "model": model,
        "model_class": ",".join(type(model).__name__ for model in models.values()),
        "config": ",".join(config_digest(model) for model in models.values()),
        "weights": ",".join(weights_digest(model) for model in models.values()),
        "prompts": hashlib.sha256(asked.encode()).hexdigest(),
        "prompt_count": str(len(prompts)),
        "date": today(),
        **{name: version or "unknown" for name, version in package_versions(PACKAGES).items()},
    }


def _model_name(pipe: Any) -> str:
    """The model's name on the Hub where it came from there, else the name of its folder or class: never a local path."""
    path = str(getattr(pipe.config, "_name_or_path", "") or "")
    if path and os.path.exists(path):
        return Path(path).resolve().name
    return path if is_repo_id(path) else type(pipe).__name__
