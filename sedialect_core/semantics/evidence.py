"""What profiling saw, as data: for pictures of it, and to be kept beside a video."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError, ModelError
from .hook import StepHook

FORMAT = "sedialect evidence 1"


@dataclass(frozen=True)
class Evidence:
    """What the attention of each block showed when it was last profiled.

    fingerprint  of the model: its class, and its quantized layers
    grid         T x H x W tokens
    received     block -> float32 [calls, samples, T, H, W], attention that each video token receives
    claims       block -> int32 [calls, samples, T, H, W], the anchor that each token may join, -1 for none
    """

    fingerprint: str
    grid: tuple[int, int, int]
    received: Mapping[str, torch.Tensor]
    claims: Mapping[str, torch.Tensor]

    def check(self, fingerprint: str, grid: tuple[int, int, int]) -> None:
        """Refuse to speak for another model or resolution.

        Raises:
            ModelError: naming both.
        """
        ours, theirs = f"{self.fingerprint[:12]} at {self.grid}", f"{fingerprint[:12]} at {grid}"
        if (self.fingerprint, self.grid) != (fingerprint, grid):
            raise ModelError(f"this evidence is of model {ours}, not of model {theirs}; profile this model at this size")

    def save(self, path: str | Path) -> None:
        """Write it as safetensors."""
        tensors = {f"received/{name}": tensor.contiguous() for name, tensor in self.received.items()}
        tensors |= {f"claims/{name}": tensor.contiguous() for name, tensor in self.claims.items()}
        header = {"format": FORMAT, "fingerprint": self.fingerprint, "grid": json.dumps(self.grid)}
        save_file(tensors, str(path), metadata=header)

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read what `save` wrote.

        Raises:
            InputError: the file is not there, damaged, or none of ours.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read the evidence {path}: {error}") from None
        if header.get("format") != FORMAT:
            raise InputError(f"{path} is no evidence of sedialect's (format {header.get('format')!r}, not {FORMAT!r})")
        frames, height, width = json.loads(header["grid"])
        parts = {kind: {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)} for kind in _KINDS}
        return cls(header["fingerprint"], (frames, height, width), *(parts[kind] for kind in _KINDS))


_KINDS = ("received/", "claims/")


def evidence_from(hook: StepHook, fingerprint: str) -> Evidence:
    """What a model's hook knows.

    Raises:
        ModelError: nothing was profiled yet.
    """
    layout = hook.seen_layout
    if layout is None or layout.grid is None or not hook.blocks:
        raise ModelError("no attention was profiled yet; run a model with semantic=True or salient_by='attention' first")
    frames, height, width = layout.grid
    axes = (torch.arange(size) for size in layout.grid)
    order = layout.token_index(*torch.meshgrid(*axes, indexing="ij")).flatten()  # tokens of a frame may stand in tiles

    def placed(state: torch.Tensor) -> torch.Tensor:
        return state.cpu()[..., order].reshape(*state.shape[:2], frames, height, width)

    received = {name: placed(block.received) for name, block in hook.blocks.items()}
    claims = {name: placed(block.claims) for name, block in hook.blocks.items()}
    return Evidence(fingerprint, layout.grid, received, claims)


def fingerprint_of(description: object) -> str:
    """SHA-256 of a description that JSON can write."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()
