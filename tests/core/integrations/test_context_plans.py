"""`enable_context_parallel`: models that diffusers has no plan for, saved folders and LoRAs, over gloo; and refusals."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ContextParallelConfig, TensorParallelConfig
from interruptible import PATIENCE
from split_families import EIGHT_BIT, FAMILIES
from tiny_models import TINY
from tiny_pipelines import build

import sedialect
from sedialect.sedialect_core.errors import ModelError

SCRIPT = Path(__file__).parents[2] / "helpers" / "split_families.py"
feature = pytest.mark.feature


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-P", str(SCRIPT), str(folder)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_near(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for alone, together in pairs:
        assert torch.linalg.vector_norm(together - alone) <= 1e-6 * torch.linalg.vector_norm(alone)


@feature("Context parallel by our plans", "first", "HunyuanVideo, HunyuanVideo 1.5, Mochi, CogVideoX, Wan VACE.")
@pytest.mark.parametrize("preset", ["16 bit", "plain", "default", EIGHT_BIT])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_split_by_our_plans_compute_what_one_process_does(results, name, preset):
    assert_near([process[f"{name}, {preset}"] for process in results])


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_in_8_bit_is_split_as_well(results, name):
    """Masked or not, alone and together: its numbers are others than those of attention in 16 bit."""
    for process in results:
        plain, eight = process[f"{name}, plain"], process[f"{name}, {EIGHT_BIT}"]
        assert not torch.equal(plain[0], eight[0]) and not torch.equal(plain[1], eight[1])


@feature("Context parallel: saved folder by `parallel_config=`", "first")
def test_a_saved_folder_is_loaded_split(results):
    assert all(torch.equal(*process["saved folder"]) for process in results)


@feature("Context parallel: LoRA", "first")
def test_a_lora_beside_quantized_layers_is_split(results):
    assert_near([process["LoRA"] for process in results])


ULYSSES, RING = ContextParallelConfig(ulysses_degree=2), ContextParallelConfig(ring_degree=2)


@feature("Tensor parallel", "first", "It slices weights, and encoded weights are not sliced.", refused=True)
def test_tensor_parallelism_is_refused():
    pipe, _ = build("wan")
    pipe.enable_sedialect()
    with pytest.raises(ModelError, match="TensorParallelConfig splits weights, and encoded weights are not split"):
        sedialect.enable_context_parallel(pipe, TensorParallelConfig(tp_degree=2))


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("LatteTransformer3DModel", ULYSSES, "knows how to split the sequence of LatteTransformer3DModel"),
        ("HunyuanVideoTransformer3DModel", RING, "has a mask, which Ring does not split"),
        ("MochiTransformer3DModel", RING, "has a mask, which Ring does not split"),
        (
            "HunyuanVideoTransformer3DModel",
            ContextParallelConfig(ulysses_degree=2, ulysses_anything=True),
            "mask is split evenly",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_and_left_as_it_was(name, config, says):
    model, _ = TINY[name]()
    before = {key: type(processor) for key, processor in getattr(model, "attn_processors", {}).items()}
    with pytest.raises(ModelError, match=says):
        sedialect.enable_context_parallel(model, config)
    assert {key: type(processor) for key, processor in getattr(model, "attn_processors", {}).items()} == before


def test_hunyuan_with_a_replaced_first_frame_is_refused():
    model, _ = TINY["HunyuanVideoTransformer3DModel"]()
    model.register_to_config(image_condition_type="token_replace")
    with pytest.raises(ModelError, match="treats the first frame's tokens otherwise"):
        sedialect.enable_context_parallel(model, ULYSSES)
