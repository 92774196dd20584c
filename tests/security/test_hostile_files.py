"""Quantized models of other people: nothing in a file is run, looked up or believed, and damage is found."""

import json
import random
import shutil
import time
from pathlib import Path

import diffusers
import pytest
import torch
from damaged import WEIGHTS, change_record, change_settings, change_tensors, flip, put_record, record_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import TINY

from sedialect import Formatbook, SeDialectConfig, SeDialectLinear
from sedialect.sedialect_core.checkpoint.integrity import check_meta, check_scale
from sedialect.sedialect_core.checkpoint.record import RECORD
from sedialect.sedialect_core.errors import ConfigError, InputError, SeDialectError
from sedialect.sedialect_core.settings.patterns import MAX_PATTERN, finds

WAN = diffusers.WanTransformer3DModel
LAYER = "blocks.0.attn1.to_q"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A tiny Wan, quantized by a book of 16 dialects."""
    folder = tmp_path_factory.mktemp("saved")
    TINY["WanTransformer3DModel"]()[0].save_pretrained(folder / "plain")
    config = SeDialectConfig(formatbook="dialectfp4-16")
    WAN.from_pretrained(folder / "plain", quantization_config=config).save_pretrained(folder / "small")
    return folder / "small"


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it to be spoiled."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(folder: Path, match: str) -> str:
    with pytest.raises(SeDialectError, match=match) as caught:
        WAN.from_pretrained(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text.replace(str(folder), "")) <= 300
    return text


@pytest.mark.parametrize("setting", ["skip", "layer_precisions"])
def test_no_pattern_of_a_file_is_tried(folder, setting, monkeypatch):
    def tried(pattern, name):
        raise AssertionError(f"{pattern} was tried on {name}")

    monkeypatch.setattr("sedialect.sedialect_core.config.finds", tried)
    patterns = ["(.+)+!", "(a|aa)+$"]
    change_settings(folder, **{setting: patterns if setting == "skip" else [[one, "w4a8"] for one in patterns]})
    model = WAN.from_pretrained(folder)
    assert isinstance(model.get_submodule(LAYER), SeDialectLinear)


def test_patterns_of_users_are_bounded_in_length_and_time(monkeypatch):
    with pytest.raises(ConfigError, match="301 characters; at most 300 are tried"):
        SeDialectConfig(skip=("a" * (MAX_PATTERN + 1),))
    with pytest.raises(ConfigError, match="is no regular expression"):
        SeDialectConfig(skip=("(" * 299,))
    monkeypatch.setattr("sedialect.sedialect_core.settings.patterns.SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"took more than 0.2 s on the name '.*; write it without nested repetitions"):
        finds(r"^(.|..)+[!?]", "blocks.0.attention.processor.projection.out")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("value", [16, 31])
def test_dialects_that_the_book_does_not_have_are_refused(folder, value):
    def change(state):
        state[f"{LAYER}.weight_meta"][3, 1] = value

    change_tensors(folder, change, seal=True)
    refused(folder, f"{WEIGHTS}: '{LAYER}.weight_meta' names the dialect {value}, and the formatbook '.*' has 16")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_row_scales_that_are_not_finite_and_positive_are_refused(folder, value):
    def change(state):
        state[f"{LAYER}.weight_scale"].view(torch.float32)[5] = value

    change_tensors(folder, change, seal=True)
    refused(folder, f"'{LAYER}.weight_scale' holds a row scale that is not finite and positive")


@pytest.mark.parametrize("value", [16, -128])
def test_exponents_out_of_range_are_refused(folder, value):
    def change(state):
        record = record_of(state)
        change_record(state, equalized={"weights": sorted({LAYER, *record.get("equalized", {}).get("weights", [])})})
        width = state[f"{LAYER}.weight"].shape[1] * 2
        state[f"{LAYER}.weight_equalizer"] = torch.full((width,), value, dtype=torch.int8)

    change_tensors(folder, change, seal=True)
    refused(folder, f"'{LAYER}.weight_equalizer' holds the exponent {abs(value)}")


def test_the_checks_of_codes_look_at_every_part_of_a_large_tensor():
    book = Formatbook.builtin("dialectfp4-16")
    meta = torch.full((3, 700_000), 15 | 7 << 5, dtype=torch.uint8)
    check_meta(meta, book, "here")
    meta[-1, -1] = 16
    with pytest.raises(InputError, match="here names the dialect 16"):
        check_meta(meta, book, "here")
    check_meta(torch.full((1, 9), 255, dtype=torch.uint8), Formatbook.builtin(), "here")
    check_scale(torch.full((4, 1), 1e-38).view(torch.uint8), "here")


def test_every_flipped_bit_of_every_tensor_is_found(saved, tmp_path):
    length = int.from_bytes((saved / WEIGHTS).read_bytes()[:8], "little") + 8
    end = (saved / WEIGHTS).stat().st_size
    random.seed(0)
    for offset in [length, end - 1, *random.sample(range(length, end), 60)]:
        shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
        flip(tmp_path / WEIGHTS, offset)
        with pytest.raises(SeDialectError):
            WAN.from_pretrained(tmp_path)


def test_a_flipped_header_never_changes_a_tensor_silently(saved, tmp_path):
    length = int.from_bytes((saved / WEIGHTS).read_bytes()[:8], "little") + 8
    sound = WAN.from_pretrained(saved).state_dict()
    random.seed(1)
    for offset in random.sample(range(8, length), 60):
        shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
        flip(tmp_path / WEIGHTS, offset)
        try:
            found = WAN.from_pretrained(tmp_path).state_dict()
        except (SeDialectError, OSError, UnicodeDecodeError):  # the last two are of diffusers' own first look
            continue
        assert found.keys() == sound.keys() and all(torch.equal(found[key], sound[key]) for key in sound)


def test_two_tensors_of_one_shape_cannot_change_places(folder):
    def change(state):
        one, two = f"{LAYER}.weight", LAYER.replace("to_q", "to_k") + ".weight"
        state[one], state[two] = state[two], state[one]

    change_tensors(folder, change)
    refused(folder, "differs from its digest, so the file was damaged or changed; download it again")


def test_a_file_of_another_program_without_digests_loads(folder):
    def change(state):
        data = record_of(state)
        del data["digests"], data["digest"]
        put_record(state, json.dumps(data))

    change_tensors(folder, change)
    WAN.from_pretrained(folder)


@pytest.mark.parametrize("name", ["someone/repo", "/etc/passwd", "auto", "../book.json"])
def test_the_book_that_settings_name_is_not_looked_for(folder, name, monkeypatch):
    def looked_for(*arguments, **more):
        raise AssertionError(arguments)

    monkeypatch.setattr(Formatbook, "resolve", looked_for)
    change_settings(folder, formatbook=name, formatbook_digest="")
    model = WAN.from_pretrained(folder, local_files_only=True)
    assert model.config.quantization_config.formatbook == "dialectfp4-16"


def test_a_key_in_two_files_is_refused(folder):
    state = load_file(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, "pt") as opened:
        metadata = opened.metadata()
    (folder / WEIGHTS).unlink()
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file(state, folder / names[0], metadata=metadata)
    save_file({"proj_out.bias": state["proj_out.bias"] + 1}, folder / names[1], metadata=metadata)
    where = dict.fromkeys(state, names[0]) | {"proj_out.bias": names[1]}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    refused(folder, f"{names[1]}: the key 'proj_out.bias' stands in {names[0]} as well")


DEEP = "[" * 100_000 + "]" * 100_000


def texts() -> dict[str, tuple]:
    """What stands in the record's place, by name: changes of a sound record, or its whole text; and what is said."""
    return {
        "null": ({"layers": None}, "'layers' is None"),
        "list": ({"layers": []}, r"'layers' is \[\]"),
        "names": ({"layers": {"w4a4": "abc"}}, "'w4a4' is 'abc', not of the kind list"),
        "number": ({"layers": {"w4a4": [7]}}, "'w4a4' holds 7"),
        "twice": ({"layers": {"w4a4": [LAYER], "w4a8": [LAYER]}}, f"'layers' lists the layer '{LAYER}' twice"),
        "rotations": ({"rotations": {"16": [LAYER], "32": [LAYER]}}, "'rotations' lists the layer .* twice"),
        "no rotation": ({"rotations": {"1e9": [LAYER]}}, "names a rotation"),
        "many": ({"layers": {"w4a4": [f"layer.{n}" for n in range(20_001)]}}, "lists 20,001; at most 20,000"),
        "long": ({"layers": {"w4a4": ["a" * 5000]}}, "a name of 5,000 characters"),
        "block size": ({"block_size": True}, "'block_size' is True"),
        "version": ({"format_version": "1"}, "'format_version' is '1'"),
        "model": ({"model": ["a"]}, r"'model' is \['a'\]"),
        "unknown": ({"code": "import os"}, "it has the key 'code', which this sedialect does not know"),
        "book": ({"formatbook": "someone/repo"}, "'formatbook' is 'someone/repo', not of the kind dict"),
        "digits": ('{"format_version": 1, "block_size": ' + "9" * 400 + "}", "a number has 400 digits"),
        "more digits": ('{"format_version": ' + "9" * 100_000 + "}", "a number has 100,000 digits"),
        "deep": ('{"format_version": ' + DEEP + "}", "it is nested too deeply"),
        "duplicate": ('{"format_version": 1, "format_version": 1}', "the key 'format_version' stands there twice"),
        "infinite": ('{"format_version": 1e999}', "the number '1e999' is too large"),
        "no object": ("[1]", "it holds a list, not an object"),
        "no number": ('{"format_version": NaN}', "NaN is no number"),
    }


@pytest.mark.parametrize("what", texts())
def test_a_record_of_the_wrong_kinds_is_refused_in_a_sentence(folder, what):
    changes, said = texts()[what]

    def change(state):
        if isinstance(changes, str):
            put_record(state, changes)
        else:
            change_record(state, **changes)

    change_tensors(folder, change)
    assert RECORD in refused(folder, said)
