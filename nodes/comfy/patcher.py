"""ComfyUI's patchers around models of ours: its own save nodes write encoded layers as they are, and *Extract and Save LoRA*
reads them decoded.

For a layer that is not loaded whole, ComfyUI puts a parameter in place of each tensor, which merges LoRAs while it is
written. Under dynamic VRAM that is every layer. The parameter wants gradients, which integers cannot have, so that ModelSave
and CheckpointSave would end in an error; and LoRAs merged into codes would be rounded to 4 bit.
"""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .linear import NOT_SAVED, EncodedLinear

READY = "comfy_patched_weights"  # on a layer: nothing is left to be merged into it, so it is saved as it is


class SavesEncoded:
    """Mixed into a patcher's class."""

    model: Any
    patches: dict[str, Any]

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """As ComfyUI's. Who asks for a part wants to compute with it, and gets what the layers multiply by."""
        state: dict[str, Any] = super().model_state_dict(filter_prefix)  # type: ignore[misc]
        return state if filter_prefix is None else _Decoded(state, self._encoded())

    def _encoded(self) -> dict[str, EncodedLinear]:
        modules = self.model.named_modules()
        return {name: module for name, module in modules if isinstance(module, EncodedLinear) and module.encoded}

    def model_state_dict_for_saving(self, model: Any = None, prefix: str = "") -> dict[str, Any]:
        """As ComfyUI's, with the tensors of encoded layers themselves; LoRAs on them are not saved."""
        layers = self._encoded()
        if any(f"{name}.weight" in self.patches for name in layers):
            warnings.warn(NOT_SAVED, stacklevel=2)
        with _ready(list(layers.values())):
            state: dict[str, Any] = super().model_state_dict_for_saving(model, prefix)  # type: ignore[misc]
        return state


class _Decoded(dict[str, Any]):
    """A state dictionary whose encoded weights are decoded as they are asked for, one at a time."""

    def __init__(self, state: dict[str, Any], layers: dict[str, EncodedLinear]) -> None:
        super().__init__(state)
        self._layers = {f"{name}.weight": layer for name, layer in layers.items()}

    def __getitem__(self, key: str) -> Any:
        layer = self._layers.get(key)
        return super().__getitem__(key) if layer is None else layer.merged_weight()


def save_encoded(patcher: Any, clone: Any = None) -> None:
    """Have a patcher save so; as ComfyUI's callback for clones, which may be of another class, the clone."""
    given = patcher if clone is None else clone
    given.__class__ = _saving(type(given))


@functools.cache
def _saving(cls: type) -> type:
    return cls if issubclass(cls, SavesEncoded) else type(cls.__name__, (SavesEncoded, cls), {})


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
