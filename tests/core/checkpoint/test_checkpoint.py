"""Quantized models on disk: through the real diffusers, for every class it has, and with every damage a file can take."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import diffusers
import pytest
import torch
from checkpoint_files import EXACT, GOLDEN, WEIGHTS, load, record, rewrite, same
from model_outputs import outputs, tensors
from quantized_pipelines import layers, lora
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import TINY, VARIANTS
from tiny_pipelines import PIPELINES, build, generate

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.sedialect_core.checkpoint.record import RECORD
from sedialect.sedialect_core.errors import ConfigError, EncodeError, FormatbookError, InputError, ModelError

WAN = "WanTransformer3DModel"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", [*TINY, *(name for name in VARIANTS if "fused" not in name and "nabla" not in name)])
def test_every_class_gives_the_same_bits_before_saving_and_after_loading(name, tmp_path):
    model, inputs = (TINY | VARIANTS)[name]()
    cls = type(model)
    model.save_pretrained(tmp_path / "plain")
    quantized = cls.from_pretrained(tmp_path / "plain", quantization_config=SeDialectConfig(), **EXACT)
    quantize_model(model)
    assert same(quantized, model)  # while loading or afterwards: the same codes
    before = outputs(quantized, inputs)
    quantized.save_pretrained(tmp_path / "whole")
    quantized.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for folder in ("whole", "sharded"):
        again = cls.from_pretrained(tmp_path / folder, **EXACT)
        assert same(again, quantized) and [layer.precision for layer in layers(again)] == [
            layer.precision for layer in layers(model)
        ]
        assert all(torch.equal(a, b) for a, b in zip(outputs(again, inputs), before, strict=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A tiny 16-bit Wan on disk."""
    folder = tmp_path_factory.mktemp("plain")
    TINY[WAN]()[0].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory) -> Path:
    """The same, quantized."""
    folder = tmp_path_factory.mktemp("saved")
    load(plain, quantization_config=SeDialectConfig()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", PIPELINES)
def test_whole_pipelines_are_saved_and_loaded(family, tmp_path):
    pipe, arguments = build(family)
    pipe.enable_sedialect(progress=False)
    before = generate(pipe, arguments)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path, **EXACT)
    again.set_progress_bar_config(disable=True)
    assert torch.allclose(generate(again, arguments), before, atol=1e-4)
    assert same(again.transformer, pipe.transformer)
    one, two = pipe.sedialect_report().models, again.sedialect_report().models
    assert [(m.weight_bits, m.bytes_before, m.bytes_after, m.plan.layers) for m in two] == [
        (m.weight_bits, m.bytes_before, m.bytes_after, m.plan.layers) for m in one
    ]
    with pytest.raises(ModelError, match=r"transformer was quantized when it was loaded; load the 16-bit model"):
        again.disable_sedialect()
    with pytest.raises(ModelError, match="is quantized by sedialect already"):
        again.enable_sedialect()


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


