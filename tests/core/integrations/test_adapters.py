"""Every tuner of PEFT on quantized layers: it gives what it gives on the decoded weights, or is refused when it is added."""

from typing import Any

import pytest
import torch
from adapted import TUNERS, add, decoded, dit, pair, quantized, run, same, stored, take_over, train
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from quantized_pipelines import WEIGHT_ONLY, layers

from sedialect import SeDialectConfig, SeDialectLinear, encode, quantize_model
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.inspection.adapters import ADAPTERS, BEFORE_ONLY, REFUSED
from sedialect.sedialect_core.integrations.lora import BACKUP

feature = pytest.mark.feature
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
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
WORKING = sorted(ADAPTERS & set(TUNERS))
NO_MERGING = {"lily", "poly"}  # PEFT itself has none
NO_UNMERGING = {"osf"}


def test_every_tuner_of_peft_is_spoken_for():
    said = {*ADAPTERS, *BEFORE_ONLY, *REFUSED, *FOREIGN}
    assert set(TUNERS) <= said, "a tuner that nobody has tried: sort it into inspection/adapters.py"


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
