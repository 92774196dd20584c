"""Whether what a quantized model holds can be written, and be read again as the same model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..checkpoint.format import SCALE
from ..checkpoint.record import RECORD, Record
from ..errors import ModelError

UNLOAD = "call pipe.unload_lora_weights() first, or pipe.fuse_lora() and then pipe.unload_lora_weights() to keep its effect"


def sealed_state(record: Record, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """What is written of a model: the tensors, their record, and the metadata.

    Raises:
        ModelError: see `check_savable`.
    """
    check_savable(state, None)
    record = record.of_layers({key.removesuffix(SCALE) for key in state if key.endswith(SCALE)})
    return {**state, RECORD: record.sealed(state).to_tensor()}, record.metadata()


def check_savable(state: Mapping[str, torch.Tensor], model: nn.Module | None) -> None:
    """Refuse keys that no freshly built model has, and tensors that are not in memory.

    Args:
        model: looked at for fused projections, if it is given.

    Raises:
        ModelError: the first such key, and what to do.
    """
    for key, tensor in state.items():
        if ".base_layer." in key or ".lora_" in key:
            raise ModelError(f"a LoRA is loaded (key {key!r}), and no model has these keys; {UNLOAD}")
        if tensor.device.type == "meta":
            raise ModelError(f"{key} is not in memory (device meta); switch sequential or disk offloading off, then save")
    for name, module in model.named_modules() if model is not None else ():
        if getattr(module, "fused_projections", False):
            raise ModelError(
                f"{name} has fused projections, which a freshly built model lacks; call unfuse_qkv_projections() first: the "
                "results do not change"
            )
