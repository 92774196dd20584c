"""LoRAs on quantized layers: loaded, weighted, switched, swapped, fused, unfused and trained."""

import copy
import warnings

import pytest
import torch
from quantized_pipelines import WEIGHT_ONLY, close, layers, load_lora, load_two, lora, quantized, twin
from tiny_pipelines import build, generate

from sedialect import encode
from sedialect.sedialect_core.errors import EncodeError, ModelError

feature = pytest.mark.feature


def stored(model: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for layer in layers(model) for tensor in layer.parameters()]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def both(action):
    """Frames of a quantized pipeline and of its twin, after the same action on each."""
    pipe, arguments = quantized(**WEIGHT_ONLY)
    plain = twin()
    for each in (pipe, plain):
        action(each)
    return generate(pipe, arguments), generate(plain, arguments), generate(quantized(**WEIGHT_ONLY)[0], arguments)


def scale_in_attention(pipe):
    load_lora(pipe)
    pipe.set_adapters("a", 0.25)


def delete_one(pipe):
    load_two(pipe)
    pipe.delete_adapters("a")


def disable_and_enable(pipe):
    load_lora(pipe)
    pipe.disable_lora()
    pipe.enable_lora()


def hotswap(pipe):
    pipe.enable_lora_hotswap(target_rank=8)
    load_lora(pipe)
    pipe.load_lora_weights(lora(seed=6), adapter_name="a", hotswap=True)


def load_dora(pipe):
    state = lora()
    norms = {
        key.replace("lora_A.weight", "lora_magnitude_vector"): torch.full((32,), 0.5) for key in state if "lora_A" in key
    }
    pipe.load_lora_weights(state | norms, adapter_name="a")


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(load_lora, marks=feature("LoRA: load", "first")),
        pytest.param(load_two, marks=feature("LoRA: several, with weights (`set_adapters`)", "first")),
        pytest.param(scale_in_attention, marks=feature("LoRA: scale", "first")),
        pytest.param(delete_one, marks=feature("LoRA: delete one of two", "first")),
        pytest.param(disable_and_enable, marks=feature("LoRA: disable, enable, unload", "first")),
        pytest.param(hotswap, marks=feature("LoRA: hotswap", "first")),
        pytest.param(
            load_dora, marks=feature("LoRA: DoRA", "first", "Decodes the weight in every call. Fusing it is refused.")
        ),
    ],
)
def test_a_lora_acts_as_on_the_decoded_weights(action):
    with_lora, wanted, without = both(action)
    assert close(with_lora, wanted)
    assert (with_lora - without).abs().max() > 1e-3


@feature("LoRA: disable, enable, unload", "first")
@pytest.mark.parametrize("undo", ["disable_lora", "unload_lora_weights"])
def test_without_its_lora_a_model_is_what_it_was(undo):
    pipe, arguments = quantized()
    before = generate(pipe, arguments)
    load_lora(pipe)
    getattr(pipe, undo)()
    assert torch.equal(generate(pipe, arguments), before)


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(load_lora, marks=feature("LoRA: load", "after")),
        pytest.param(load_two, marks=feature("LoRA: several, with weights (`set_adapters`)", "after")),
        pytest.param(scale_in_attention, marks=feature("LoRA: scale", "after")),
        pytest.param(delete_one, marks=feature("LoRA: delete one of two", "after")),
        pytest.param(hotswap, marks=feature("LoRA: hotswap", "after")),
        pytest.param(load_dora, marks=feature("LoRA: DoRA", "after")),
    ],
)
def test_the_order_of_lora_and_enabling_does_not_matter(action):
    first, arguments = quantized()
    action(first)
    second, _ = build("wan")
    action(second)
    second.enable_sedialect(progress=False)
    assert same(stored(first.transformer), stored(second.transformer))
    assert torch.equal(generate(first, arguments), generate(second, arguments))


@feature("LoRA: disable, enable, unload", "after")
def test_a_lora_loaded_before_can_be_unloaded_after():
    wanted = generate(*quantized())
    pipe, arguments = build("wan")
    load_lora(pipe)
    pipe.enable_sedialect(progress=False)
    pipe.disable_lora()
    assert torch.equal(generate(pipe, arguments), wanted)
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, arguments), wanted)


