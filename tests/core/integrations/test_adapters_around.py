"""PEFT's adapters on quantized layers with each other, in threads, compiled, trained and copied; and LoRA's own kinds."""

import copy
import threading
import warnings
from typing import Any

import peft
import pytest
import torch
from adapted import TARGETS, add, config_of, dit, pair, quantized, run, same, stored, train
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from quantized_pipelines import WEIGHT_ONLY
from torch import nn

from sedialect import SeDialectConfig, SeDialectLinear, encode, quantize_model
from sedialect.sedialect_core.errors import ModelError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


# LoRA's own ways


@pytest.mark.parametrize("order", ["first", "after"])
@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "eva"},
        {"use_rslora": True},
        {"use_dora": True},
        {"use_qalora": True, "qalora_group_size": 8},
        {"lora_bias": True},
        {"bias": "all"},
        {"target_modules": "all-linear"},
        {"velora_config": peft.tuners.lora.VeloraConfig(num_groups=2)} if hasattr(peft.tuners.lora, "VeloraConfig") else {},
    ],
    ids=lambda settings: "-".join(map(str, settings)) or "plain",
)
def test_the_kinds_of_lora_act_as_on_the_decoded_weights(settings, order):
    ours, twin = pair("lora", order, r=8, **settings)
    for (name, bias), (other, wanted) in zip(_biases(ours), _biases(twin), strict=True):
        assert name == other
        bias.data.copy_(wanted)
    assert (run(ours) - run(twin)).abs().max() < 1e-5


def _biases(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_lora_that_takes_its_part_out_of_the_weight_goes_before_quantizing(init):
    model = quantized()
    before = stored(model)
    with pytest.raises(ModelError, match=f"init_lora_weights='{init}' takes its part out of the weight.*16-bit model"):
        add(model, "lora", init_lora_weights=init)
    assert same(before, stored(model)) and not hasattr(model, "peft_config")
    ours, _ = pair("lora", "after", init_lora_weights=init, r=8)
    # The weight that was quantized is the one without the LoRA's part.
    layer = ours.get_submodule("base_model.model.blocks.0.attn1.to_q.base_layer")
    torch.manual_seed(0)
    plain = add(dit(), "lora", init_lora_weights=init, r=8).get_submodule("base_model.model.blocks.0.attn1.to_q.base_layer")
    assert torch.equal(layer.dequantize(torch.float32), encode(plain.weight.detach()).dequantize())


def test_kasa_is_refused_in_both_orders():
    kasa = getattr(peft.tuners.lora.config, "KasaConfig", None)
    if kasa is None:
        pytest.skip("this PEFT has no KaSA")
    with pytest.raises(ModelError, match="KaSA cuts singular values"):
        add(quantized(), "lora", kasa_config=kasa())
    model = add(dit(), "lora", "inject", kasa_config=kasa())
    plan = quantize_model(model, SeDialectConfig(**WEIGHT_ONLY))
    assert sum("KaSA" in layer.reason for layer in plan.left_alone) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": [], "target_parameters": ["attn1.to_q.weight"]}, "would add numbers to the packed codes"),
        ({"modules_to_save": ["attn1.to_out.0"]}, "packed codes cannot be trained"),
        ({"modules_to_save": ["ffn"]}, "packed codes cannot be trained"),
    ],
    ids=["target_parameters", "modules_to_save", "modules_to_save of a parent"],
)
def test_what_peft_would_do_to_parameters_themselves_is_refused(settings, message):
    model = quantized()
    before, wanted = stored(model), run(model)
    with pytest.raises(ModelError, match=message):
        add(model, "lora", **settings)
    assert same(before, stored(model)) and torch.equal(run(model), wanted)


def test_parts_in_16_bit_may_be_trained_whole():
    model = add(quantized(), "lora", modules_to_save=["proj_out"])
    wanted = run(model)
    train(model)
    assert (run(model) - wanted).abs().max() > 1e-3


def test_a_tuner_that_nobody_has_tried_is_refused():
    from peft.tuners.lora import LoraConfig

    class Unknown(LoraConfig):
        def __post_init__(self):
            super().__post_init__()
            self.peft_type = "BRAND_NEW"

    model = quantized()
    tuner = object.__new__(PEFT_TYPE_TO_TUNER_MAPPING[peft.PeftType.LORA])
    nn.Module.__init__(tuner)
    tuner.peft_config = {"default": Unknown(target_modules=TARGETS)}
    with pytest.raises(ModelError, match="brand_new has not been tried on 4-bit layers"):
        tuner.inject_adapter(model, "default")


# What lies around


