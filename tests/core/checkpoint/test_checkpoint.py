"""Quantized models on disk, through the real diffusers: every class it has, pipelines, settings and books come back."""

import json

import diffusers
import pytest
import torch
from checkpoint_files import EXACT, GOLDEN, WEIGHTS, load, same
from model_outputs import outputs
from quantized_pipelines import layers
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import TINY, VARIANTS
from tiny_pipelines import PIPELINES, build, generate

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear, quantize_model
from sedialect.sedialect_core.errors import ConfigError, ModelError

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


def test_settings_of_a_file_beat_those_of_the_call(saved):
    with pytest.warns(UserWarning, match="already has a `quantization_config` attribute"):
        model = load(saved, quantization_config=SeDialectConfig(block_size=32))
    assert {layer.block_size for layer in layers(model)} == {16}


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