FUSE = feature(
    "LoRA: fuse and unfuse",
    "first",
    "Fusing decodes, adds and encodes again, so a fused LoRA is rounded to 4 bit with its weight; prefer it unfused. "
    "Unfusing restores every bit.",
)


@FUSE
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("order", ["before", "after"])
def test_fusing_encodes_the_sum_and_unfusing_restores_every_bit(order, safe):
    pipe, arguments = build("wan")
    if order == "before":
        load_two(pipe)
    pipe.enable_sedialect(progress=False)
    if order == "after":
        load_two(pipe)
    before, unfused = stored(pipe.transformer), generate(pipe, arguments)
    layer = pipe.transformer.blocks[1].attn1.to_k
    a, b = lora(), lora(seed=6)
    key = "transformer.blocks.1.attn1.to_k.lora_{}.weight"
    delta = sum(weight * x[key.format("B")] @ x[key.format("A")] for weight, x in ((0.5, a), (0.7, b)))
    total = layer.base_layer.dequantize(torch.float32) + delta
    wanted = encode(total, formatbook=layer.base_layer.formatbook).dequantize()
    pipe.fuse_lora(adapter_names=["a", "b"], safe_fusing=safe)
    assert torch.allclose(layer.base_layer.dequantize(torch.float32), wanted, atol=1e-6)
    assert pipe.fused_loras == {"a", "b"}
    fused = generate(pipe, arguments)
    pipe.unfuse_lora()
    assert same(before, stored(pipe.transformer)) and pipe.num_fused_loras == 0
    assert torch.equal(generate(pipe, arguments), unfused)
    without = generate(*quantized())
    assert 0 < (fused - unfused).norm() < (unfused - without).norm()


@pytest.mark.parametrize(("scale", "weak"), [(0.03, True), (1.0, False)])
def test_fusing_a_lora_that_rounding_would_swallow_is_warned_about(scale, weak):
    pipe, _ = quantized()
    pipe.load_lora_weights(lora(scale=scale), adapter_name="a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.fuse_lora()
    assert any("LoRA a changes some weights by less than 10%" in str(each.message) for each in caught) == weak


@FUSE
def test_loras_can_be_fused_one_after_the_other():
    pipe, _ = quantized()
    before = stored(pipe.transformer)
    load_two(pipe)
    pipe.fuse_lora(adapter_names=["a"], lora_scale=0.5)
    once = stored(pipe.transformer)
    pipe.fuse_lora(adapter_names=["b"])
    assert not same(before, once) and not same(once, stored(pipe.transformer))
    assert pipe.fused_loras == {"a", "b"}
    pipe.unfuse_lora()
    assert same(before, stored(pipe.transformer))


@FUSE
def test_a_fused_lora_stays_when_it_is_unloaded_and_in_copies():
    pipe, arguments = quantized()
    load_lora(pipe)
    pipe.fuse_lora()
    fused = generate(pipe, arguments)
    twin_of_fused = copy.deepcopy(pipe.transformer)
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, arguments), fused)
    pipe.transformer = twin_of_fused
    assert torch.equal(generate(pipe, arguments), fused)
    pipe.unfuse_lora()
    assert same(stored(pipe.transformer), stored(quantized()[0].transformer))


@feature(
    "LoRA: fuse and unfuse", "after", "What was fused before enabling is quantized with its weight and cannot be unfused."
)
def test_what_was_fused_before_quantizing_stays_and_is_said_to():
    pipe, arguments = build("wan")
    load_lora(pipe)
    pipe.fuse_lora()
    pipe.enable_sedialect(progress=False)
    fused = generate(pipe, arguments)
    with pytest.raises(ModelError, match="LoRA a was fused before the layer was quantized"):
        pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, arguments), fused)
    load_lora(pipe)
    pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, arguments), fused)


