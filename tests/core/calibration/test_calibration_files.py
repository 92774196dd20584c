"""Rotated layers in memory and on disk; files without them are those of version 1."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_files import EXACT, GOLDEN, WAN, WEIGHTS, load, record, rewrite, same
from model_outputs import outputs
from quantized_pipelines import lora, quantized
from safetensors import safe_open
from tiny_models import TINY
from tiny_pipelines import build, generate
from torch import nn

from sedialect import SeDialectConfig, SeDialectLinear, encode, quantize_model
from sedialect.kernels.rotation import rotate_rows
from sedialect.sedialect_core import config
from sedialect.sedialect_core.checkpoint import record as record_module
from sedialect.sedialect_core.checkpoint.record import RECORD
from sedialect.sedialect_core.errors import ConfigError, InputError

ROTATED = SeDialectConfig(rotation=16)
pytestmark = pytest.mark.usefixtures("one_thread")


def rotations(model: nn.Module) -> dict[str, int]:
    return {name: module.rotation for name, module in model.named_modules() if isinstance(module, SeDialectLinear)}


def recorded(folder: Path) -> dict:
    with safe_open(folder / WEIGHTS, "pt") as opened:
        return json.loads(opened.get_tensor(RECORD).numpy().tobytes())


def settings(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory) -> Path:
    """Quantized while loading, with rotations."""
    folder = tmp_path_factory.mktemp("rotated")
    load(plain, quantization_config=ROTATED, **EXACT).save_pretrained(folder)
    return folder


def test_rotated_models_come_back_from_disk_as_they_were(saved):
    model, inputs = TINY[WAN]()
    plan = quantize_model(model, ROTATED)
    again = load(saved, **EXACT)
    assert same(again, model)
    assert rotations(again) == rotations(model) == {layer.name: layer.rotation for layer in plan.quantized}
    assert 16 in rotations(again).values()
    assert again._sedialect.plan.layers == plan.layers
    for one, two in zip(outputs(again, inputs), outputs(model, inputs), strict=True):
        assert torch.equal(one, two)


def test_decoded_weights_are_those_of_the_layer_not_of_its_rotation(saved):
    original, again = TINY[WAN]()[0], load(saved, **EXACT)
    for name, size in rotations(again).items():
        weight = original.get_submodule(name).weight
        error = (again.get_submodule(name).dequantize(torch.float32) - weight).norm() / weight.norm()
        assert size == 16
        assert error < 0.12
    dequantized = load(saved, **EXACT).dequantize()
    name = "blocks.0.attn1.to_q"
    assert torch.equal(dequantized.get_submodule(name).weight, again.get_submodule(name).dequantize())


def test_the_plan_says_what_is_rotated_and_what_cannot_be():
    model = TINY[WAN]()[0]
    plan = quantize_model(model, SeDialectConfig(rotation=64))
    by_width = {layer.in_features: layer for layer in plan.quantized}
    assert by_width[64].rotation == 64
    assert by_width[64].explanation.endswith("; rotated by 64")
    assert by_width[96].rotation == 0
    assert by_width[96].explanation.endswith("; not rotated: 96 inputs are not a multiple of 64")
    assert "rotated by 64" in str(plan)


def test_every_file_is_version_1_and_a_reader_of_another_says_what_to_do(saved, monkeypatch):
    assert recorded(saved)["format_version"] == settings(saved)["version"] == 1
    assert recorded(GOLDEN)["format_version"] == settings(GOLDEN)["version"] == 1
    with monkeypatch.context() as patched:
        patched.setattr(config, "CONFIG_VERSION", 2)
        with pytest.raises(ConfigError, match=r"settings of version 1; this sedialect reads 2: update sedialect"):
            load(saved)
    monkeypatch.setattr(record_module, "FORMAT_VERSION", 2)
    with pytest.raises(InputError, match=r"is of format version 1; this sedialect reads 2: update sedialect"):
        load(saved)


@pytest.mark.parametrize("value", [{"24": ["blocks.0.attn1.to_q"]}, {"16": ["blocks.0.attn9"]}])
def test_rotations_that_do_not_exist_are_refused(saved, tmp_path, value):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, lambda state, _: record(state, rotations=value))
    with pytest.raises(InputError, match="names a rotation or a rotated layer that does not exist; download it again"):
        load(tmp_path)


def test_rotations_that_are_no_numbers_are_damage(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, lambda state, _: record(state, rotations={"far": ["blocks.0.attn1.to_q"]}))
    with pytest.raises(InputError, match="names a rotation or a rotated layer that does not exist"):
        load(tmp_path)


@pytest.mark.parametrize("size", [1, 8, 48, 256, -16])
def test_sizes_that_no_rotation_has_are_refused(size):
    with pytest.raises(ConfigError, match=f"rotation is {size}; choose one of 0, 16, 32, 64, 128"):
        SeDialectConfig(rotation=size)


def test_settings_with_and_without_rotation_come_back():
    for value in (SeDialectConfig(), ROTATED, SeDialectConfig(rotation=128, block_size=32)):
        assert SeDialectConfig.from_dict(value.to_dict()) == value
        assert SeDialectConfig.from_dict(json.loads(value.to_json_string())) == value


def test_a_lora_beside_rotated_layers_adds_what_it_adds_to_others():
    pipe, arguments = quantized(precision="w4a16", rotation=16)
    plain, _ = build("wan")
    for name, layer in pipe.transformer.named_modules():
        if isinstance(layer, SeDialectLinear):
            plain.transformer.get_submodule(name).weight.data.copy_(layer.dequantize(torch.float32))
    before = generate(pipe, arguments)
    for each in (pipe, plain):
        each.load_lora_weights(lora(), adapter_name="a")
    after = generate(pipe, arguments)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, generate(plain, arguments), rtol=0, atol=5e-5)


def test_a_lora_is_fused_into_rotated_layers_and_taken_out_bit_for_bit():
    pipe, _ = quantized(rotation=16)
    layer = pipe.transformer.blocks[0].attn1.to_q
    before, decoded = [tensor.clone() for tensor in layer.parameters()], layer.dequantize(torch.float32)
    pipe.load_lora_weights(lora(), adapter_name="a")
    adapter = pipe.transformer.blocks[0].attn1.to_q
    wanted = decoded + adapter.get_delta_weight("a")
    pipe.fuse_lora()
    fused = layer.dequantize(torch.float32)
    assert (fused - wanted).norm() / wanted.norm() < 0.12
    assert torch.equal(layer.weight, encode(rotate_rows(wanted, 16), formatbook=layer.formatbook).codes)
    pipe.unfuse_lora()
    assert all(torch.equal(one, two) for one, two in zip(before, layer.parameters(), strict=True))


def test_fusing_a_lora_into_calibrated_weights_says_what_is_lost():
    pipe, _ = quantized()
    pipe.transformer.blocks[0].attn1.to_q.calibrated = True
    pipe.load_lora_weights(lora(), adapter_name="a")
    with pytest.warns(UserWarning, match="is fused into calibrated weights; .*encoded without calibration"):
        pipe.fuse_lora()
