"""Tiny pipelines, quantized, beside an independent account of what they must give.

A *twin* is a plain pipeline whose linears hold the decoded weights. With 16-bit activations ("w4a16") it computes what the
quantized one does, up to the order of float32 sums, whatever diffusers feature is switched on in both.
"""

from typing import Any

import torch
from tiny_pipelines import build
from torch import nn

from sedialect import SeDialectLinear

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
WEIGHT_ONLY = {"precision": "w4a16", "modulation": "w4a16"}


def layers(model: nn.Module) -> list[SeDialectLinear]:
    return [module for module in model.modules() if isinstance(module, SeDialectLinear)]


def quantized(family: str = "wan", **settings: Any) -> tuple[Any, dict[str, Any]]:
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False, **settings)
    return pipe, arguments


def twin(family: str = "wan", **settings: Any) -> Any:
    """A plain pipeline with the weights that `quantized(family, **WEIGHT_ONLY)` decodes."""
    plain, _ = build(family)
    pipe, _ = quantized(family, **WEIGHT_ONLY, **settings)
    for name, layer in pipe.transformer.named_modules():
        if isinstance(layer, SeDialectLinear):
            plain.transformer.get_submodule(name).weight.data.copy_(layer.dequantize(torch.float32))
    return plain


def lora(seed: int = 5, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """A LoRA on the self-attention of both of Wan's blocks, in diffusers' names; as strong as the weights themselves."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for block in range(2):
        for name in ATTENTION:
            key = f"transformer.blocks.{block}.attn1.{name}"
            state[f"{key}.lora_A.weight"] = torch.randn(4, 32, generator=generator) * scale
            state[f"{key}.lora_B.weight"] = torch.randn(32, 4, generator=generator) * scale
    return state


def load_lora(pipe: Any) -> None:
    pipe.load_lora_weights(lora(), adapter_name="a")


def load_two(pipe: Any) -> None:
    """Two LoRAs at once, each with its weight."""
    load_lora(pipe)
    pipe.load_lora_weights(lora(seed=6), adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.7])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the order of sums: frames lie in [0, 1]."""
    return torch.allclose(a, b, rtol=0, atol=2e-5)
