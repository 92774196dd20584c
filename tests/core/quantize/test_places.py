"""Modules that read their weights themselves, and one module in several places."""

import warnings

import peft
import pytest
import torch
from quantized_pipelines import WEIGHT_ONLY, layers
from torch import nn
from torch.nn import functional

from sedialect import SeDialectConfig, SeDialectLinear, quantize_model

feature = pytest.mark.feature


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_v, self.to_out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_out(self.to_q(x) + self.to_v(x))


class Tied(Attention):
    """Reads a weight in its forward, and the type of another one's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = functional.linear(x, self.to_q.weight) + self.to_v(x)
        return self.to_out(mixed.to(self.to_out.weight.dtype))


def model(*attentions: nn.Module) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"attn": attention}) for attention in attentions)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block["attn"](x)
            return x

    return Model()


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def left(plan) -> dict[str, str]:
    return {layer.name: layer.reason for layer in plan.left_alone}


@feature("Modules that read their weights themselves", "first", "Their layers stay in 16 bit, and the plan says why.")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_torch_s_encoder_layer_keeps_its_layers(training, grad):
    torch.manual_seed(0)
    tested = model(Attention(), nn.TransformerEncoderLayer(64, 2, 64, dropout=0.0, batch_first=True))
    plan = quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    assert any("TransformerEncoderLayer reads its weight itself" in reason for reason in left(plan).values())
    tested.train(training)
    with torch.set_grad_enabled(grad):
        assert tested(rows(1, 5, 64)).isfinite().all()
    assert len(layers(tested)) == 3


def test_a_module_that_reads_weights_in_its_forward_keeps_those_layers():
    torch.manual_seed(0)
    tested = model(Tied(), Attention())
    plan = quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    reasons = left(plan)
    assert set(reasons) == {"blocks.0.attn.to_q", "blocks.0.attn.to_out"}
    assert all(reason == "Tied reads its weight itself, past the layer" for reason in reasons.values())
    assert tested(rows(1, 5, 64)).isfinite().all()


def test_a_weight_that_is_made_anew_for_each_forward_stays():
    torch.manual_seed(0)
    tested = model(Attention())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(tested.blocks[0]["attn"].to_q)
    plan = quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    assert "weight_norm" in left(plan)["blocks.0.attn.to_q"]
    tested.blocks[0]["attn"].to_q.weight_g.data.mul_(2)  # and still has its effect
    before = tested(rows(1, 5, 64))
    tested.blocks[0]["attn"].to_q.weight_g.data.mul_(2)
    assert not torch.equal(tested(rows(1, 5, 64)), before)


def test_a_forward_that_was_replaced_stays():
    tested = model(Attention())
    layer = tested.blocks[0]["attn"].to_q
    layer.forward = lambda x: functional.linear(x, layer.weight)
    plan = quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    assert "its forward has been replaced" in left(plan)["blocks.0.attn.to_q"]


def test_a_forward_that_was_put_back_does_not_count():
    """As ComfyUI's bypass LoRAs put it back: it then lies in the module's own dictionary."""
    tested = model(Attention())
    layer = tested.blocks[0]["attn"].to_q
    layer.forward = layer.forward
    assert "blocks.0.attn.to_q" not in left(quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY)))


def test_what_peft_trains_whole_stays():
    tested = model(Attention(), Attention())
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["to_q"], modules_to_save=["to_out"]), tested)
    peft.get_peft_model(tested, peft.LoraConfig(target_modules=["to_v"], modules_to_save=["to_out"]), "second")
    plan = quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    saved = [name for name, reason in left(plan).items() if "modules_to_save" in reason]
    assert saved and all("to_out" in name for name in saved)
    assert any(parameter.requires_grad for name, parameter in tested.named_parameters() if "modules_to_save" in name)


def test_hooks_on_a_layer_stay_on_it():
    tested = model(Attention())
    seen = []
    handle = tested.blocks[0]["attn"].to_q.register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    tested(rows(1, 5, 64))
    assert seen == [SeDialectLinear]
    handle.remove()
    tested(rows(1, 5, 64))
    assert len(seen) == 1


@feature("One module in several places", "first", "Quantized once, in all of them.")
def test_one_linear_under_several_names_is_quantized_in_all_places():
    torch.manual_seed(0)
    shared = nn.Linear(64, 64)
    attentions = [Attention(), Attention()]
    for attention in attentions:
        attention.to_q = attention.to_v = shared
    tested = model(*attentions)
    plan = quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    assert len(plan.quantized) == len(layers(tested)) == 3
    assert not [name for name, part in tested.named_modules(remove_duplicate=False) if type(part) is nn.Linear]
    first = tested.blocks[0]["attn"]
    assert first.to_q is first.to_v is tested.blocks[1]["attn"].to_q and isinstance(first.to_q, SeDialectLinear)


def test_one_block_in_several_places():
    torch.manual_seed(0)
    block = Attention()
    tested = model(block, Attention(), block)
    wanted = model(block, tested.blocks[1]["attn"], block)
    plan = quantize_model(tested, SeDialectConfig(**WEIGHT_ONLY))
    assert len(plan.quantized) == 6
    assert not [name for name, part in tested.named_modules(remove_duplicate=False) if type(part) is nn.Linear]
    assert torch.equal(tested(rows(1, 5, 64)), wanted(rows(1, 5, 64)))