def test_the_second_generation_is_the_first(saved, tmp_path):
    load(saved).save_pretrained(tmp_path)
    first, second = load_file(saved / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (saved, tmp_path)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    with safe_open(saved / WEIGHTS, "pt") as a, safe_open(tmp_path / WEIGHTS, "pt") as b:
        assert a.metadata() == b.metadata()
        assert a.metadata()["sedialect_layers"] == "20 w4a4" and a.metadata()["sedialect_version"] == "1"


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("precision", ["w4a8", "w4a16"])
def test_settings_come_back(plain, tmp_path, block_size, precision):
    config = SeDialectConfig(
        precision=precision,
        block_size=block_size,
        formatbook="dialectfp4-16",
        candidates="all",
        skip=("attn2",),
        layer_precisions=(("ffn", "w4a4"),),
    )
    one = load(plain, quantization_config=config)
    one.save_pretrained(tmp_path)
    two = load(tmp_path)
    assert same(one, two) and len(layers(two)) == 12
    for a, b in zip(layers(one), layers(two), strict=True):
        assert (a.precision, a.block_size, a.candidates) == (b.precision, b.block_size, b.candidates)
        assert b.formatbook.digest == Formatbook.builtin("dialectfp4-16").digest and b.candidates == "all"
    assert {layer.precision for layer in layers(two)} == {precision, "w4a4"}


def test_a_book_that_nobody_else_has_travels_with_the_weights(plain, tmp_path):
    data = Formatbook.builtin().to_dict() | {"name": "mine", "sub_formatbooks": [[0], [3]]}
    data["dialects"][0] = {"half_units": [0, 1, 2, 3, 4, 5, 6, 15], "published": False}
    path = Formatbook.from_dict(data).save(tmp_path / "book.json")
    load(plain, quantization_config=SeDialectConfig(formatbook=str(path))).save_pretrained(tmp_path / "model")
    path.unlink()
    settings = json.loads((tmp_path / "model/config.json").read_text())["quantization_config"]
    assert settings["formatbook"] == "mine" and str(tmp_path) not in json.dumps(settings)
    model = load(tmp_path / "model")
    book = layers(model)[0].formatbook
    assert book.to_dict() == data and settings["formatbook_digest"] == book.digest
    assert len({id(layer.formatbook) for layer in layers(model)}) == 1
    model.save_pretrained(tmp_path / "again")
    assert same(load(tmp_path / "again"), model)


def test_config_json_stays_small(saved):
    text = json.dumps(json.loads((saved / "config.json").read_text())["quantization_config"])
    assert len(text) < 800, "every setting, and room for patterns"
    with pytest.raises(ConfigError, match="of at most 2048 characters; use shorter patterns"):
        SeDialectConfig(skip=tuple(f"blocks.{n}.attn1.to_q" for n in range(200)))


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


def test_settings_of_a_file_beat_those_of_the_call(saved):
    with pytest.warns(UserWarning, match="already has a `quantization_config` attribute"):
        model = load(saved, quantization_config=SeDialectConfig(block_size=32))
    assert {layer.block_size for layer in layers(model)} == {16}


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


def test_pickles_are_neither_written_nor_read(saved, tmp_path):
    with pytest.raises(ModelError, match="saved as safetensors only"):
        load(saved).save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.bin"))
    shutil.copy(saved / "config.json", tmp_path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="diffusion_pytorch_model.bin is no safetensors file, and sedialect reads no other"):
        load(tmp_path)


def test_copies_save_and_models_are_let_go(saved, tmp_path):
    import copy

    model = load(saved)
    copy.deepcopy(model).save_pretrained(tmp_path)
    assert same(load(tmp_path), model)
    gone = weakref.ref(model)
    del model
    assert gone() is None  # without waiting for the garbage collector: on a GPU that would be memory


def drop(key):
    return lambda state, _: state.pop(key)


def put(key, value):
    return lambda state, _: state.__setitem__(key, value)


OTHER_BOOK = Formatbook.builtin("dialectfp4-16")
SCALE = "blocks.1.ffn.net.2.weight_scale"
DAMAGE = {
    "no scale": (drop(SCALE), ModelError, rf"{WEIGHTS}: the key '{SCALE}' is missing; the weights are of a Wan"),
    "no bias": (drop("proj_out.bias"), ModelError, "the key 'proj_out.bias' is missing; the weights"),
    "no meta": (drop("blocks.0.attn1.to_q.weight_meta"), ModelError, "'blocks.0.attn1.to_q.weight_meta' is missing"),
    "extra": (put("blocks.7.x", torch.zeros(1)), ModelError, f"{WEIGHTS}: the key 'blocks.7.x' belongs nowhere"),
    "shape": (
        put(SCALE, torch.zeros(63, 4, dtype=torch.uint8)),
        ModelError,
        rf"'{SCALE}' is U8 \[63, 4\], but bytes \[64, 4\]",
    ),
    "dtype": (put(SCALE, torch.zeros(64, 4)), ModelError, rf"'{SCALE}' is F32 \[64, 4\], but bytes \[64, 4\]"),
    "bytes": (put("proj_out.bias", torch.zeros(16, dtype=torch.uint8)), ModelError, "'proj_out.bias' is U8 .*but floats"),
    "no record": (drop(RECORD), InputError, f"{WEIGHTS}: the key '{RECORD}' is missing, so this is no checkpoint of sed"),
    "garbage": (put(RECORD, torch.arange(9, dtype=torch.uint8)), InputError, f"{WEIGHTS}: '{RECORD}' is damaged"),
    "newer": (
        lambda s, _: record(s, format_version=3),
        InputError,
        "format version 3; this sedialect reads 1: update sedialect",
    ),
    "incomplete": (lambda s, _: record(s, layers=None), InputError, "is damaged: 'layers' is None, .*download it again"),
    "precision": (lambda s, _: record(s, layers={"w1a1": ["x"]}), InputError, "a precision that does not exist"),
    "layer": (lambda s, _: record(s, layers={"w4a4": ["blocks.9"]}), ModelError, "lists the layer 'blocks.9', which Wan"),
    "book": (
        lambda s, _: record(s, formatbook=OTHER_BOOK.to_dict()),
        InputError,
        "gives the formatbook digest 0812d7c63643",
    ),
    "books": (
        lambda s, _: record(s, formatbook=OTHER_BOOK.to_dict(), formatbook_digest=OTHER_BOOK.digest),
        InputError,
        f"the header of .*{WEIGHTS} gives the formatbook digest 0812d7c63643",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_by_file_and_key(saved, tmp_path, damage):
    change, error, message = DAMAGE[damage]
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, change)
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_a_truncated_file_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    data = (saved / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=WEIGHTS):
        load(tmp_path)


def test_a_truncated_or_missing_shard_is_refused(saved, tmp_path):
    load(saved).save_pretrained(tmp_path, max_shard_size="30KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{shard.name} cannot be read .*download it again"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises((OSError, ValueError), match=shard.name):
        load(tmp_path)


def settings_changed(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config["quantization_config" if isinstance(value, dict) else key] = (
            config["quantization_config"] | value if isinstance(value, dict) else value
        )
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"quant": {"version": 3}}, ConfigError, "settings of version 3; this sedialect reads 1: update sedialect"),
        ({"quant": {"version": None}}, ConfigError, "settings of version None"),
        ({"quant": {"salience": 1}}, ConfigError, "no setting 'salience'"),
        ({"quant": {"block_size": 32}}, InputError, "has blocks of 16, but config.json says 32"),
        ({"quant": {"formatbook_digest": OTHER_BOOK.digest}}, InputError, "config.json gives the formatbook digest"),
        (
            {"num_layers": 3},
            ModelError,
            r"the key 'blocks.2.attn1.norm_k.weight' is missing, and \d+ more are; .* describes another Wan",
        ),
        ({"num_layers": 1}, ModelError, "lists the layer 'blocks.1.attn1.to_q', which Wan"),
        (
            {"in_channels": 8},
            ModelError,
            r"'patch_embedding.weight' is BF16 \[64, 4, 1, 2, 2\], but floats \[64, 8, 1, 2, 2\]",
        ),
        ({"ffn_dim": 128}, ModelError, r"'blocks.0.ffn.net.0.proj.bias' is BF16 \[96\], but floats \[128\]"),
    ],
)
def test_settings_that_do_not_belong_to_the_weights_are_refused(saved, tmp_path, changes, error, message):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    settings_changed(tmp_path, **changes)
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_another_models_config_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    other = TINY["LTXVideoTransformer3DModel"]()[0]
    other.save_config(tmp_path)
    settings = json.loads((saved / "config.json").read_text())["quantization_config"]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(
        ModelError, match="which LTXVideoTransformer3DModel does not have .* was written from WanTransformer3DModel"
    ):
        diffusers.AutoModel.from_pretrained(tmp_path)


