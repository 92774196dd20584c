"""MODELs that another quantizer has stored: which file to load instead, and their weights in 16 bit where there is none.

Decoding and quantizing again rounds twice; docs/comfyui.md has what that costs.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.quant_ops
import torch
from safetensors import safe_open

from ...sedialect_core.codec import DTYPES
from ...sedialect_core.errors import ModelError
from ...sedialect_core.plan.layers import Plan
from . import layout

HUB = "https://huggingface.co/"
# Where 16-bit files of a family are, by the name of ComfyUI's network class.
REPOSITORIES = {
    "HunyuanVideo": "Comfy-Org/HunyuanVideo_repackaged or Comfy-Org/HunyuanVideo_1.5_repackaged",
    "LTXVModel": "Lightricks/LTX-Video",
    "LTXAVModel": "Lightricks/LTX-2",
    "AsymmDiTJoint": "Comfy-Org/mochi_preview_repackaged",
    "MiniTrainDIT": "Comfy-Org/Cosmos_Predict2_repackaged",
    "WanModel": "Comfy-Org/Wan_2.1_ComfyUI_repackaged or Comfy-Org/Wan_2.2_ComfyUI_Repackaged",
}
# Where a file's name begins so, it is known more exactly.
BY_NAME = {
    "wan2.1": "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
    "wan2.2": "Comfy-Org/Wan_2.2_ComfyUI_Repackaged",
    "hunyuan_video": "Comfy-Org/HunyuanVideo_repackaged",
    "hunyuanvideo1.5": "Comfy-Org/HunyuanVideo_1.5_repackaged",
    "ltx-2": "Lightricks/LTX-2",
}
BITS = re.compile(r"[-_.]?(fp8|e4m3|e5m2|nvfp4|mxfp8|fp4|int8|int4|svdq|gguf|q\d_|iq\d_).*", re.IGNORECASE)
LAYOUT = re.compile(r"^(TensorCore|TensorWise)|Layout$")
FLOATS = (*DTYPES, torch.float64)
GGUF = "GGUF"
IN_FILES = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def foreign_kind(module: Any) -> str | None:
    """How another quantizer has stored a layer's weight, or None where it is plain or ours."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, comfy.quant_ops.QuantizedTensor):
        return None if layout.is_encoded(weight) else LAYOUT.sub("", str(weight._layout_cls))
    if hasattr(weight, "tensor_type"):
        return GGUF
    floats = isinstance(weight, torch.Tensor) and hasattr(module, "in_features")
    return str(weight.dtype).removeprefix("torch.") if floats and weight.dtype not in FLOATS else None


def foreign_kinds(patcher: Any) -> list[str]:
    """All kinds in a MODEL, each once; also that of its file, where the loader has widened what is FP8 there."""
    found = {kind for kind in map(foreign_kind, patcher.model.diffusion_model.modules()) if kind}
    return sorted(found or _kinds_in_file(_file_of(patcher)))


def _kinds_in_file(path: str) -> set[str]:
    if not path.endswith(".safetensors") or not Path(path).is_file():
        return set()
    with safe_open(path, framework="pt") as opened:
        types = {str(opened.get_slice(key).get_dtype()) for key in opened.keys()}  # noqa: SIM118 - it is no dictionary
    return {IN_FILES[name] for name in types & IN_FILES.keys()}


def _file_of(patcher: Any) -> str:
    """The file that a MODEL was loaded from, as far as its loader tells."""
    init = patcher.cached_patcher_init
    return init[1][0] if init is not None and init[1] and isinstance(init[1][0], str) else ""


def check_source(patcher: Any, decode: bool) -> None:
    """Refuse a MODEL whose weights another quantizer has rounded, unless they are to be decoded.

    Raises:
        ModelError: the message names the 16-bit file to load.
    """
    network = patcher.model.diffusion_model
    kinds = foreign_kinds(patcher)
    if not kinds:
        return
    name = f"this {type(network).__name__} is quantized already ({', '.join(kinds)})"
    if not decode:
        raise ModelError(
            f"{name}; load its 16-bit checkpoint instead{_where(patcher)}. If you have only this one, set quantized_source "
            "to decode: its weights are then rounded twice"
        )
    closed = (layer for layer, module in network.named_modules() if foreign_kind(module) == GGUF and not _opens(module))
    if (layer := next(closed, None)) is not None:
        raise ModelError(f"{name}, and the loader does not say how to decode {layer}; load its 16-bit checkpoint instead")


