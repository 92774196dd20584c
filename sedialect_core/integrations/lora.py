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


DEPTH = "_sedialect_fusions"  # on a quantized layer: how many adapters have been fused into it, one after the other


class Backup(NamedTuple):
    """What a layer stored before adapters were fused into its codes, and the adapters that its weight held by then.

    depth  how many had been fused into it by this one; of adapters around each other the last is taken out first
    """

    stored: tuple[torch.Tensor | None, ...]
    merged: tuple[str, ...]
    depth: int


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
    total = weight.clone()
    for name in names:
        total += adapter.get_delta_weight(name).to(weight)
        if adapter.lora_bias[name]:
            bias = bias + adapter.lora_B[name].bias.to(bias) * adapter.scaling[name]
    fuse_decoded(adapter, base, names, weight, total, bias)


@torch.no_grad()
def fuse_decoded(
    adapter: Any,
    base: SeDialectLinear,
    names: list[str],
    weight: torch.Tensor,
    total: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    """Encode a weight that adapters were merged into, and keep what the layer stored before.

    Args:
        names: of the adapters; weight: [N, K] before them; total: the same with them; bias: with them.

    Raises:
        EncodeError: `total` holds NaN or Inf. Nothing has been changed then.
    """
    kind = "LoRA" if hasattr(adapter, "lora_A") else "adapter"
    who = f"{kind} {', '.join(names)}"
    encoded = base.encode_weight(total, f"a weight with {who} added")
    if base.calibrated:
        warnings.warn(
            f"{who} is fused into calibrated weights; the sum is encoded without "
            "calibration, and is further from 16 bit: use it unfused, or fuse it into the 16-bit model and calibrate that",
            stacklevel=2,
        )
    if (total - weight).norm() < WEAK * weight.norm():
        warnings.warn(
            f"{who} changes some weights by less than {WEAK:.0%}, about the rounding of 4 bit: fused, "
            "much of it is lost; call unfuse_lora() and use it unfused",
            stacklevel=2,
        )
    if BACKUP not in adapter.__dict__:
        stored = tuple(_clone(getattr(base, part)) for part in STORED)
        base.__dict__[DEPTH] = base.__dict__.get(DEPTH, 0) + 1
        adapter.__dict__[BACKUP] = Backup(stored, tuple(adapter.merged_adapters), base.__dict__[DEPTH])
    _store(base, *(encoded.stored[part] for part in ("", "_meta", "_scale")), bias)  # the equalizer stays
    adapter.merged_adapters.extend(names)


@torch.no_grad()
def unfuse(adapter: Any) -> None:
    """Put back what the layer stored before adapters were fused into it, bit for bit.

    Raises:
        ModelError: some were fused before the layer was quantized, so that no weight without them was ever stored; or
            another adapter has been fused into the same layer since. Nothing has been changed in the latter case.
    """
    backup: Backup | None = adapter.__dict__.get(BACKUP)
    if backup is not None:
        base = adapter.get_base_layer()
        if base.__dict__.get(DEPTH) != backup.depth:
            raise ModelError(
                f"another adapter was fused into the same layer after {', '.join(adapter.merged_adapters)}; take that out "
                "first"
            )
        del adapter.__dict__[BACKUP]
        base.__dict__[DEPTH] -= 1
        _store(base, *backup.stored)
        adapter.merged_adapters[:] = backup.merged
    if adapter.merged:
        kind = "LoRA" if hasattr(adapter, "lora_A") else "adapter"
        raise ModelError(
            f"{kind} {', '.join(adapter.merged_adapters)} was fused before the layer was quantized and cannot be taken out "
            "of its codes; load the model again, and call fuse_lora() after enable_sedialect()"
        )


def check_in_memory(module: nn.Module, remedy: str) -> None:
    """Refuse to read weights that offloading has taken out of memory.

    Raises:
        ModelError: that is so; it ends with the remedy.
    """
    if any(parameter.device.type == "meta" for parameter in module.parameters()):
        raise ModelError(f"weights are not in memory (device meta), as under sequential offloading; {remedy}")


def _check_fusable(adapter: Any, base: SeDialectLinear, names: list[str]) -> None:
    check_in_memory(base, "call fuse_lora() before offloading")
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
