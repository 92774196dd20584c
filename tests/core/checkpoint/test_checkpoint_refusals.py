"""Files and settings that are refused by name: damage of every kind, another model's config, weights that will not do."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from checkpoint_files import WEIGHTS, load, record, rewrite
from tiny_models import TINY

from sedialect import Formatbook, SeDialectConfig
from sedialect.sedialect_core.checkpoint.record import RECORD
from sedialect.sedialect_core.errors import ConfigError, EncodeError, FormatbookError, InputError, ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_pickles_are_neither_written_nor_read(saved, tmp_path):
    with pytest.raises(ModelError, match="saved as safetensors only"):
        load(saved).save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.bin"))
    shutil.copy(saved / "config.json", tmp_path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="diffusion_pytorch_model.bin is no safetensors file, and sedialect reads no other"):
        load(tmp_path)
