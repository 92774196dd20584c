"""A saved folder in vLLM-Omni's own Wan, by its own loader, on a CPU. Needs vllm and vllm-omni, as docs/scale.md installs
them; skipped without."""

from importlib.util import find_spec

import pytest
import torch
from several_processes import run_together

missing = [name for name in ("vllm", "vllm_omni") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: see docs/scale.md")
SCRIPT = "import sys, vllm_on_cpu; vllm_on_cpu.together(vllm_on_cpu.{}, sys.argv)"


def distance(one, other):
    return float((one - other).norm() / other.norm())


def test_a_saved_folder_computes_what_diffusers_does(tmp_path):
    (results,) = run_together(SCRIPT.format("compared"), "alone", tmp_path, 1)
    assert len(results) == 9
    for name, (alone, served) in results.items():
        assert torch.equal(alone, served), name
    plain = results["16 bit"][0]
    assert all(1e-4 < distance(alone, plain) < 0.5 for name, (alone, _) in results.items() if name != "16 bit")


def test_over_two_processes_that_share_the_weights(tmp_path):
    """What 8-bit activations are rounded to depends on the largest number of a token that a process has."""
    for results in run_together(SCRIPT.format("compared"), "tensor", tmp_path):
        whole = results["16 bit"][0]
        for name, (alone, served) in results.items():
            if name == "quality":
                assert distance(served, whole) < 1.1 * distance(alone, whole)
            else:
                assert distance(served, alone) < 1e-6, name


def test_over_two_processes_that_share_the_sequence(tmp_path):
    for results in run_together(SCRIPT.format("compared"), "sequence", tmp_path):
        for name, (alone, served) in results.items():
            assert distance(served, alone) < 1e-6, name