def test_quantized_weights_without_the_setting_are_refused(plain, saved, tmp_path):
    shutil.copy(plain / "config.json", tmp_path)
    shutil.copy(saved / WEIGHTS, tmp_path)
    with pytest.raises(
        InputError, match="is quantized by sedialect already, but its config.json has no quantization_config"
    ):
        load(tmp_path, quantization_config=SeDialectConfig())


def test_16_bit_weights_that_will_not_do_are_refused(plain, tmp_path):
    def spoil(state, _):
        state["blocks.0.attn1.to_q.weight"][0, 0] = torch.nan

    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, spoil)
    with pytest.raises(EncodeError, match="blocks.0.attn1.to_q.weight holds NaN or Inf"):
        load(tmp_path, quantization_config=SeDialectConfig())
    rewrite(tmp_path, put("blocks.0.attn1.to_q.weight", torch.zeros(64, 64).to(torch.float8_e4m3fn)))
    with pytest.raises(ModelError, match="blocks.0.attn1.to_q.weight is torch.float8_e4m3fn; quantize from float32"):
        load(tmp_path, quantization_config=SeDialectConfig())
    rewrite(tmp_path, drop("blocks.0.attn1.to_q.weight"))
    with pytest.raises(ModelError, match="lacks 'blocks.0.attn1.to_q.weight'"):
        load(tmp_path, quantization_config=SeDialectConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formatbook": "nowhere"}, "no formatbook 'nowhere'"),
        ({"formatbook": "auto"}, "chooses by all 16-bit weights, .*; load the model and call pipe.enable_sedialect"),
        ({"formatbook_digest": OTHER_BOOK.digest}, "has the digest 0812d7c63643…, not .* as the settings ask"),
    ],
)
def test_books_that_will_not_do_are_refused(plain, settings, message):
    with pytest.raises(FormatbookError, match=message):
        load(plain, quantization_config=SeDialectConfig(**settings))


def test_the_first_version_is_still_read():
    """Written by the first release of the format. If this fails, old files are lost: mend the reader, not the file."""
    from make_golden import digest_of

    expected = json.loads((GOLDEN / "expected.json").read_text())
    model = load(GOLDEN, **EXACT)
    assert digest_of(model) == expected["digest"]
    assert {
        name: layer.precision for name, layer in model.named_modules() if isinstance(layer, SeDialectLinear)
    } == expected["precisions"]
    equalized = {name for name, layer in model.named_modules() if getattr(layer, "weight_equalizer", None) is not None}
    assert equalized == set(expected["equalized"]) == {f"blocks.0.attn1.to_{one}" for one in "qkv"}
    held = load_file(GOLDEN / "example.safetensors")
    result = held.pop("output")
    (output,) = outputs(model, held)
    assert (output - result).norm() < 0.02 * result.norm()
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 60_000
