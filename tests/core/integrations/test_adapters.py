"""Every tuner of PEFT on quantized layers: it gives what it gives on the decoded weights, or is refused when it is added."""

import copy
import inspect
import threading
import warnings
from importlib.util import find_spec
from typing import Any

import diffusers
import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from quantized_pipelines import WEIGHT_ONLY, layers
from torch import nn

from sedialect import SeDialectConfig, SeDialectLinear, encode, quantize_model
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.inspection.adapters import ADAPTERS, BEFORE_ONLY, REFUSED
from sedialect.sedialect_core.integrations.lora import BACKUP

feature = pytest.mark.feature
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

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
# PEFT's own words for a video transformer: these change prompts, or the structure of a language model.
FOREIGN = {
    "adaption_prompt": "model_type",
    "cartridge": "None",
    "cpt": "CAUSAL_LM",
    "multitask_prompt_tuning": "None",
    "p_tuning": "None",
    "prefix_tuning": "None",
    "prompt_tuning": "None",
    "shadow": "locate the transformer backbone",
    "xlora": "output_hidden_states",
}
TUNERS = sorted(str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
WORKING = sorted(ADAPTERS & set(TUNERS))
NO_MERGING = {"lily", "poly"}  # PEFT itself has none
NO_UNMERGING = {"osf"}


def test_every_tuner_of_peft_is_spoken_for():
    said = {*ADAPTERS, *BEFORE_ONLY, *REFUSED, *FOREIGN}
    assert set(TUNERS) <= said, "a tuner that nobody has tried: sort it into inspection/adapters.py"


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


def cells(tuner: str) -> list[Any]:
    note = "Merged, it is rounded to 4 bit, and unmerging restores every bit." if tuner not in NO_MERGING else ""
    orders = ["after"] if tuner in BEFORE_ONLY else ["first", "after"]
    return [pytest.param(tuner, order, marks=feature(f"PEFT: {tuner}", order, note)) for order in orders]


EVERY = [cell for tuner in sorted({*WORKING, *BEFORE_ONLY} & set(TUNERS)) for cell in cells(tuner)]


@pytest.mark.parametrize(("tuner", "order"), EVERY)
def test_an_adapter_gives_what_it_gives_on_the_decoded_weights(tuner, order):
    without = run(decoded(dit()))
    kind = next(kind for kind in PEFT_TYPE_TO_TUNER_MAPPING if kind.value.lower() == tuner)
    ways = ["get_peft_model"]
    if not PEFT_TYPE_TO_TUNER_MAPPING[kind].uses_shared_state:  # PEFT has no other way for these
        ways += ["inject", "add_adapter"]
    for way in ways if tuner != "poly" else ways[:1]:  # the others do not hand task_ids on
        ours, twin = pair(tuner, order, way)
        before = stored(ours)
        wanted, found = run(twin, tuner), run(ours, tuner)
        effect = (wanted - without).abs().max()
        assert effect > 1e-3, "the adapter does nothing, so the test would show nothing"
        assert (found - wanted).abs().max() < 1e-5
        assert same(before, stored(ours)), "running must not touch codes"


@pytest.mark.parametrize(("tuner", "order"), [cell for cell in EVERY if cell.values[0] not in NO_MERGING])
def test_merging_encodes_the_merged_weight_and_unmerging_restores_every_bit(tuner, order):
    safe = order == "after"
    ours, twin = pair(tuner, order)
    before, unmerged = stored(ours), run(ours)
    biases = [layer.bias.clone() for layer in layers(ours)]
    twin.merge_adapter(safe_merge=safe)
    ours.merge_adapter(safe_merge=safe)
    wanted = dict(twin.named_modules())
    merged = [(name, layer) for name, layer in ours.named_modules() if isinstance(layer, SeDialectLinear) and "base" in name]
    merged = [(name, layer) for name, layer in merged if name.endswith(".base_layer")]
    assert merged
    for name, layer in merged:
        again = encode(wanted[name].weight.detach().float()).dequantize()
        tolerance = 2e-5 * float(again.abs().max())  # of one merge in another order of sums
        near = (layer.dequantize(torch.float32) - again).abs() <= tolerance
        assert near.float().mean() > 0.99, "some blocks may choose another dialect on a tie, no more"
        assert torch.allclose(layer.bias, wanted[name].bias, atol=1e-6)
    assert torch.isfinite(run(ours)).all()
    if tuner in NO_UNMERGING:
        with pytest.raises(NotImplementedError):
            ours.unmerge_adapter()
        return
    ours.unmerge_adapter()
    assert same(before, stored(ours)) and torch.equal(run(ours), unmerged)
    assert all(torch.equal(a, layer.bias) for a, layer in zip(biases, layers(ours), strict=True))
    assert not any(BACKUP in module.__dict__ for module in ours.modules())


@pytest.mark.parametrize("tuner", WORKING)
def test_an_adapter_taken_off_leaves_the_quantized_model(tuner):
    model = quantized()
    before, wanted = stored(model), run(model)
    adapted = add(model, tuner)
    train(adapted)
    if not hasattr(adapted.base_model, "unload"):
        pytest.skip("PEFT cannot take it off")
    back = adapted.unload()
    assert same(before, stored(back)) and torch.equal(run(back), wanted)
    assert len(layers(back)) == len(layers(quantized()))


@pytest.mark.parametrize("tuner", [tuner for tuner in WORKING if tuner != "poly"])
def test_an_adapter_acts_on_4_bit_activations_too(tuner):
    """As far from the adapter on the decoded weight as the layer without one is from its decoded weight."""
    _, twin = pair(tuner, "first")
    four_bit = add(quantized(precision="w4a4", salient_ratio=0.0), tuner)
    take_over(four_bit, train(twin))
    name = "base_model.model.blocks.1.attn1.to_v"
    x = torch.randn(
        40, four_bit.get_submodule(name).get_base_layer().in_features, generator=torch.Generator().manual_seed(4)
    )
    with torch.no_grad():
        layer, plain = four_bit.get_submodule(name), twin.get_submodule(name)
        # PEFT's trained stand-in may be several times larger than it was: measure by the product that was quantized.
        rounding = (layer.get_base_layer()(x) - plain.get_base_layer()(x)).norm() / plain.get_base_layer()(x).norm()
        error = (layer(x) - plain(x)).norm() / max(plain(x).norm(), plain.get_base_layer()(x).norm())
    assert 0.01 < rounding < 0.2 and error < 2 * rounding


@pytest.mark.parametrize("way", ["get_peft_model", "inject", "add_adapter"])
@pytest.mark.parametrize(
    "tuner",
    [
        pytest.param(tuner, marks=feature(f"PEFT: {tuner}", "first", f"{why[0].upper()}{why[1:]}.", refused=True))
        for tuner, why in {**BEFORE_ONLY, **REFUSED}.items()
    ],
)
def test_what_cannot_work_is_refused_when_it_is_added_and_nothing_is_changed(tuner, way):
    model = quantized()
    before, wanted, names = stored(model), run(model), [name for name, _ in model.named_modules()]
    by_peft = way != "get_peft_model" and tuner == "frod"
    refusal = (ValueError, "does not support PeftType.FROD") if by_peft else (ModelError, "quantized layers in all")
    settings = {"token_indices": [0]} if tuner == "trainable_tokens" else {}
    with pytest.raises(refusal[0], match=refusal[1]):
        add(model, tuner, way, **settings)
    assert same(before, stored(model)) and torch.equal(run(model), wanted)
    assert names == [name for name, _ in model.named_modules()]
    if not by_peft:  # after a refusal of PEFT's, diffusers takes no other adapter, in 16 bit neither
        assert run(add(model, "lora", way)).isfinite().all()


@pytest.mark.parametrize("tuner", sorted(REFUSED))
def test_a_layer_under_an_adapter_that_cannot_follow_codes_stays_in_16_bit(tuner):
    settings = {"token_indices": [0]} if tuner == "trainable_tokens" else {}
    model = add(dit(), tuner, "inject", **settings)
    plan = quantize_model(model, SeDialectConfig(**WEIGHT_ONLY))
    left = [layer for layer in plan.left_alone if layer.name.endswith(".base_layer")]
    assert len(left) == 8 and all(REFUSED[tuner] in layer.reason for layer in left)
    assert len(plan.quantized) == len(layers(quantized())) - 8


@pytest.mark.parametrize(
    "tuner", [pytest.param(name, marks=feature(f"PEFT: {name}", "first", refused=True)) for name in sorted(FOREIGN)]
)
def test_what_peft_refuses_for_a_video_transformer_it_refuses_here(tuner):
    """Tuners of prompts and of language models."""
    with pytest.raises(Exception, match=FOREIGN[tuner]):
        run(add(dit(), tuner))
    with pytest.raises(Exception, match=f"{FOREIGN[tuner]}|{tuner} has not been tried on 4-bit layers"):
        run(add(quantized(), tuner))


def test_norms_may_be_tuned_beside_quantized_layers():
    model = add(quantized(), "ln_tuning", "inject", target_modules=["norm2"])
    wanted = run(quantized())
    assert torch.equal(run(model), wanted)
    train(model)
    assert (run(model) - wanted).abs().max() > 1e-3


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
