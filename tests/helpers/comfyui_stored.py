"""Checkpoints as other quantizers store them for ComfyUI, and the 16-bit weights that they stand for."""

import json
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor
from comfyui_server import ON_CPU
from safetensors import safe_open
from safetensors.torch import load_file, save_file

# Where nodes decode: some formats take a product and a sum, which round otherwise on a GPU.
DEVICE = "cpu" if ON_CPU else "cuda"
# The name of a format in ComfyUI's notes, and of its layout in comfy-kitchen.
FORMATS = {
    "float8_e4m3fn": "TensorCoreFP8Layout",
    "nvfp4": "TensorCoreNVFP4Layout",
    "mxfp8": "TensorCoreMXFP8Layout",
    "int8_tensorwise": "TensorWiseINT8Layout",
    "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
    "asym_w4a8_int8": "AsymW4A8Int8Layout",
}


def stored(source: Path, path: Path, form: str) -> tuple[Path, Path]:
    """`source` with the linears of its blocks in a format of comfy-kitchen, and beside it what that decodes to."""
    tensors, decoded = {}, {}
    for key, tensor in load_file(source).items():
        if not _in_blocks(key, tensor):
            tensors[key] = decoded[key] = tensor
            continue
        weight = QuantizedTensor.from_float(tensor.float(), FORMATS[form])
        parts = {name: part.contiguous() for name, part in weight.state_dict(key).items()}
        tensors |= {name: _bytes(part) for name, part in parts.items()}
        tensors[key.removesuffix("weight") + "comfy_quant"] = _note({"format": form})
        decoded[key] = weight.to(DEVICE).dequantize().cpu()
    return _both(source, path, tensors, decoded)


def stored_in_the_old_way(source: Path, path: Path) -> tuple[Path, Path]:
    """In FP8 with `scale_weight` beside each weight, as files before comfy-kitchen have it."""
    tensors, decoded = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, {}
    for key, tensor in load_file(source).items():
        tensors[key] = decoded[key] = tensor
        if _in_blocks(key, tensor):
            scale = tensor.float().abs().max() / 448
            tensors[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            tensors[key.removesuffix("weight") + "scale_weight"] = scale
            decoded[key] = tensors[key].float() * scale
    return _both(source, path, tensors, decoded)


def stored_plainly(source: Path, path: Path) -> tuple[Path, Path]:
    """In FP8 without scales: whatever is a float is cast."""
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_file(source).items()}
    return _both(source, path, tensors, {key: tensor.float() for key, tensor in tensors.items()})


def _in_blocks(key: str, tensor: torch.Tensor) -> bool:
    return key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e8m0fnu else tensor


def _note(said: dict[str, str]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def _both(source: Path, path: Path, tensors: dict, decoded: dict) -> tuple[Path, Path]:
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata()
    beside = path.with_name(f"{path.stem}_decoded.safetensors")
    save_file(tensors, path, metadata=metadata)
    computed = torch.float32 if ON_CPU else torch.float16  # as ComfyUI computes a stored Wan there, and so as nodes decode
    save_file({key: tensor.to(computed, copy=True) for key, tensor in decoded.items()}, beside, metadata=metadata)
    return path, beside
