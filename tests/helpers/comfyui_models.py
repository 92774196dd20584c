"""Checkpoints for tests with ComfyUI, made without it: the bundled model under ComfyUI's names, tiny ones, LoRAs."""

import json
import math
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from sedialect.bench.outliers import plant_outliers
from sedialect.sedialect_core import demo
from sedialect.sedialect_core.checkpoint.wan_names import settings_of, to_authors

TRANSFORMER = demo.MODEL / "transformer"
RANK = 4


def bundled(folder: Path, outliers: int = 1) -> Path:
    """The bundled transformer as a file for ComfyUI; its metadata say what shapes do not tell.

    `outliers` times as large are a few of its channels, planted without changing what it computes.
    """
    config = json.loads((TRANSFORMER / "config.json").read_text())
    state = load_file(TRANSFORMER / "diffusion_pytorch_model.safetensors")
    if outliers > 1:
        model = WanTransformer3DModel.from_pretrained(TRANSFORMER, torch_dtype=torch.float32)
        plant_outliers(model, outliers)
        state = model.state_dict()
    tensors = {to_authors(name): tensor for name, tensor in state.items()}
    path = folder / ("bundled_wan.safetensors" if outliers == 1 else "bundled_wan_outliers.safetensors")
    save_file(tensors, path, metadata={"config": json.dumps({"transformer": settings_of(config)})})
    return path


def embeddings(path: Path, prompts: list[str]) -> Path:
    """What the bundled text encoder makes of prompts, by prompt."""
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(demo.MODEL, transformer=None, vae=None, torch_dtype=torch.float32)
    with torch.no_grad():
        found = {prompt: pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0].contiguous() for prompt in prompts}
    save_file(found, path)
    return path


def tiny_wan(path: Path, blocks: int = 2, dim: int = 256, hidden: int = 512, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A Wan 2.1 with random weights, under its authors' names."""
    random, tensors = torch.Generator().manual_seed(blocks), {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        tensors[f"{name}.weight"] = (torch.randn(outputs, inputs, generator=random) / math.sqrt(inputs)).to(dtype)
        tensors[f"{name}.bias"] = (torch.randn(outputs, generator=random) * 0.02).to(dtype)

    tensors["patch_embedding.weight"] = torch.randn(dim, 16, 1, 2, 2, generator=random) / 8
    tensors["patch_embedding.bias"] = torch.zeros(dim)
    for name, inputs, outputs in (
        ("text_embedding.0", 4096, dim),
        ("text_embedding.2", dim, dim),
        ("time_embedding.0", 256, dim),
        ("time_embedding.2", dim, dim),
        ("time_projection.1", dim, 6 * dim),
        ("head.head", dim, 64),
    ):
        linear(name, inputs, outputs)
    tensors["head.modulation"] = torch.randn(1, 2, dim, generator=random).to(dtype) / 16
    for number in range(blocks):
        block = f"blocks.{number}."
        for part in ("self_attn", "cross_attn"):
            for leaf in "qkvo":
                linear(f"{block}{part}.{leaf}", dim, dim)
            for norm in ("norm_q", "norm_k"):
                tensors[f"{block}{part}.{norm}.weight"] = torch.ones(dim, dtype=dtype)
        tensors[f"{block}norm3.weight"], tensors[f"{block}norm3.bias"] = (
            torch.ones(dim, dtype=dtype),
            torch.zeros(dim, dtype=dtype),
        )
        linear(f"{block}ffn.0", dim, hidden)
        linear(f"{block}ffn.2", hidden, dim)
        tensors[f"{block}modulation"] = torch.randn(1, 6, dim, generator=random).to(dtype) / 16
    save_file(tensors, path)
    return path


def lora(path: Path, model: Path, scale: float = 0.3, seed: int = 0, dora: bool = False) -> Path:
    """A LoRA on all attention and feed-forward layers of a Wan file, of `scale` of each weight's norm."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for key, weight in load_file(model).items():
        name = key.removesuffix(".weight")
        if not key.endswith(".weight") or weight.ndim != 2 or not any(part in name for part in ("attn.", "ffn.")):
            continue
        up = torch.randn(weight.shape[0], RANK, generator=random)
        down = torch.randn(RANK, weight.shape[1], generator=random)
        up *= scale * weight.float().norm() / (up @ down).norm()
        tensors |= {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(float(RANK))
        if dora:
            tensors[f"diffusion_model.{name}.dora_scale"] = weight.float().norm(dim=1, keepdim=True) * 1.1
    save_file(tensors, path)
    return path


# How LoRA files that ComfyUI reads call a layer and its two matrices.
NAMINGS = {
    "A and B": ("diffusion_model.{}", "lora_B.weight", "lora_A.weight"),
    "peft": ("diffusion_model.{}", "lora_B.default.weight", "lora_A.default.weight"),
    "kohya": ("lora_unet_{}", "lora_up.weight", "lora_down.weight"),
    "Wan Fun": ("lora_unet__{}", "lora_up.weight", "lora_down.weight"),
    "old diffusers": ("diffusion_model.{}", "lora.up.weight", "lora.down.weight"),
}


def renamed_lora(path: Path, source: Path, naming: str) -> Path:
    """The LoRA that `lora` wrote, with the names of other trainers."""
    layer, up, down = NAMINGS[naming]
    tensors = {}
    for key, tensor in load_file(source).items():
        name, _, part = key.removeprefix("diffusion_model.").rpartition(".lora_")
        if not name:
            continue  # alpha is the rank: the factor is 1 without it
        called = layer.format(name if "diffusion" in layer else name.replace(".", "_"))
        tensors[f"{called}.{up if part.startswith('up') else down}"] = tensor
    save_file(tensors, path)
    return path


def distilled_lora(path: Path, model: Path, source: Path) -> Path:
    """A LoRA as those for 4 steps are: beside the matrices of `source` it has changes of biases and norms."""
    random, tensors = torch.Generator().manual_seed(5), dict(load_file(source))
    for key, tensor in load_file(model).items():
        name, _, part = key.rpartition(".")
        if not key.startswith("blocks.") or tensor.ndim != 1:
            continue
        change = torch.randn(tensor.shape, generator=random) * 0.05
        tensors[f"diffusion_model.{name}.{'diff_b' if part == 'bias' else 'diff'}"] = change
    save_file(tensors, path)
    return path
