"""Fusing LoRAs into quantized layers, and taking them out again exactly.

PEFT merges by `weight.data += delta`, which means nothing on packed codes. So the two methods that do it are wrapped: a
layer whose base is ours is decoded, the delta is added, and the sum is encoded again; what was stored before is kept,
packed, beside the adapter until it is unfused. Wrapping the methods, rather than offering PEFT a layer class of our own,
reaches adapters that were loaded before `enable_sedialect()` too, and asks nothing of PEFT when they are loaded.
"""

import warnings
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ModelError
from ..linear import SeDialectLinear

BACKUP = "_sedialect_unfused"  # on PEFT's layer: gone with it when the LoRA is unloaded but stays fused
WEAK = 0.1  # of a weight's norm: a LoRA of 10 % keeps 85 % of its effect when it is fused, one of 3 % keeps 11 %
STORED = ("weight", "weight_meta", "weight_scale", "bias")


class Backup(NamedTuple):
    """What a layer stored before LoRAs were fused into its codes, and the LoRAs that its weight held by then."""

    stored: tuple[torch.Tensor | None, ...]
    merged: tuple[str, ...]


def extend_peft(module: ModuleType) -> None:
    """Wrap what needs it in `peft.tuners.lora.layer` or `peft.tuners.lora.dora`. Calling it again changes nothing."""
    if hasattr(module, "Linear"):
        _wrap(module.Linear, "merge", _merge)
        _wrap(module.Linear, "unmerge", _unmerge)
    if hasattr(module, "DoraLinearLayer"):
        _wrap(module, "dequantize_module_weight", _dequantize)


def fused_into_codes(model: nn.Module) -> list[str]:
    """Names of the LoRAs that are fused into quantized layers of `model`, those fused before quantizing left out."""
    found: dict[str, None] = {}
    for module in model.modules():
        backup = module.__dict__.get(BACKUP)
        if backup is not None:
            merged: Any = module.merged_adapters
            found |= dict.fromkeys(merged[len(backup.merged) :])
    return list(found)


def _wrap(owner: Any, name: str, wrapper: Any) -> None:
    from wrapt import FunctionWrapper

    function = vars(owner)[name]
    if getattr(function, "_self_wrapper", None) is not wrapper:
        setattr(owner, name, FunctionWrapper(function, wrapper))


def _dequantize(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """DoRA takes norms of the weight, which PEFT decodes for the quantizers that it knows."""
    if isinstance(args[0], SeDialectLinear):
        return args[0].dequantize()
    decoded: torch.Tensor = wrapped(*args, **kwargs)
    return decoded


def _merge(wrapped: Any, adapter: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(adapter.get_base_layer(), SeDialectLinear):
        fuse(adapter, *args, **kwargs)
    else:
        wrapped(*args, **kwargs)


def _unmerge(wrapped: Any, adapter: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(adapter.get_base_layer(), SeDialectLinear) and adapter.merged:
        unfuse(adapter)
    else:
        wrapped(*args, **kwargs)


@torch.no_grad()
def fuse(adapter: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
    """Encode the layer's weight anew with LoRAs added to it: those named, or all that are active.

    Several LoRAs are added before encoding, so that they cost one rounding together. Values are checked whether or not
    `safe_merge` asks for it, because what is not finite cannot be encoded; the layer is unchanged after an error.

    Args:
        adapter: PEFT's `Linear` around a `SeDialectLinear`.

    Raises:
        ModelError: the weight is not in memory, or an adapter is not a plain LoRA (DoRA and the like).
        EncodeError: the sum holds NaN or Inf.
    """
    from peft.tuners.tuners_utils import check_adapters_to_merge

    base: SeDialectLinear = adapter.get_base_layer()
    names = [name for name in check_adapters_to_merge(adapter, adapter_names) if name in adapter.lora_A]
    if not names:
        return
    _check_fusable(adapter, base, names)
    weight, bias = base.dequantize(torch.float32), base.bias
    delta = torch.zeros_like(weight)
    for name in names:
        delta += adapter.get_delta_weight(name).to(weight)
        if adapter.lora_bias[name]:
            bias = bias + adapter.lora_B[name].bias.to(bias) * adapter.scaling[name]
    encoded = base.encode_weight(weight + delta, f"a weight with LoRA {', '.join(names)} added")
    if base.calibrated:
        warnings.warn(
            f"LoRA {', '.join(names)} is fused into calibrated weights; the sum is encoded without "
            "calibration, and is further from 16 bit: use it unfused, or fuse it into the 16-bit model and calibrate that",
            stacklevel=2,
        )
    if delta.norm() < WEAK * weight.norm():
        warnings.warn(
            f"LoRA {', '.join(names)} changes some weights by less than {WEAK:.0%}, about the rounding of 4 bit: fused, "
            "much of it is lost; call unfuse_lora() and use it unfused",
            stacklevel=2,
        )
    if BACKUP not in adapter.__dict__:
        stored = tuple(_clone(getattr(base, part)) for part in STORED)
        adapter.__dict__[BACKUP] = Backup(stored, tuple(adapter.merged_adapters))
    _store(base, *(encoded.stored[part] for part in ("", "_meta", "_scale")), bias)  # the equalizer stays
    adapter.merged_adapters.extend(names)


@torch.no_grad()
def unfuse(adapter: Any) -> None:
    """Put back what the layer stored before LoRAs were fused into it, bit for bit.

    Raises:
        ModelError: some were fused before the layer was quantized, so that no weight without them was ever stored.
    """
    backup: Backup | None = adapter.__dict__.pop(BACKUP, None)
    if backup is not None:
        _store(adapter.get_base_layer(), *backup.stored)
        adapter.merged_adapters[:] = backup.merged
    if adapter.merged:
        raise ModelError(
            f"LoRA {', '.join(adapter.merged_adapters)} was fused before the layer was quantized and cannot be taken out of "
            "its codes; load the model again, and call fuse_lora() after enable_sedialect()"
        )


def _check_fusable(adapter: Any, base: SeDialectLinear, names: list[str]) -> None:
    if base.weight.device.type == "meta":
        raise ModelError(
            "weights are not in memory (device meta), as under sequential offloading; call fuse_lora() before offloading"
        )
    for name in names:
        if name in adapter.lora_variant:
            variant = type(adapter.lora_variant[name]).__name__
            raise ModelError(f"LoRA {name} is no plain LoRA ({variant}) and cannot be fused into 4 bit; use it unfused")
        if adapter.lora_bias[name] and base.bias is None:
            raise ModelError(f"LoRA {name} has a bias and the layer has none; use it unfused")


def _store(base: SeDialectLinear, *values: torch.Tensor | None) -> None:
    """Copy in place: offloading keeps references to the tensors that lie on the CPU."""
    for part, value in zip(STORED, values, strict=True):
        if value is not None:
            getattr(base, part).data.copy_(value)


def _clone(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().clone()
