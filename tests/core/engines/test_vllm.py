"""A saved folder in vLLM-Omni's own Wan, by its own loader, on a CPU. Needs vllm and vllm-omni, as docs/scale.md installs
them; skipped without."""

import re
from importlib.util import find_spec

import pytest
import torch
from safetensors import safe_open
from several_processes import run_together

missing = [name for name in ("vllm", "vllm_omni") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: see docs/scale.md")
SCRIPT = "import sys, vllm_on_cpu, vllm_linears; vllm_on_cpu.together({}, sys.argv)"
COMPARED = SCRIPT.format("vllm_on_cpu.compared")


def distance(one, other):
    return float((one - other).norm() / other.norm())


def equalized(folder):
    """How many layers of a saved folder have an equalizer."""
    (path,) = (folder / "transformer").glob("*.safetensors")
    with safe_open(path, framework="pt") as opened:
        header = opened.keys()
    return sum(key.endswith(".weight_equalizer") for key in header)


def test_a_saved_folder_computes_what_diffusers_does(tmp_path):
    (results,) = run_together(COMPARED, "alone", tmp_path, 1)
    assert len(results) == 9
    for name, (alone, served) in results.items():
        assert torch.equal(alone, served), name
    assert equalized(tmp_path / "1-0") > 10 and equalized(tmp_path / "2-0") > 10
    plain = results["16 bit"][0]
    assert all(1e-4 < distance(alone, plain) < 0.5 for name, (alone, _) in results.items() if name != "16 bit")


def test_a_whole_pipeline_of_two_transformers_and_a_quantized_text_encoder(tmp_path):
    (found,) = run_together(SCRIPT.format("vllm_on_cpu.generated"), "", tmp_path, 1)
    assert found["method"] == "sedialect"
    for name in ("transformer", "transformer_2", "text_encoder"):
        assert torch.equal(*found[name]), name
    assert not torch.equal(found["transformer"][0], found["transformer_2"][0])
    assert found["video"].isfinite().all() and found["video"].std() > 0


def test_over_two_processes_that_share_the_weights(tmp_path):
    """What 8-bit activations are rounded to depends on the largest number of a token that a process has."""
    for results in run_together(COMPARED, "tensor", tmp_path):
        whole = results["16 bit"][0]
        for name, (alone, served) in results.items():
            if name == "quality":
                assert distance(served, whole) < 1.1 * distance(alone, whole)
            else:
                assert distance(served, alone) < 1e-6, name


def test_over_two_processes_that_share_the_sequence(tmp_path):
    for results in run_together(COMPARED, "sequence", tmp_path):
        for name, (alone, served) in results.items():
            assert distance(served, alone) < 1e-6, name


@pytest.mark.parametrize("ranks", [1, 2])
def test_linear_layers_of_vllm(tmp_path, ranks):
    """Codes decode bit for bit to slices of the decoded weight; outputs are slices of ours, or their sum over processes."""
    for results in run_together(SCRIPT.format("vllm_linears.linears"), "", tmp_path, ranks):
        assert len(results) == 3 * 6
        for name, (decoded, expected, output, wanted) in results.items():
            assert torch.equal(decoded, expected), name
            if ranks == 2 and name == "row w4a8":
                exact = results["row w4a16"][3]  # each process has a scale of its own for its part of a token
                assert 0 < distance(output, exact) < 1.1 * distance(wanted, exact), name
            else:
                assert distance(output, wanted) < 1e-6, name


def test_a_layer_in_one_graph(tmp_path):
    (results,) = run_together(SCRIPT.format("vllm_linears.compiled"), "", tmp_path, 1)
    assert torch.equal(results["eager"], results["compiled"]) and torch.equal(results["eager"], results["again"])


def test_what_vllm_omni_finds_by_itself_and_live_settings_of_a_server(tmp_path):
    (found,) = run_together(SCRIPT.format("vllm_linears.chosen"), "", tmp_path, 1)
    assert found["by name"] == found["found"] == found["of the pipeline"] == "sedialect"
    assert found["equal"] and not found["record left"]
    assert found["bytes"] == 2 * 3 * 96 * 96 // 2


SAID = {
    "groups": r"semantic=True groups tokens by attention.*\"semantic\": false",
    "part of a joined layer": r"to_q is quantized and blocks\.0\.attn1\.to_v is in 16 bit.*quantize both or neither",
    "16 bit": "serves quantized folders, and Pipeline has none; quantize it first: sedialect quantize",
    "other weights": "block_size cannot be changed in a quantized model; there are salient_ratio",
    "an option that is none": "no setting 'salient_ration'; did you mean 'salient_ratio'",
    "damaged codes": r"'blocks\.1\.ffn\.net\.2\.weight' differs from its digest",
    "without config": "config.json is not there; download the whole repository",
    "another model": "was expected",
    "sharded": "--use-hsdp shards weights as floats",
    "unseen weights": "weights of 'one' were not loaded by vLLM-Omni's ordinary loader",
    "vLLM alone": "vllm serve FOLDER --omni",
}


def test_what_cannot_be_served_is_refused_in_a_sentence(tmp_path):
    (results,) = run_together(SCRIPT.format("vllm_linears.refused"), "", tmp_path, 1)
    assert results.keys() == SAID.keys()
    for name, pattern in SAID.items():
        assert re.search(pattern, results[name]), f"{name}: {results[name]}"
