"""ComfyUI's patchers around models of ours: its own save nodes write encoded layers as they are, *Extract and Save LoRA*
reads them decoded, and all tensors of a layer that is copied to the GPU for each use lie in pinned memory.

For a layer that is not loaded whole, ComfyUI puts a parameter in place of each tensor, which merges LoRAs while it is
written. Under dynamic VRAM that is every layer. The parameter wants gradients, which integers cannot have, so that ModelSave
and CheckpointSave would end in an error; and LoRAs merged into codes would be rounded to 4 bit.
"""

import functools
import warnings
from collections import UserDict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import comfy.utils

from . import layout
from .linear import NOT_SAVED, EncodedLinear, encoded_layers

READY = "comfy_patched_weights"  # on a layer: nothing is left to be merged into it, so it is saved as it is


class HoldsEncoded:
    """Mixed into a patcher's class."""

    model: Any
    patches: dict[str, Any]

    def model_state_dict(self, filter_prefix: str | None = None) -> MutableMapping[str, Any]:
        """As ComfyUI's. Who asks for a part wants to compute with it, and gets what the layers multiply by."""
        state: dict[str, Any] = super().model_state_dict(filter_prefix)  # type: ignore[misc]
        return state if filter_prefix is None else _Decoded(state, encoded_layers(self.model))

    def model_state_dict_for_saving(self, model: Any = None, prefix: str = "") -> dict[str, Any]:
        """As ComfyUI's, with the tensors of encoded layers themselves; LoRAs on them are not saved."""
        layers = encoded_layers(self.model)
        if any(f"{name}.weight" in self.patches for name in layers):
            warnings.warn(NOT_SAVED, stacklevel=2)
        with _ready(list(layers.values())):
            state: dict[str, Any] = super().model_state_dict_for_saving(model, prefix)  # type: ignore[misc]
        return state

    def pin_weight_to_device(self, key: str) -> None:
        """As ComfyUI's, and what lies beside the codes: of a quantized weight ComfyUI pins the codes alone, and a copy from
        memory that is not pinned makes the CPU wait for all copies and computing before it."""
        for name in (key, *self._beside(key)):
            super().pin_weight_to_device(name)  # type: ignore[misc]

    def unpin_weight(self, key: str) -> None:
        """As ComfyUI's, with what lies beside the codes."""
        for name in (key, *self._beside(key)):
            super().unpin_weight(name)  # type: ignore[misc]

    def _beside(self, key: str) -> list[str]:
        name, _, tensor = key.rpartition(".")
        layer = comfy.utils.get_attr(self.model, name) if name and tensor == "weight" else None
        if not isinstance(layer, EncodedLinear) or not layer.encoded:
            return []
        parts = layout.SeDialectLayout.state_dict_tensors(layer.weight._qdata, layer.weight._params)
        return [key + suffix for suffix in parts if suffix]


class _Decoded(UserDict[str, Any]):
    """A state dictionary whose encoded weights are decoded as they are asked for, one at a time; by whatever method."""

    def __init__(self, state: dict[str, Any], layers: dict[str, EncodedLinear]) -> None:
        super().__init__(state)
        self._layers = {f"{name}.weight": layer for name, layer in layers.items()}

    def __getitem__(self, key: str) -> Any:
        layer = self._layers.get(key)
        return super().__getitem__(key) if layer is None else layer.merged_weight()


def hold_encoded(patcher: Any, clone: Any = None) -> None:
    """Have a patcher do so; as ComfyUI's callback for clones, which may be of another class, the clone."""
    given = patcher if clone is None else clone
    given.__class__ = _holding(type(given))


@functools.cache
def _holding(cls: type) -> type:
    return cls if issubclass(cls, HoldsEncoded) else type(cls.__name__, (HoldsEncoded, cls), {})


@contextmanager
def _ready(layers: list[EncodedLinear]) -> Iterator[None]:
    """Loading and unloading go by the same mark, so it is put back."""
    before = [vars(layer).get(READY) for layer in layers]
    for layer in layers:
        setattr(layer, READY, True)
    try:
        yield
    finally:
        for layer, mark in zip(layers, before, strict=True):
            delattr(layer, READY) if mark is None else setattr(layer, READY, mark)
