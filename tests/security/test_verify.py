"""`sedialect verify`: sound models are told from damaged ones, in folders, files and repositories."""

import shutil
from pathlib import Path

import diffusers
import pytest
from damaged import WEIGHTS, change_tensors, flip, put_record, record_of
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


def test_files_of_other_programs_have_nothing_to_compare_with(folder, capsys):
    import json

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