def _opens(module: Any) -> bool:
    return callable(getattr(module, "get_weight", None))


def _where(patcher: Any) -> str:
    """A file or repository to load instead, as far as names tell it."""
    path = _file_of(patcher)
    stem = BITS.sub("", Path(path).stem)
    known = next((repo for start, repo in BY_NAME.items() if stem.lower().startswith(start)), None)
    repository = known or REPOSITORIES.get(type(patcher.model.diffusion_model).__name__)
    file = f", {stem} with fp16 or bf16 in its name" if known and stem != Path(path).stem else ""
    return f"{file} ({HUB}{repository.replace(' or ', f' or {HUB}')})" if repository else ""


@dataclass(frozen=True)
class Stored:
    """A layer's weight that is decoded when it is asked for, so that never two of them lie in memory."""

    module: Any
    dtype: torch.dtype  # that it is decoded to
    device = torch.device("cpu")

    def to(self, device: torch.device) -> torch.Tensor:
        """The weight [N, K] as the layer multiplies with it."""
        weight = self.module.weight
        if isinstance(weight, comfy.quant_ops.QuantizedTensor):
            # in float32, and rounded once: comfy-kitchen would round scales to bfloat16 before it multiplies by them
            decoded = weight.detach().to(device, torch.float32).dequantize().to(self.dtype)
            smoothing = getattr(self.module, "pre_quant_scale", None)  # the layer multiplies its input by it
            return decoded if smoothing is None else decoded * smoothing.to(device, self.dtype)
        if hasattr(weight, "tensor_type"):
            return _plain(self.module.get_weight(weight.to(device), self.dtype))
        return weight.detach().to(device).to(self.dtype)


def own_weights(patcher: Any) -> dict[str, Any]:
    """The network's tensors without the LoRAs on it: it has just been unloaded, which undoes them. Weights of another
    quantizer's layers are `Stored`, and what such a layer keeps beside weight and bias is left out."""
    network, dtype = patcher.model.diffusion_model, patcher.model.get_dtype_inference()
    weights = dict(network.state_dict())
    for name, module in network.named_modules():
        if (kind := foreign_kind(module)) is None:
            continue
        for key in [key for key in weights if key.startswith(f"{name}.") and key.count(".") == name.count(".") + 1]:
            del weights[key]
        weights.pop(f"{name}.temp.weight", None)  # GGUF's, for planning memory
        weights[f"{name}.weight"] = Stored(module, dtype)
        if module.bias is not None:
            bias = module.get_weight(module.bias, dtype) if kind == GGUF else module.bias
            weights[f"{name}.bias"] = _plain(bias)
    return {name: _sixteen_bit(tensor, dtype) for name, tensor in weights.items()}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().as_subclass(torch.Tensor)


def _sixteen_bit(tensor: Any, dtype: torch.dtype) -> Any:
    """A norm or bias that was cast to 8 bit with the rest, or that a loader keeps in a class of its own."""
    if hasattr(tensor, "tensor_type"):
        tensor = _plain(tensor)
    narrow = isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    return tensor.to(dtype) if narrow else tensor


def settle_sources(patcher: Any, weights: dict[str, Any], plan: Plan) -> Plan:
    """Decode what the plan leaves in 16 bit; the plan, which says so if anything was decoded."""
    stored = {name: weight for name, weight in weights.items() if isinstance(weight, Stored)}
    planned = {f"{layer.name}.weight" for layer in plan.quantized}
    for name in stored.keys() - planned:
        weights[name] = stored[name].to(torch.device("cpu"))
    kinds = foreign_kinds(patcher)
    if not kinds:
        return plan
    note = f"the weights were {', '.join(kinds)}: decoded to 16 bit first, so they are rounded twice"
    return replace(plan, notes=(*plan.notes, note))


def clone_around(patcher: Any, model: Any) -> Any:
    """A clone of the MODEL around another model. GGUF's own patcher would merge LoRAs into encoded weights, so the clone of
    such a MODEL is of ComfyUI's class."""
    override = (model, ({}, {}, {}, set()))
    if GGUF not in foreign_kinds(patcher):
        return patcher.clone(model_override=override)
    own = patcher.__class__
    patcher.__class__ = comfy.model_patcher.CoreModelPatcher
    try:
        return patcher.clone(model_override=override)
    finally:
        patcher.__class__ = own
