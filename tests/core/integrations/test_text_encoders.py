"""Text encoders: what of them is quantized and why, in pipelines, through transformers' own loader, and in files."""

import json

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_encoders import ENCODERS, build_encoder, outputs
from tiny_pipelines import build, generate

import sedialect
from sedialect import SeDialectConfig, SeDialectLinear
from sedialect.sedialect_core.calibration.sentences import sentences
from sedialect.sedialect_core.errors import EncodeError, InputError, ModelError
from sedialect.sedialect_core.plan.rules import make_plan

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCK_LINEARS = {  # of two blocks, and of those of the image encoder beside them
    "UMT5EncoderModel": 12,
    "T5EncoderModel": 12,
    "CLIPTextModel": 12,
    "CLIPTextModelWithProjection": 12,
    "LlamaModel": 14,
    "LlavaForConditionalGeneration": 26,
    "Qwen2_5_VLForConditionalGeneration": 24,
    "Qwen2_5_VLTextModel": 14,
    "Qwen2VLForConditionalGeneration": 22,
    "BertModel": 12,
    "Gemma2Model": 14,
    "Gemma3ForConditionalGeneration": 26,
    "Gemma4UnifiedForConditionalGeneration": 14,
    "T5Gemma2Encoder": 26,
    "CLIPVisionModel": 12,
    "CLIPVisionModelWithProjection": 12,
    "SiglipVisionModel": 12,
}


def layers(model) -> list[SeDialectLinear]:
    return [module for module in model.modules() if isinstance(module, SeDialectLinear)]


