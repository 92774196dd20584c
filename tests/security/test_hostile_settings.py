"""JSON of other people: settings, formatbooks, calibrations, indexes and model descriptions of every wrong kind."""

import json
import os
import shutil
from pathlib import Path

import pytest
from damaged import WEIGHTS
from tiny_models import TINY

from sedialect import Formatbook, SeDialectConfig
from sedialect.cli.main import main
from sedialect.sedialect_core.calibration.cache import CalibrationCache
from sedialect.sedialect_core.checkpoint.format import read_headers
from sedialect.sedialect_core.checkpoint.skeleton import skeleton
from sedialect.sedialect_core.checkpoint.source import find_source
from sedialect.sedialect_core.errors import SeDialectError, shown
from sedialect.sedialect_core.storage.reading import parse_object, read_object

HUGE = 10**400
DEEP = "[" * 100_000 + "]" * 100_000
WRONG = [None, [], {}, "text", 7, 1.5, True, [[]], ["a", 1], HUGE, -1, float("nan"), {"a": {"b": []}}, "x" * 5000]


def sentence(call, *arguments) -> str | None:
    """What a refusal says: one line of at most 300 characters; None where nothing was refused. Raw errors go through."""
    try:
        call(*arguments)
    except SeDialectError as error:
        text = str(error)
        assert "\n" not in text and len(text) <= 300, text
        return text
    return None


@pytest.mark.parametrize("key", [key for key in SeDialectConfig().to_dict() if key != "quant_method"])
@pytest.mark.parametrize("value", WRONG, ids=lambda value: shown(value, 12))
def test_settings_of_wrong_kinds_are_refused_or_right(key, value):
    data = SeDialectConfig().to_dict() | {key: value}
    if sentence(SeDialectConfig.from_dict, data) is None:  # then they are what they must be, and come back
        config = SeDialectConfig.from_dict(data)
        assert SeDialectConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "data", [None, "sedialect", [], 7, {"quant_method": []}, {"version": True}, {"version": 1, "x": HUGE}]
)
def test_what_is_no_object_of_settings_is_refused(data):
    assert sentence(SeDialectConfig.from_dict, data)


@pytest.mark.parametrize("key", list(Formatbook.builtin().to_dict()))
@pytest.mark.parametrize("value", WRONG, ids=lambda value: shown(value, 12))
def test_books_of_wrong_kinds_are_refused(key, value):
    said = sentence(Formatbook.from_dict, Formatbook.builtin().to_dict() | {key: value})
    free = key in ("name", "description") and isinstance(value, str)
    assert said or (free and len(value) < 300) or (key, value) in (("sub_formatbooks", []), ("description", "x" * 5000))


def test_a_book_asks_for_no_more_than_a_book_has():
    data = Formatbook.builtin().to_dict()
    assert "lists 100,000; at most 32" in str(
        sentence(Formatbook.from_dict, data | {"dialects": data["dialects"][:1] * 100_000})
    )
    assert "lists 16; at most 15" in str(sentence(Formatbook.from_dict, data | {"sub_formatbooks": [[0, 1]] * 16}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        ('{"a": ' + "9" * 400 + "}", "a number has 400 digits"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e400}', "the number '1e400' is too large"),
        ('{"a": ' + DEEP + "}", "it is nested too deeply"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (b"\xff\xfe{", "damaged"),
        ('"text"', "it holds a str, not an object"),
    ],
)
def test_json_that_nobody_would_write_is_refused(text, said):
    assert said in str(sentence(parse_object, text, "here"))


def test_pipes_devices_folders_and_endless_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / WEIGHTS)
    os.mkfifo(tmp_path / "config.json")
    for path in (tmp_path / "config.json", tmp_path, Path("/dev/zero")):
        assert "is a folder, a pipe or a device, not a file" in str(sentence(read_object, path))
    assert "not a file" in str(sentence(read_headers, [tmp_path / WEIGHTS]))
    assert sentence(Formatbook.from_file, tmp_path / "config.json")
    assert sentence(find_source, str(tmp_path))
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 34)
    assert "holds more than 16,777,216 bytes" in str(sentence(read_object, tmp_path / "large.json"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    TINY["WanTransformer3DModel"]()[0].save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": []},
        {"_class_name": "ModelMixin"},
        {"_class_name": "FluxPipeline"},
        {"_class_name": "__doc__"},
        {"quantization_config": "sedialect"},
        {"quantization_config": [1]},
        {"num_layers": 10**9},
        {"num_layers": HUGE},
        {"num_layers": "3"},
        {"num_layers": None},
        {"ffn_dim": [64]},
        {"ffn_dim": -64},
        {"num_attention_heads": 0},
        {"in_channels": 10**12},
    ],
    ids=lambda changes: shown(changes, 40),
)
def test_descriptions_that_make_no_model_are_refused(plain, changes):
    config = json.loads((plain / "config.json").read_text()) | changes
    assert sentence(skeleton, config, "here")


@pytest.mark.parametrize(
    "index",
    ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x.safetensors"}}', DEEP, "{}"],
)
def test_indexes_of_wrong_kinds_are_refused(plain, tmp_path, index, capsys):
    shutil.copy(plain / "config.json", tmp_path)
    (tmp_path / f"{WEIGHTS}.index.json").write_text(index)
    assert sentence(find_source, str(tmp_path))
    assert main(["quantize", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("sedialect: ") == 1


@pytest.mark.parametrize(
    "index", ['{"_class_name": {}, "transformer": ["diffusers", "X"]}', '{"transformer": 7}', '{"a": []}']
)
def test_pipelines_of_wrong_kinds_are_refused(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    assert sentence(find_source, str(tmp_path))


ENTRY = {"component": "transformer", "layers": ["blocks.0.attn1.to_q"], "width": 64, "stream": "video", "diagonal": False}
CALIBRATION = {
    "format_version": 1,
    "fingerprint": dict.fromkeys(("weights", "model", "model_class", "prompts", "prompt_count", "date"), "x"),
    "resolution": [64, 64, None],
    "inputs": [ENTRY],
}


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"inputs": [ENTRY | {"component": name}]}
            for name in ("../../x", "/etc/x", "a/b", "", ".", "a\\b", "a\0b", 7, "x" * 300)
        ),
        *({"inputs": [ENTRY | {"layers": [name]}]} for name in ("../x", "/x", 7, None)),
        *({"inputs": [ENTRY | {"layers": value}]} for value in ([], "abc", None)),
        *({"inputs": [ENTRY | {"width": value}]} for value in (0, -1, 2**40, "64", True)),
        {"inputs": [ENTRY, ENTRY]},
        {"inputs": [ENTRY | {"more": 1}]},
        {"inputs": {}},
        {"inputs": [[]]},
        {"fingerprint": []},
        {"fingerprint": {}},
        {"resolution": [1]},
        {"resolution": ["a", "b", "c"]},
        {"format_version": "1"},
    ],
    ids=lambda changes: shown(changes, 80),
)
def test_calibrations_of_wrong_kinds_are_refused(tmp_path, changes):
    (tmp_path / "calibration.json").write_text(json.dumps(CALIBRATION | changes))
    assert sentence(CalibrationCache.load, tmp_path)


def test_the_sound_calibration_is_sound(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps(CALIBRATION))
    found = CalibrationCache.load(tmp_path)
    assert found.inputs[0].name == "transformer.blocks.0.attn1.to_q" and found.missing() == [found.inputs[0]]
