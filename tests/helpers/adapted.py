"""Quantized video transformers with PEFT's adapters, and what they are held against."""

import inspect
from importlib.util import find_spec
from typing import Any

import diffusers
import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from quantized_pipelines import WEIGHT_ONLY, layers
from torch import nn

from sedialect import SeDialectConfig, SeDialectLinear, quantize_model

TARGETS = ["to_q", "to_v"]
SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 10},
    "adamss": {"r": 8, "num_subspaces": 2},
    "boft": {"boft_block_size": 8},
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 50},
    "gralora": {"r": 8, "gralora_k": 2},
    "ia3": {"feedforward_modules": ["to_v"]},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "psoft": {"r": 8},
    "shira": {"r": 4},
    "vblora": {"vector_length": 16, "num_vectors": 16},
    "waveft": {"n_frequency": 50},
}
TUNERS = sorted(str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING)


def config_of(tuner: str, **settings: Any) -> Any:
    if tuner == "adamss" and find_spec("sklearn") is None:
        pytest.skip("AdaMSS needs scikit-learn")
    kind = next(kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value.lower() == tuner)
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    chosen = {**SETTINGS.get(tuner, {}), **settings}
    if "target_modules" in inspect.signature(cls.__init__).parameters:
        chosen.setdefault("target_modules", TARGETS)
    return cls(**chosen)


def dit() -> nn.Module:
    torch.manual_seed(7)
    size = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2}
    return diffusers.WanTransformer3DModel(**size, text_dim=32, freq_dim=32, ffn_dim=96).eval()


def quantized(**settings: Any) -> nn.Module:
    model = dit()
    quantize_model(model, SeDialectConfig(**(settings or WEIGHT_ONLY)))
    return model


def decoded(model: nn.Module) -> nn.Module:
    """Puts the weights that quantizing gives into a plain model, adapters aside."""
    source = dict(quantized().named_modules())
    for name, module in model.named_modules():
        layer = source.get(name.removeprefix("base_model.model.").replace(".base_layer", ""))
        if isinstance(layer, SeDialectLinear) and type(module) is nn.Linear:
            module.weight.data.copy_(layer.dequantize(torch.float32))
    return model


def add(model: nn.Module, tuner: str, way: str = "get_peft_model", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = config_of(tuner, **settings)
    if way == "get_peft_model":
        return peft.get_peft_model(model, config).eval()
    if way == "inject":
        peft.inject_adapter_in_model(config, model)
    else:
        model.add_adapter(config)
    return model.eval()


def train(model: nn.Module) -> dict[str, torch.Tensor]:
    """Changes what an adapter would train, and gives all of it, buffers included, by name."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return dict([*model.named_parameters(), *model.named_buffers()])


def take_over(model: nn.Module, trained: dict[str, torch.Tensor]) -> None:
    """The adapter that `train` gave, for another model."""
    plain = dict(dit().named_parameters())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in trained and name.removeprefix("base_model.model.").replace(".base_layer", "") not in plain:
            tensor.data.copy_(trained[name].data)


@torch.no_grad()
def run(model: nn.Module, tuner: str = "") -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 4, 6), (1, 8, 32)))
    if tuner != "poly":
        return model(latents, torch.tensor([500]), text, return_dict=False)[0]
    return model.base_model(latents, torch.tensor([500]), text, return_dict=False, task_ids=torch.tensor([0]))[0]


def stored(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for layer in layers(model) for tensor in layer.parameters()]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def pair(tuner: str, order: str, way: str = "get_peft_model", **settings: Any) -> tuple[nn.Module, nn.Module]:
    """A quantized model and its decoded twin with one adapter, which was added to them in the same state."""
    if order == "first":
        twin, ours = add(decoded(dit()), tuner, way, **settings), add(quantized(), tuner, way, **settings)
    else:
        twin, ours = decoded(add(dit(), tuner, way, **settings)), add(dit(), tuner, way, **settings)
        quantize_model(ours if way != "get_peft_model" else ours.base_model.model, SeDialectConfig(**WEIGHT_ONLY))
    take_over(ours, train(twin))
    return ours, twin