def differing(a, b) -> list[str]:
    """Keys of two models whose tensors differ in a bit or in their type."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return [key for key in a if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key])]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_quantized_saved_in_shards_and_loaded_bit_for_bit(name, tmp_path):
    model = build_encoder(name)
    model.save_pretrained(tmp_path / "plain")
    load = type(model).from_pretrained
    while_loading = load(tmp_path / "plain", dtype=torch.float32, quantization_config=SeDialectConfig())
    before = outputs(model)
    plan = sedialect.quantize_model(model)
    assert len(layers(model)) == len(plan.quantized) == BLOCK_LINEARS[name]
    assert {layer.precision for layer in layers(model)} == {"w4a16"}
    assert all(layer.reason for layer in plan.layers)
    assert not differing(while_loading, model)
    found = outputs(model)
    assert found.isfinite().all() and 0 < (found - before).norm() < 0.4 * before.norm()
    model.save_pretrained(tmp_path / "quantized", max_shard_size="20KB")
    assert len(list((tmp_path / "quantized").glob("*.safetensors"))) > 1
    again = load(tmp_path / "quantized", dtype=torch.float32)
    assert not differing(again, model) and torch.equal(outputs(again), found)
    assert again._sedialect.plan.quantized and again.is_quantized


def reasons(model) -> dict[str, str]:
    return {layer.name: layer.reason for layer in make_plan(model, SeDialectConfig()).left_alone}


def test_what_stays_has_its_reason():
    t5 = reasons(build_encoder("T5EncoderModel"))
    assert list(t5) == [f"encoder.block.{block}.layer.1.DenseReluDense.wo" for block in range(2)]
    assert "keeps 'wo' in float32" in next(iter(t5.values()))
    gemma = reasons(build_encoder("Gemma3ForConditionalGeneration"))
    assert gemma["lm_head"] == "shares its weight with the embedding model.language_model.embed_tokens"
    assert "head" in gemma["model.vision_tower.head.mlp.fc1"]
    qwen = reasons(build_encoder("Qwen2_5_VLForConditionalGeneration"))
    assert "head" in qwen["lm_head"] and "projection" in qwen["model.visual.merger.mlp.0"]
    assert "projection" in reasons(build_encoder("CLIPTextModelWithProjection"))["text_projection"]
    notes = make_plan(build_encoder("Qwen2_5_VLForConditionalGeneration"), SeDialectConfig()).notes
    assert any("patch_embed" in note and "not the weight of a linear" in note for note in notes)
    assert any("embed_tokens.weight (99 x 32) stays in 16 bit: an embedding" in note for note in notes)


def test_t5_in_float16_keeps_its_wo_in_float32_and_computes(tmp_path):
    build_encoder("T5EncoderModel").save_pretrained(tmp_path)
    model = transformers.T5EncoderModel.from_pretrained(tmp_path, dtype=torch.float16, quantization_config=SeDialectConfig())
    assert {block.layer[1].DenseReluDense.wo.weight.dtype for block in model.encoder.block} == {torch.float32}
    assert outputs(model).isfinite().all() and len(layers(model)) == 12


def test_settings_reach_the_layers_and_activations_stay_16_bit():
    model = build_encoder("LlamaModel")
    config = SeDialectConfig(block_size=32, skip=("layers.0",), layer_precisions=(("down_proj", "16bit"),), rotation=32)
    plan = sedialect.quantize_model(model, config)
    assert {layer.block_size for layer in layers(model)} == {32} and {layer.rotation for layer in layers(model)} == {0}
    assert [layer.name for layer in plan.quantized] == [
        f"layers.1.{part}" for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    ] + ["layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"]
    assert plan.config.precision == "w4a16" and not plan.config.salient_ratio


@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_pipelines_quantize_report_restore_save_and_load_their_encoders(family, tmp_path):
    pipe, arguments = build(family)
    plain = generate(pipe, arguments)
    names = ["text_encoder", "text_encoder_2"] if family == "hunyuan" else ["text_encoder"]
    pipe.enable_sedialect(text_encoder=True, keep_original=True, progress=False)
    assert [model.component for model in pipe.sedialect_report().models] == ["transformer", *names]
    assert all(layers(getattr(pipe, name)) for name in names)
    quantized = generate(pipe, arguments)
    assert quantized.isfinite().all() and not torch.equal(quantized, plain)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    for name in ("transformer", *names):
        assert not differing(getattr(again, name), getattr(pipe, name))
    assert [model.component for model in again.sedialect_report().models] == ["transformer", *names]
    pipe.disable_sedialect()
    assert torch.equal(generate(pipe, arguments), plain)
    assert "quantization_config" not in pipe.text_encoder.config.to_dict() and not layers(pipe.text_encoder)


def test_pipelines_quantize_everything_while_loading(tmp_path):
    build("wan")[0].save_pretrained(tmp_path)
    everything = diffusers.PipelineQuantizationConfig(quant_backend="sedialect", quant_kwargs={"block_size": 32})
    with pytest.raises(ModelError, match="no layer to quantize"):  # the tiny autoencoder has none
        diffusers.DiffusionPipeline.from_pretrained(tmp_path, quantization_config=everything)
    both = {"quant_kwargs": {"block_size": 32}, "components_to_quantize": ["transformer", "text_encoder"]}
    config = diffusers.PipelineQuantizationConfig(quant_backend="sedialect", **both)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.float32)
    pipe, _ = build("wan")
    pipe.enable_sedialect(text_encoder="text_encoder", block_size=32, progress=False)
    assert not differing(loaded.text_encoder, pipe.text_encoder)


def test_an_encoder_is_quantized_beside_a_transformer_that_is_quantized_already():
    pipe, _ = build("wan")
    pipe.enable_sedialect(progress=False)
    with pytest.raises(ModelError, match="quantized by sedialect already"):
        pipe.enable_sedialect(text_encoder=True, block_size=32, progress=False)
    pipe.enable_sedialect(text_encoder=True, progress=False)
    assert layers(pipe.text_encoder)
    with pytest.raises(ModelError, match="text_encoder is quantized by sedialect already"):
        pipe.enable_sedialect(text_encoder=True, progress=False)


def test_names_that_are_no_encoders_are_refused():
    pipe, _ = build("wan")
    with pytest.raises(ModelError, match="text_encoder names 'vae'.*there are text_encoder"):
        pipe.enable_sedialect(text_encoder=["vae"])
    with pytest.raises(ModelError, match="add text_encoder=True"):
        pipe.enable_sedialect(calibration="text")
    assert not layers(pipe.transformer)


def test_calibrated_encoders_come_nearer_and_the_transformer_stays_uncalibrated():
    errors = []
    unseen = sentences(8, seed=9)
    for settings in ({}, {"calibration": "text"}):
        pipe, _ = build("hunyuan")
        ids = pipe.tokenizer(unseen, return_tensors="pt", padding="max_length", max_length=60, truncation=True).input_ids
        before = pipe.text_encoder(ids).last_hidden_state
        pipe.enable_sedialect(text_encoder=True, progress=False, **settings)
        errors.append(float((pipe.text_encoder(ids).last_hidden_state - before).norm()))
    assert errors[1] < 0.9 * errors[0]
    transformer, text, *_ = pipe.sedialect_report().models
    assert any(layer.calibrated for layer in text.plan.quantized)
    assert "sentences" in str(text.plan) and not any(layer.calibrated for layer in transformer.plan.quantized)


def test_a_pushed_encoder_is_loaded_by_name_bit_for_bit(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    model = build_encoder("UMT5EncoderModel")
    sedialect.quantize_model(model)
    model.push_to_hub("me/umt5-sedialect", token=hub.token)
    again = transformers.UMT5EncoderModel.from_pretrained("me/umt5-sedialect", dtype=torch.float32)
    assert not differing(again, model)


@pytest.fixture
def saved(tmp_path):
    model = build_encoder("UMT5EncoderModel")
    model.save_pretrained(tmp_path / "plain")
    sedialect.quantize_model(model)
    model.save_pretrained(tmp_path / "quantized")
    return tmp_path


KEY = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("folder", "change", "error", "message"),
    [
        ("plain", lambda tensors: tensors.pop(KEY), ModelError, f"the checkpoint lacks '{KEY}'"),
        ("plain", lambda tensors: tensors[KEY].fill_(float("nan")), EncodeError, KEY),
        ("quantized", lambda tensors: tensors[KEY].bitwise_xor_(1), InputError, KEY),
        ("quantized", lambda tensors: tensors.pop(KEY), ModelError, f"the key '{KEY}' is missing"),
        ("quantized", lambda tensors: tensors.pop("sedialect_record"), InputError, "no checkpoint of sedialect's"),
    ],
)
def test_files_that_are_damaged_are_refused(saved, folder, change, error, message):
    file = saved / folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    settings = {} if folder == "quantized" else {"quantization_config": SeDialectConfig()}
    with pytest.raises(error, match=message):
        transformers.UMT5EncoderModel.from_pretrained(saved / folder, dtype=torch.float32, **settings)


def test_a_dequantized_encoder_is_a_plain_one(saved, tmp_path):
    model = transformers.UMT5EncoderModel.from_pretrained(saved / "quantized", dtype=torch.float32)
    wanted = outputs(model)
    model.dequantize()
    assert not layers(model) and torch.allclose(outputs(model), wanted, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
    again = transformers.UMT5EncoderModel.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(outputs(again), outputs(model))
