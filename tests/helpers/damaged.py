"""Quantized folders changed by hand: with tensors, record or settings that nobody would write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sedialect.sedialect_core.checkpoint.record import RECORD, record_digest
from sedialect.sedialect_core.storage.digests import tensor_digest

WEIGHTS = "diffusion_pytorch_model.safetensors"
State = dict[str, torch.Tensor]


def change_tensors(folder: Path, change: Callable[[State], None], *, seal: bool = False) -> None:
    """Write the weights again after `change(tensors)`; `seal` makes the record's digests fit, as a forger would."""
    with safe_open(folder / WEIGHTS, "pt") as opened:
        metadata = opened.metadata()
    state = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
    change(state)
    if seal:
        change_record(state, digests={key: tensor_digest(value) for key, value in state.items() if key != RECORD})
    save_file(state, folder / WEIGHTS, metadata=metadata)


def record_of(state: State) -> dict[str, Any]:
    return dict(json.loads(state[RECORD].numpy().tobytes()))


def change_record(state: State, **changes: Any) -> None:
    data = record_of(state) | changes
    data["digest"] = record_digest(data)
    put_record(state, json.dumps(data))


def put_record(state: State, text: str) -> None:
    state[RECORD] = torch.tensor(list(text.encode()), dtype=torch.uint8)


def change_settings(folder: Path, **changes: Any) -> None:
    """Change entries of `quantization_config` in config.json."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << offset % 8]))