def test_a_second_adapter_that_is_refused_leaves_the_first():
    model = add(quantized(), "loha", "add_adapter")
    train(model)
    wanted = run(model)
    with pytest.raises(ModelError, match="LN tuning"):
        model.add_adapter(config_of("ln_tuning"), "second")
    assert torch.equal(run(model), wanted) and list(model.peft_config) == ["default"]


def test_several_adapters_merge_one_after_the_other():
    model = add(quantized(), "loha")
    model.add_adapter("second", config_of("loha"))
    train(model)
    model.base_model.set_adapter(["default", "second"])
    before, unmerged = stored(model), run(model)
    model.merge_adapter(["default"])
    once = stored(model)
    model.merge_adapter(["second"])
    assert not same(before, once) and not same(once, stored(model))
    model.unmerge_adapter()
    assert same(before, stored(model)) and torch.equal(run(model), unmerged)


def test_adapters_around_each_other_come_off_in_turn():
    model = peft.PeftMixedModel(quantized(), config_of("loha"), "inner")
    model.add_adapter("outer", config_of("lokr"))
    model.base_model.set_adapter(["inner", "outer"])
    train(model)
    before = stored(model)
    outer = model.base_model.model.blocks[0].attn1.to_q
    inner = outer.base_layer
    assert inner is not outer.get_base_layer() and hasattr(inner, "base_layer")
    inner.merge()
    once = stored(model)
    outer.merge()
    with pytest.raises(ModelError, match="another adapter was fused into the same layer after inner"):
        inner.unmerge()
    outer.unmerge()
    assert same(once, stored(model))
    inner.unmerge()
    assert same(before, stored(model))


def test_a_merge_that_fails_changes_nothing():
    model = add(quantized(), "lokr")
    train(model)
    before = stored(model)
    layer = model.base_model.model.blocks[0].attn1.to_q
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(torch.nan)
    for safe in (False, True):
        with pytest.raises(ValueError, match="NaN"):
            layer.merge(safe_merge=safe)
        assert same(before, stored(model)) and not layer.merged


def test_what_a_running_adapter_sees_is_its_threads_own_affair():
    """In another thread, and after the run, the layer is the quantized one: unloading puts it into the model."""
    model = add(quantized(), "hra")
    layer, found = model.base_model.model.blocks[0].attn1.to_q, []
    inner = layer.get_delta_weight

    def look(*args: Any) -> torch.Tensor:
        found.append(layer.get_base_layer())
        thread = threading.Thread(target=lambda: found.append(layer.get_base_layer()))
        thread.start()
        thread.join()
        return inner(*args)

    layer.get_delta_weight = look
    run(model)
    assert type(found[0]) is nn.Linear and isinstance(found[1], SeDialectLinear)
    assert isinstance(layer.get_base_layer(), SeDialectLinear)


def test_threads_may_run_one_adapted_model_at_once():
    model = add(quantized(), "miss")
    train(model)
    wanted, found = run(model), []
    threads = [threading.Thread(target=lambda: found.extend(run(model) for _ in range(3))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9 and all(torch.equal(one, wanted) for one in found)


@pytest.mark.parametrize("tuner", ["loha", "hra", "oft"])
def test_a_compiled_model_with_an_adapter_gives_the_same(tuner):
    model = add(quantized(), tuner, "inject")
    train(model)
    wanted = run(model)
    torch._dynamo.reset()
    model.compile(backend="aot_eager")
    assert torch.allclose(run(model), wanted, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("tuner", ["lokr", "ia3", "hra", "boft"])
def test_an_adapter_is_trained_as_on_the_decoded_weights(tuner):
    ours, twin = pair(tuner, "first")
    gradients = []
    for model in (ours, twin):
        generator = torch.Generator().manual_seed(1)
        latents, text = (torch.randn(shape, generator=generator) for shape in ((1, 16, 2, 4, 6), (1, 8, 32)))
        model(latents, torch.tensor([500]), text, return_dict=False)[0].square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        wanted = gradients[1][name]
        assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_copies_of_a_merged_model_can_be_unmerged():
    model = add(quantized(), "loha")
    train(model)
    before = stored(model)
    model.merge_adapter()
    twin = copy.deepcopy(model)
    twin.unmerge_adapter()
    assert same(before, stored(twin))
    model.unmerge_adapter()
    assert same(before, stored(model))


def test_what_was_merged_before_quantizing_stays_and_is_said_to():
    model = add(dit(), "loha")
    train(model)
    model.merge_adapter()
    quantize_model(model.base_model.model, SeDialectConfig(**WEIGHT_ONLY))
    with pytest.raises(ModelError, match="was fused before the layer was quantized"), warnings.catch_warnings():
        model.unmerge_adapter()


def test_adding_to_layers_that_are_not_in_memory_is_refused():
    from accelerate import cpu_offload

    model = quantized()
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match="not in memory .device meta.*add the adapter before offloading"):
        add(model, "loha", "inject")
