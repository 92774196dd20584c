"""`sedialect verify`: sound models are told from damaged ones, in folders, files and repositories."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
from damaged import WEIGHTS, change_record, change_tensors, flip, put_record, record_of
from tiny_models import TINY

from sedialect import SeDialectConfig
from sedialect.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A quantized Wan in two files, in a folder below."""
    folder = tmp_path_factory.mktemp("saved")
    TINY["WanTransformer3DModel"]()[0].save_pretrained(folder / "plain")
    model = diffusers.WanTransformer3DModel.from_pretrained(folder / "plain", quantization_config=SeDialectConfig())
    model.save_pretrained(folder / "pipeline" / "transformer", max_shard_size="60KB")
    model.save_pretrained(folder / "pipeline" / "transformer_2")
    return folder / "pipeline"


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to be spoiled."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_sound_models_are_told_with_their_size(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("sound: ") and "20 layers, " in line for line in lines)
    assert main(["verify", str(folder / "transformer_2" / WEIGHTS)]) == 0


def test_a_damaged_file_is_named_and_the_others_are_looked_at(folder, capsys):
    path = sorted((folder / "transformer").glob("*.safetensors"))[0]
    flip(path, path.stat().st_size - 9)
    assert main(["verify", str(folder)]) == 2
    said = capsys.readouterr()
    assert [line.partition(":")[0] for line in said.out.splitlines()] == ["damaged", "sound"]
    assert said.err.startswith(f"sedialect: {path}: '") and "differs from its digest" in said.err


def test_a_missing_file_and_a_cut_one_are_damage(folder, capsys):
    parts = sorted((folder / "transformer").glob("*.safetensors"))
    path = folder / "transformer_2" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-40])
    parts[0].unlink()
    assert main(["verify", str(folder)]) == 2
    assert capsys.readouterr().out.count("damaged: ") >= 1


@pytest.mark.parametrize(
    "weight_map",
    [
        [],
        "x",
        {},
        lambda real: {key: f"../transformer/{file}" for key, file in real.items()},
        lambda real: {key: f"/tmp/{file}" for key, file in real.items()},
        lambda real: dict(list(real.items())[1:]),
        lambda real: {**real, "one.more": min(real.values())},
        lambda real: dict.fromkeys(real, min(real.values())),
        lambda real: dict.fromkeys(real, 5),
    ],
)
def test_an_index_that_leads_elsewhere_is_damage(weight_map, folder, capsys):
    """The weights are sound, and a loader would not find them, or not these."""
    path = folder / "transformer" / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = weight_map(index["weight_map"]) if callable(weight_map) else weight_map
    path.write_text(json.dumps(index))
    assert main(["verify", str(folder)]) == 2
    assert f"{path} does not name each tensor" in capsys.readouterr().err
    path.unlink()
    assert main(["verify", str(folder)]) == 2
    assert "no index that names them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("quantization_config"),
        lambda config: config["quantization_config"].update(block_size=32),
        lambda config: config["quantization_config"].update(formatbook_digest="0" * 64),
        lambda config: config["quantization_config"].update(version=9),
        lambda config: config["quantization_config"].update(quant_method="other"),
        lambda config: config["quantization_config"].update(unknown=1),
        lambda config: config.update(quantization_config="sedialect"),
    ],
)
def test_settings_of_another_model_are_damage(change, folder, capsys):
    path = folder / "transformer_2" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    assert main(["verify", str(folder)]) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["sound", "damaged"]


@pytest.mark.parametrize("part", ["weight", "weight_meta", "weight_scale"])
@pytest.mark.parametrize("change", ["a layer more", "a layer less", "a tensor less", "other sizes"])
def test_a_record_of_other_layers_is_damage(change, part, folder, capsys):
    """All digests fit, and no model has these layers."""

    def spoil(state):
        layers = record_of(state)["layers"]
        if change == "a layer more":
            change_record(state, layers={**layers, "w4a16": ["blocks.0.other"]})
        elif change == "a layer less":
            change_record(state, layers={"w4a4": layers["w4a4"][1:]})
        elif change == "a tensor less":
            del state[f"{layers['w4a4'][0]}.{part}"]
        else:
            key = f"{layers['w4a4'][0]}.{part}"
            state[key] = state[key][:, :-1].contiguous()

    change_tensors(folder / "transformer_2", spoil, seal=True)
    assert main(["verify", str(folder / "transformer_2")]) == 2
    assert "is not as 'sedialect_record' has the layer" in capsys.readouterr().err


def test_a_file_that_is_too_large_to_be_mapped_is_told(folder, capsys):
    path = folder / "transformer_2" / WEIGHTS
    size = 1 << 40  # a hole: nothing is written
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("this file system has no files of so many bytes")
    assert main(["verify", str(folder / "transformer_2")]) == 2
    assert "sedialect: " in capsys.readouterr().err


@pytest.mark.parametrize("target", ["nowhere", WEIGHTS])
def test_links_that_lead_nowhere_are_told(target, folder, capsys):
    path = folder / "transformer_2" / WEIGHTS
    path.unlink()
    path.symlink_to(target)
    assert main(["verify", str(folder)]) == 2
    said = capsys.readouterr()
    assert "cannot be read" in said.err and said.err.count("\n") == 1 and "sound: " in said.out


def test_models_of_several_names_in_one_folder_are_told_apart(folder, capsys):
    """As in ComfyUI's folder of models."""
    together = folder / "together"
    together.mkdir()
    for name in ("one", "two"):
        shutil.copy(folder / "transformer_2" / WEIGHTS, together / f"{name}.safetensors")
    (together / "three.safetensors").write_bytes((folder / "transformer_2" / WEIGHTS).read_bytes()[:-9])
    assert main(["verify", str(together)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(" (")[0] for line in lines) == [
        f"damaged: {together / 'three.safetensors'}",
        *(f"sound: {together / name}.safetensors" for name in ("one", "two")),
    ]


def test_files_of_other_programs_have_nothing_to_compare_with(folder, capsys):
    def strip(state):
        data = record_of(state)
        del data["digests"], data["digest"]
        put_record(state, json.dumps(data))

    change_tensors(folder / "transformer_2", strip)
    assert main(["verify", str(folder / "transformer_2")]) == 2
    assert "has no digests, since another program has written it" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["nowhere", "/dev/null", "a b"])
def test_what_is_no_model_is_told(tmp_path, model, capsys):
    assert main(["verify", model]) == 2
    assert main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("sedialect: ") == 2


def test_a_repository_is_fetched_and_verified(saved, hub, capsys):
    files = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    hub.add("me/wan-sedialect", files)
    assert main(["verify", "me/wan-sedialect"]) == 0
    assert capsys.readouterr().out.count("sound: ") == 2
