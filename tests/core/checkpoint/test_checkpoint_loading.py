"""Ways of loading: variants, device maps, in parallel, single files, whole pipelines; what is read in which precision."""

import os
import subprocess
import sys

import diffusers
import pytest
import torch
from checkpoint_files import EXACT, WAN, WEIGHTS, load, same
from model_outputs import outputs, tensors
from quantized_pipelines import layers
from tiny_models import TINY
from tiny_pipelines import build, generate

from sedialect import SeDialectConfig, quantize_model
from sedialect.sedialect_core.errors import InputError, ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_variants_subfolders_and_automodel(plain, tmp_path):
    model = load(plain, quantization_config=SeDialectConfig())
    model.save_pretrained(tmp_path / "sub", variant="w4")
    assert same(diffusers.AutoModel.from_pretrained(str(tmp_path), subfolder="sub", variant="w4"), model)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(plain, saved, device_map):
    assert same(load(plain, quantization_config=SeDialectConfig(), device_map=device_map), load(saved))
    assert same(load(saved, device_map=device_map), load(saved))


def test_a_map_with_disk_loads_what_is_quantized_and_refuses_what_is_not(plain, saved, tmp_path):
    inputs = TINY[WAN]()[1]
    parts = {name: "cpu" for name, _ in load(saved).named_children()} | {"scale_shift_table": "cpu", "blocks": "disk"}
    model = load(saved, device_map=parts, offload_folder=tmp_path, **EXACT)
    got = tensors(model(**inputs))
    assert torch.allclose(got[0], outputs(load(saved, **EXACT), inputs)[0], atol=1e-5)
    with pytest.raises(ModelError, match="puts layers on disk, where they cannot be quantized; quantize with `sedialect"):
        load(plain, quantization_config=SeDialectConfig(), device_map=parts, offload_folder=tmp_path)


def test_loading_in_parallel(plain, saved, tmp_path):
    TINY[WAN]()[0].save_pretrained(tmp_path / "plain", max_shard_size="30KB")
    load(saved).save_pretrained(tmp_path / "saved", max_shard_size="10KB")
    code = f"""
import diffusers, sedialect
load = diffusers.WanTransformer3DModel.from_pretrained
load({str(tmp_path / "plain")!r}, quantization_config=sedialect.SeDialectConfig()).save_pretrained({str(tmp_path / "a")!r})
load({str(tmp_path / "saved")!r}).save_pretrained({str(tmp_path / "b")!r})
"""
    environment = {**os.environ, "HF_ENABLE_PARALLEL_LOADING": "YES", "HF_PARALLEL_LOADING_WORKERS": "8"}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=environment, capture_output=True)
    assert same(load(tmp_path / "a"), load(saved)) and same(load(tmp_path / "b"), load(saved))


def test_single_files_in_16_bit_are_quantized_and_quantized_ones_refused(plain, saved):
    """diffusers would take the keys of a quantized file for those of Wan's authors, and rename them."""
    read = diffusers.WanTransformer3DModel.from_single_file
    arguments = {"config": str(plain), "quantization_config": SeDialectConfig()}
    model = read(str(plain / WEIGHTS), **arguments)
    assert same(model, load(saved)) and model.dtype == torch.bfloat16 and model.hf_quantizer.pre_quantized
    with pytest.raises(
        InputError, match="single file is quantized by sedialect already; load its folder with from_pretrained"
    ):
        read(str(saved / WEIGHTS), **arguments)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_mapping": {"transformer": SeDialectConfig(block_size=32)}},
        {"quant_backend": "sedialect", "quant_kwargs": {"block_size": 32}, "components_to_quantize": ["transformer"]},
    ],
)
def test_pipelines_quantize_while_loading(settings, tmp_path):
    pipe, arguments = build("wan")
    pipe.save_pretrained(tmp_path)
    quantization = diffusers.PipelineQuantizationConfig(**settings)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path, quantization_config=quantization, **EXACT)
    pipe.enable_sedialect(block_size=32, progress=False)
    assert same(again.transformer, pipe.transformer)
    again.set_progress_bar_config(disable=True)
    assert torch.allclose(generate(again, arguments), generate(pipe, arguments), atol=1e-4)


def test_a_text_encoder_is_refused_with_the_remedy(tmp_path):
    build("wan")[0].save_pretrained(tmp_path)
    everything = diffusers.PipelineQuantizationConfig(quant_backend="sedialect", quant_kwargs={"block_size": 32})
    with pytest.raises(ModelError, match=r"(no layer to quantize|components_to_quantize=\['transformer'\])"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path, quantization_config=everything)


def test_dtypes_are_bfloat16_unless_asked_and_float32_where_the_class_keeps_it(plain, saved):
    for model in (load(plain, quantization_config=SeDialectConfig()), load(saved)):
        assert model.dtype == torch.bfloat16 and model.config._pre_quantization_dtype == torch.bfloat16
        assert model.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
        assert model.scale_shift_table.dtype == torch.float32 and model.proj_out.weight.dtype == torch.bfloat16
        assert {layer.compute_dtype for layer in layers(model)} == {torch.bfloat16}
        assert {layer.bias.dtype for layer in layers(model)} == {torch.bfloat16}
    assert load(saved, dtype=torch.float16).proj_out.bias.dtype == torch.float16
    with pytest.raises(ModelError, match="dtype is torch.float8_e4m3fn; layers compute in bfloat16, float16 or float32"):
        load(saved, dtype=torch.float8_e4m3fn)


def test_weights_are_encoded_from_the_files_own_precision(plain, saved):
    """A float32 file loaded as bfloat16: rounding first would cost accuracy for nothing."""
    model = TINY[WAN]()[0]
    quantize_model(model)
    for a, b in zip(layers(model), layers(load(saved)), strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(a.weight_scale, b.weight_scale)


def test_no_layer_ever_holds_its_16_bit_weight(plain, monkeypatch):
    """What a device holds of a layer is empty before the weights of its group have come, and packed afterwards."""
    from sedialect.sedialect_core.integrations.quantizer import SeDialectQuantizer

    packed: list[int] = []

    def create(self, model, *arguments, **more):
        original(self, model, *arguments, **more)
        here = [layer.weight for layer in layers(model) if layer.weight.device.type != "meta"]
        assert all(weight.dtype == torch.uint8 for weight in here)
        packed.append(len(here))

    original = SeDialectQuantizer.create_quantized_param
    monkeypatch.setattr(SeDialectQuantizer, "create_quantized_param", create)
    load(plain, quantization_config=SeDialectConfig())
    assert len(packed) == 20 and packed[-1] == 20 and 1 in packed
    assert all(number - 2 <= done <= number for number, done in enumerate(packed, 1)), "at most two wait, for the third"