def test_of_two_loras_only_the_one_fused_after_quantizing_can_be_taken_out():
    pipe, _ = build("wan")
    load_two(pipe)
    pipe.fuse_lora(adapter_names=["a"])
    pipe.enable_sedialect(progress=False)
    before = stored(pipe.transformer)
    pipe.fuse_lora(adapter_names=["b"])
    assert not same(before, stored(pipe.transformer))
    for module in pipe.transformer.modules():
        if getattr(module, "merged", False):
            with pytest.raises(ModelError, match="LoRA a was fused before the layer was quantized"):
                module.unmerge()
    assert same(before, stored(pipe.transformer))


def break_lora(pipe):
    state = lora()
    state["transformer.blocks.0.attn1.to_q.lora_A.weight"][0, 0] = torch.nan
    pipe.load_lora_weights(state, adapter_name="a")


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (break_lora, EncodeError, "a weight with LoRA a added holds NaN or Inf"),
        (load_dora, ModelError, "LoRA a is no plain LoRA .DoraLinearVariant. and cannot be fused into 4 bit"),
    ],
)
def test_what_cannot_be_fused_is_refused_and_changes_nothing(action, error, message):
    pipe, _ = quantized()
    action(pipe)
    before = stored(pipe.transformer)
    with pytest.raises(error, match=message):
        pipe.fuse_lora()
    assert same(before, stored(pipe.transformer))


def test_a_fused_pipeline_is_not_disabled_before_it_is_unfused():
    pipe, arguments = build("wan")
    plain = generate(pipe, arguments)
    pipe.enable_sedialect(keep_original=True, progress=False)
    load_lora(pipe)
    pipe.fuse_lora()
    with pytest.raises(ModelError, match="transformer has LoRA a fused into its codes; call pipe.unfuse_lora"):
        pipe.disable_sedialect()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pipe.disable_sedialect()
    assert torch.equal(generate(pipe, arguments), plain)


def test_fusing_into_layers_that_are_not_in_memory_is_refused():
    pipe, _ = quantized()
    load_lora(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ModelError, match="weights are not in memory .device meta.*call fuse_lora.. before offloading"):
        pipe.fuse_lora()


def test_loras_on_layers_that_are_not_ours_are_fused_as_ever():
    plain, arguments = build("wan")
    before = generate(plain, arguments)
    load_lora(plain)
    unfused = generate(plain, arguments)
    plain.fuse_lora()
    assert close(generate(plain, arguments), unfused)
    plain.unfuse_lora()
    plain.unload_lora_weights()
    assert close(generate(plain, arguments), before)


@feature(
    "LoRA: `transformer.save_lora_adapter()`",
    "first",
    "diffusers casts the model for it, and refuses that for quantized ones: use `pipe.save_lora_weights()`.",
    refused=True,
)
def test_a_trained_lora_is_saved_by_the_pipeline(tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe, arguments = quantized()
    pipe.transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted = generate(pipe, arguments)
    with pytest.raises(ValueError, match="Casting a quantized model"):
        pipe.transformer.save_lora_adapter(tmp_path / "adapter")
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    other, _ = quantized()
    other.load_lora_weights(tmp_path)
    assert torch.equal(generate(other, arguments), adapted)


TRAIN = feature("Training a LoRA", "first", "Straight through the frozen 4-bit layers; gradient checkpointing included.")


@TRAIN
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_is_trained_through_frozen_layers(checkpointing):
    from peft import LoraConfig

    pipe, _ = quantized(**WEIGHT_ONLY)
    plain = twin()
    gradients = []
    for each in (pipe, plain):
        model = each.transformer.requires_grad_(False).train()
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
        if checkpointing:
            model.enable_gradient_checkpointing()
        generator = torch.Generator().manual_seed(1)
        shapes = ((1, 16, 2, 4, 6), (1, 8, 32))
        latents, text = (torch.randn(shape, generator=generator) for shape in shapes)
        model(latents, torch.tensor([500]), text, return_dict=False)[0].square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "lora_B" in name})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():  # block 0's come through all of block 1
        wanted = gradients[1][name]
        assert gradient.abs().max() > 0 and torch.allclose(
            gradient, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
        )
    assert all(p.grad is None for layer in layers(pipe.transformer) for p in layer.parameters())
