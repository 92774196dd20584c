"""What a MODEL must be before quantizing and after loading."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ops import CastWeightBiasOp
from comfy.patcher_extension import WrappersMP

from ...sedialect_core.checkpoint.record import Record
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import ModelError, SeDialectError, shortened, shown
from ...sedialect_core.inspection import layout_of
from ...sedialect_core.plan.layers import Plan
from .linear import EncodedLinear
from .sources import check_source

KEY = "sedialect"  # under which a patcher keeps our callbacks and what we know of its model
COMPILED = "torch.compile"  # ComfyUI's key of its compile wrapper


def check_quantizable(patcher: Any, decode: bool = False) -> None:
    """Refuse a MODEL that cannot be quantized as it is connected.

    Args:
        decode: weights that another quantizer has stored are to be decoded.

    Raises:
        ModelError: the message says what to connect instead.
    """
    network = getattr(patcher.model, "diffusion_model", None)
    name = type(network).__name__
    if network is None or patcher.model.latent_format.latent_dimensions != 3:
        raise ModelError(
            f"{name} is not a video model (its latents have no time axis); connect the MODEL of a video transformer such "
            "as Wan, HunyuanVideo, LTX, Cosmos, CogVideoX or Mochi"
        )
    if patcher.get_attachment(KEY) is not None:
        raise ModelError(f"this {name} is quantized by SeDialect already; connect the 16-bit MODEL, or leave this node out")
    if COMPILED in patcher.wrappers.get(WrappersMP.APPLY_MODEL, {}):
        raise ModelError("the MODEL is compiled already; put TorchCompileModel behind SeDialect Quantize, not before it")
    if patcher.injections:
        raise ModelError(
            f"{', '.join(patcher.injections)} is fastened to the layers of the 16-bit MODEL; put bypass LoRA nodes behind "
            "SeDialect Quantize"
        )
    if replaced := [key for key in patcher.object_patches if key.startswith("diffusion_model")]:
        raise ModelError(f"another node replaces {replaced[0]} of the 16-bit MODEL; put that node behind SeDialect Quantize")
    check_source(patcher, decode)


def check_groups(network: torch.nn.Module, config: SeDialectConfig) -> None:
    """Refuse groups for a network whose tokens nobody can place.

    Raises:
        ModelError: that is so.
    """
    if config.semantic and layout_of(network).order == "unknown":
        raise ModelError(
            f"semantic cannot be on for {type(network).__name__}: where its video tokens stand is not known; switch it off"
        )


def linear_types(network: torch.nn.Module) -> tuple[type[torch.nn.Module], ...]:
    """The exact types of linears in a network of ComfyUI: each set of operations has its own."""
    return tuple({type(module) for module in network.modules() if _is_linear(module)})


def _is_linear(module: Any) -> bool:
    """ComfyUI's linear for stored weights is no torch.nn.Linear, and its experts, which hold many, are no linear."""
    stored = isinstance(module, CastWeightBiasOp) and hasattr(module, "in_features") and not hasattr(module, "num_experts")
    return stored or isinstance(module, torch.nn.Linear | EncodedLinear)


def check_weights(weights: Mapping[str, torch.Tensor], plan: Plan) -> None:
    """Refuse weights that are not in memory."""
    for layer in plan.quantized:
        weight = weights[f"{layer.name}.weight"]
        if weight.device.type == "meta":
            raise ModelError(f"{layer.name}.weight is missing in the checkpoint; load a complete one")


@contextmanager
def told_by_comfyui(record: Record) -> Iterator[None]:
    """Say in a sentence what ComfyUI makes of tensors and settings that it did not expect.

    Raises:
        ModelError: it cannot build the model from them.
    """
    try:
        yield
    except (SeDialectError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever that is
        said = shortened(" ".join(str(error).split()) or type(error).__name__, 150)
        raise ModelError(
            f"ComfyUI cannot build the {record.model} in this file: {said}; download it again, or have it written again"
        ) from error


def check_loaded(network: torch.nn.Module, record: Record, given: Collection[str]) -> None:
    """Every parameter must have been `given`, every weight have a place, and every recorded layer an encoded weight of its
    shape."""
    for name, module in network.named_modules():
        if not isinstance(module, EncodedLinear):
            continue
        weight = getattr(module, "weight", None)
        if weight is None:
            raise ModelError(f"the key '{name}.weight' is missing; the file is not complete, or of another model")
        if tuple(weight.shape) != (module.out_features, module.in_features):
            raise ModelError(
                f"{name}.weight is {tuple(weight.shape)} where the model has "
                f"{shown((module.out_features, module.in_features))}; the file and its settings do not belong together"
            )
    if missing := sorted(name for name, _ in network.named_parameters() if name not in given):
        raise ModelError(f"the key {missing[0]!r} is missing ({len(missing)} in all); the file is not complete")
    known = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    if idle := sorted(name for name in given if name.endswith((".weight", ".bias")) and name not in known):
        raise ModelError(
            f"the file holds {shown(idle[0])} ({len(idle)} such keys in all), for which its settings leave no place in "
            f"{type(network).__name__}; the file and its settings do not belong together"
        )
    modules = dict(network.named_modules())
    if lost := [name for name in record.precisions if not isinstance(modules.get(name), EncodedLinear)]:
        raise ModelError(f"the file lists the layer {lost[0]!r}, which {type(network).__name__} does not have")
