"""What is saved of a model that was changed: disabled, dequantized, with a LoRA, fused, copied."""

import weakref

import pytest
import torch
from checkpoint_files import EXACT, load, same
from model_outputs import outputs
from quantized_pipelines import layers, lora
from tiny_models import VARIANTS
from tiny_pipelines import build, generate

from sedialect import SeDialectLinear
from sedialect.sedialect_core.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_disabling_takes_every_mark_off(tmp_path):
    pipe, _ = build("wan")
    pipe.transformer.save_pretrained(tmp_path / "before")
    before = dict(pipe.transformer.config)
    pipe.enable_sedialect(keep_original=True, progress=False)
    pipe.disable_sedialect()
    assert dict(pipe.transformer.config) == before and not hasattr(pipe.transformer, "hf_quantizer")
    pipe.transformer.save_pretrained(tmp_path / "after")
    assert (tmp_path / "after/config.json").read_text() == (tmp_path / "before/config.json").read_text()
    assert same(load(tmp_path / "after"), load(tmp_path / "before"))


def test_dequantizing_gives_an_ordinary_model_with_the_same_values(saved, tmp_path):
    model = load(saved, **EXACT)
    values = {name: layer.dequantize() for name, layer in model.named_modules() if isinstance(layer, SeDialectLinear)}
    model.dequantize()
    assert not layers(model) and "quantization_config" not in model.config and not model.is_quantized
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert all(torch.equal(again.get_submodule(name).weight, value) for name, value in values.items())
    model.to(torch.bfloat16)
    model.fuse_qkv_projections()


def test_dequantize_works_after_enabling_too():
    pipe, arguments = build("wan")
    pipe.enable_sedialect(preset="weight-only", progress=False)
    before = generate(pipe, arguments)
    pipe.transformer.dequantize()
    assert torch.allclose(generate(pipe, arguments), before, atol=1e-3)
    with pytest.raises(ModelError, match="is not quantized by sedialect"):
        pipe.sedialect_report()


def test_saving_with_a_lora_is_refused_and_works_without(tmp_path):
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    pipe.load_lora_weights(lora(scale=1.0))
    with pytest.raises(ModelError, match="a LoRA is loaded .* call pipe.unload_lora_weights"):
        pipe.transformer.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    pipe.unload_lora_weights()
    pipe.transformer.save_pretrained(tmp_path)
    assert same(load(tmp_path, **EXACT), pipe.transformer)


def test_enabling_with_a_lora_and_saving_without_it(tmp_path):
    pipe, _ = build("wan")
    pipe.load_lora_weights(lora(scale=1.0))
    pipe.enable_sedialect(progress=False)
    pipe.unload_lora_weights()
    pipe.transformer.save_pretrained(tmp_path)
    assert same(load(tmp_path, **EXACT), pipe.transformer)


def test_fused_projections_are_unfused_before_saving(tmp_path):
    model, inputs = VARIANTS["WanTransformer3DModel (fused)"]()
    pipe, _ = build("wan")
    pipe.transformer = model
    pipe.enable_sedialect(progress=False)
    before = outputs(model, inputs)
    with pytest.raises(ModelError, match="fused projections, .* call unfuse_qkv_projections"):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    model.unfuse_qkv_projections()
    model.save_pretrained(tmp_path)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs(load(tmp_path, **EXACT), inputs), before, strict=True)
    )


def test_copies_save_and_models_are_let_go(saved, tmp_path):
    import copy

    model = load(saved)
    copy.deepcopy(model).save_pretrained(tmp_path)
    assert same(load(tmp_path), model)
    gone = weakref.ref(model)
    del model
    assert gone() is None  # without waiting for the garbage collector: on a GPU that would be memory
