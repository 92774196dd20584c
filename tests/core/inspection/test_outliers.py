"""Planted outliers: the function stays, and the outliers are there."""

import pytest
import tiny_models
import torch
from torch import nn

from sedialect.bench.outliers import plant_outliers
from sedialect.sedialect_core.errors import InputError, ModelError
from sedialect.sedialect_core.inspection import family_of
from sedialect.sedialect_core.inspection.modulation import MODULATION, modulation_of

MODELS = {**tiny_models.TINY, **tiny_models.VARIANTS}
KNOWN = [name for name in MODELS if family_of(MODELS[name]()[0]).name in MODULATION]
FUSED = "WanTransformer3DModel (fused)"
ORIGINAL = "WanAnimate2Transformer3DModel"  # counted among Wan, its blocks named as Wan's authors name them
PLANTED = [name for name in KNOWN if name not in (FUSED, ORIGINAL)]


def output(model: nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        given = model(**inputs)
    return given[0] if isinstance(given, tuple) else given.sample


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def spikes(model: nn.Module, inputs: dict, names: tuple[str, ...]) -> dict[str, float]:
    """The largest channel's root mean square of each layer's input, by the median channel's."""
    found, handles = {}, []
    for name in names:

        def watch(_, args, name=name):
            sizes = args[0].detach().double().flatten(0, -2).square().mean(0).sqrt()
            found[name] = float(sizes.max() / sizes.median())

        handles.append(model.get_submodule(name).register_forward_pre_hook(watch))
    output(model, inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("size", [8, 128])
def test_planting_keeps_the_function_and_makes_outliers(name, size):
    model, inputs = MODELS[name]()
    wanted = output(model, inputs)
    planted = plant_outliers(model, size)
    assert apart(output(model, inputs), wanted) < 2e-6, "float32 rounding, and no more"
    after = spikes(model, inputs, planted.readers)
    before = spikes(MODELS[name]()[0], inputs, planted.readers)
    assert after.keys() == before.keys() and len(after) > 4
    assert all(after[reader] > 0.2 * size for reader in after), {k: (before[k], v) for k, v in after.items()}
    assert max(before.values()) < 8
    unlike, _ = MODELS[name]()
    plant_outliers(unlike, size)
    reader = unlike.get_submodule(planted.readers[0])
    reader.weight.data.copy_(MODELS[name]()[0].get_submodule(planted.readers[0]).weight)
    assert apart(output(unlike, inputs), wanted) > 1e-4, "a reader that was not made smaller would be seen"


@pytest.mark.parametrize("name", ["CogVideoXTransformer3DModel"])
def test_norms_with_weights_keep_every_bit_in_bfloat16(name):
    """No constant is added anywhere, and powers of two change no digit."""
    model, inputs = MODELS[name]()
    model = model.bfloat16()
    inputs = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    wanted = output(model, inputs)
    plant_outliers(model, 32)
    assert torch.equal(output(model, inputs), wanted)


def test_the_bundled_model_keeps_its_function_in_the_precision_of_use():
    from sedialect.sedialect_core import demo
    from sedialect.sedialect_core.video.sampling import load_pipeline

    torch.manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 16, 3, 8, 8),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": torch.randn(1, 12, 192),
    }
    apart_by = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = load_pipeline(demo.MODEL, dtype, "cpu").transformer
        given = {key: value.to(dtype) if key != "timestep" else value for key, value in inputs.items()}
        wanted = output(model, given)
        plant_outliers(model, 32)
        apart_by[dtype] = apart(output(model, given), wanted)
    assert apart_by[torch.float32] < 2e-6
    assert apart_by[torch.bfloat16] < 4e-3, "less than one rounding to bfloat16"


def test_what_cannot_be_planted_is_named():
    model, _ = MODELS[PLANTED[0]]()
    for size in (0, 3, 12):
        with pytest.raises(InputError, match=f"size {size} cannot be planted exactly"):
            plant_outliers(model, size)
    with pytest.raises(ModelError, match=r"the modulation of LatteTransformer3DModel is not known.*it is known of Wan"):
        plant_outliers(MODELS["LatteTransformer3DModel"]()[0], 8)
    with pytest.raises(ModelError, match=r"blocks\.0 has fused projections; call unfuse_qkv_projections"):
        plant_outliers(MODELS[FUSED]()[0], 8)
    assert modulation_of(MODELS[ORIGINAL]()[0]) == ()
    model.blocks[0].attn1.to_q = nn.Identity()
    with pytest.raises(ModelError, match=r"blocks\.0\.attn1\.to_q is a Identity; plant outliers before quantizing"):
        plant_outliers(model, 8)


def test_every_family_whose_modulation_is_known_was_tried():
    assert {family_of(MODELS[name]()[0]).name for name in PLANTED} == set(MODULATION)
