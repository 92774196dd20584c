"""Saved folders in xDiT's Wan and HunyuanVideo, their sequence split over processes, with and without guidance in parallel;
and what its own quantization, and torchao's, says to our layers. `make test-engines` runs this."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from interruptible import PATIENCE

SCRIPT = Path(__file__).parents[2] / "helpers" / "split_xdit.py"
NEEDED = ("xfuser", "yunchang", "distvae", "einops", "torchao")
missing = [name for name in NEEDED if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed; make test-engines")
BITWISE = ("plain", "default", "quality")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process got, by Ulysses, guidance and rank."""
    folder = tmp_path_factory.mktemp("xdit")
    command = [sys.executable, "-P", str(SCRIPT), str(folder)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def distance(pair):
    alone, together = (each.double() for each in pair)
    return float((together - alone).norm() / alone.norm())


@pytest.mark.parametrize("run", ["2-1-0", "2-1-1", "2-2-0", "2-2-1", "2-2-2", "2-2-3"])
def test_a_saved_folder_in_xdits_wan_computes_what_diffusers_does(results, run):
    """With guidance, each pair of processes has its own prompt, so that other tokens get second terms in each."""
    for preset in BITWISE:
        assert torch.equal(*results[run][f"Wan, even, {preset}"])
    if run.startswith("2-2"):
        unconditional, conditional = results[run]["Wan, even, default"][1]
        assert not torch.equal(unconditional, conditional)


@pytest.mark.parametrize("run", ["2-1-0", "2-1-1"])
@pytest.mark.parametrize("text", ["even", "odd", "masked"])
def test_a_saved_folder_in_xdits_hunyuan_video_computes_what_diffusers_does(results, run, text):
    """xDiT drops masked text, and splits it where it divides evenly; both change the rounding of its attention."""
    assert distance(results[run][f"HunyuanVideo, {text}, 16 bit"]) < 1e-6
    for preset in BITWISE:
        assert distance(results[run][f"HunyuanVideo, {text}, {preset}"]) < 1e-6


def test_its_own_quantization_is_refused_and_changes_no_layer(results):
    for said, unchanged in results["2-1-0"]["refused"].values():
        assert said and unchanged
    for kind in ("fp8", "fp8_blockscale"):
        said = results["2-1-0"]["refused"][kind][0]
        assert said.startswith("ModelError: the weight of a layer that sedialect quantized (64 to 64) was to be")
        assert "xDiT: --gemm_quantization none" in said


def test_quantization_while_loading_leaves_a_saved_folder_as_it_is(results):
    """diffusers takes the folder's own settings, with a warning."""
    assert torch.equal(*results["2-1-0"]["streamed"])


def test_attention_cannot_be_looked_at_and_says_so(results):
    assert "use salient_by='norm' and semantic=False" in results["2-1-0"]["looked at"]
