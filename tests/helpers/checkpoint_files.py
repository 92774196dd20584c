"""Quantized models on disk, as tests load them, compare them and damage them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sedialect.sedialect_core.checkpoint.record import RECORD, record_digest

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WAN = "WanTransformer3DModel"
EXACT = {"dtype": torch.float32}


def load(folder: Path | str, **arguments: Any) -> nn.Module:
    return diffusers.WanTransformer3DModel.from_pretrained(folder, **arguments)


def same(one: nn.Module, two: nn.Module) -> bool:
    """Whether two models hold the same bits under the same names."""
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    """Write the weights again, after `change(tensors, metadata)`."""
    with safe_open(folder / WEIGHTS, "pt") as opened:
        metadata = opened.metadata()
    state = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
    change(state, metadata)
    save_file(state, folder / WEIGHTS, metadata=metadata)


def record(state: dict[str, torch.Tensor], **changes: Any) -> None:
    """Change the record among a checkpoint's tensors as a program would that knows of its digest."""
    data = json.loads(state[RECORD].numpy().tobytes()) | changes
    data["digest"] = record_digest(data)
    state[RECORD] = torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)
