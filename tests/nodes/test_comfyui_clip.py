"""SeDialect Quantize CLIP, Load CLIP and Save CLIP on ComfyUI's own classes, run by its own interpreter on the CPU."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_server import COMFYUI, needs_comfyui, python_of_comfyui

import sedialect

pytestmark = needs_comfyui
SCRIPT = Path(__file__).parents[1] / "helpers" / "comfyui_clip.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What the script says of a tiny T5."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "packages").mkdir()
    ours = Path(sedialect.__file__).resolve().parent
    (folder / "packages" / "sedialect").symlink_to(ours)
    paths = os.pathsep.join([str(folder / "packages"), str(COMFYUI)])
    done = subprocess.run(
        [python_of_comfyui(), str(SCRIPT), str(folder)],
        cwd=COMFYUI,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-2000:]
    said = json.loads(lines[-1].removeprefix("RESULT "))
    assert said["sedialect"] == str(ours)
    return said


def test_all_linears_of_the_blocks_are_encoded_and_compute_what_their_codes_say(found):
    assert found["layers"] == 21 and "21 in w4a16, 0 left" in found["report"] and "an embedding" in found["report"]
    assert found["summary"].startswith("21 of ") and " layers in w4a16, " in found["summary"]
    assert found["twin"] < 1e-5 and 0.01 < found["error"] < 0.1
    assert found["untouched"], "the CLIP that was connected is as it was"


def test_loras_stand_before_or_behind_and_come_and_go(found):
    assert found["lora moves"] > 2 * found["error"] and found["lora error"] < 0.5 * found["lora moves"]
    assert found["same either way"] < 1e-5 and found["lora leaves"]


def test_it_may_be_unloaded_and_loaded_in_part(found):
    assert found["unloaded"] and found["partly loaded"] < 1e-5
    assert found["saved by ComfyUI"] == [], "codes are written as they are, whatever is loaded"


def test_what_is_saved_is_loaded_and_patched_alike(found):
    assert found["loaded layers"] == 21 and found["loaded"] < 1e-5 and found["loaded lora"] < 1e-5
    assert "encoder.block.0.layer.0.SelfAttention.k.weight_meta" in found["keys"]
    assert found["bytes"] < found["plain bytes"] and found["cloned"] and found["fresh"] == "ModelPatcher"


def test_what_makes_no_sense_is_refused_with_a_remedy(found):
    assert "is quantized by SeDialect already; connect the 16-bit CLIP" in found["twice"]
    assert "not quantized by SeDialect; connect SeDialect Quantize CLIP" in found["not ours"]
    assert "no CLIP of the type 'nothing'" in found["wrong type"]
