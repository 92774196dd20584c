"""Quantized models by name: pushed to and loaded from the Hub stand-in by diffusers itself."""

import subprocess
import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import build, generate

from sedialect import SeDialectLinear
from sedialect.bench.costs.loading import measure_loading
from sedialect.sedialect_core.errors import InputError

REPO = "me/wan-sedialect"


@pytest.fixture
def pushed(hub, monkeypatch):
    """A quantized pipeline, its transformer pushed as a repository of its own."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    pipe, arguments = build("wan")
    pipe.enable_sedialect(progress=False)
    pipe.transformer.push_to_hub(REPO, token=hub.token)
    return pipe, arguments


def codes(model) -> list[torch.Tensor]:
    """Everything packed; biases are floats, which a loader may cast."""
    layers = [module for module in model.modules() if isinstance(module, SeDialectLinear)]
    return [parameter for layer in layers for parameter in (layer.weight, layer.weight_meta, layer.weight_scale)]


def test_a_pushed_model_is_loaded_by_name_bit_for_bit(hub, pushed):
    pipe, arguments = pushed
    assert {"config.json", "diffusion_pytorch_model.safetensors"} <= set(hub.files(REPO, "main"))
    again = diffusers.WanTransformer3DModel.from_pretrained(REPO, dtype=torch.float32)
    assert len(codes(again)) == len(codes(pipe.transformer)) > 0
    assert all(torch.equal(a, b) for a, b in zip(codes(again), codes(pipe.transformer), strict=True))
    before = generate(pipe, arguments)
    pipe.transformer = again
    assert torch.allclose(generate(pipe, arguments), before, atol=1e-4)


def test_a_whole_pipeline_is_loaded_by_name(hub, pushed, tmp_path):
    pipe, arguments = pushed
    pipe.save_pretrained(tmp_path)
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    hub.add("someone/pipeline", files)
    again = diffusers.DiffusionPipeline.from_pretrained("someone/pipeline")
    again.set_progress_bar_config(disable=True)
    assert all(torch.equal(a, b) for a, b in zip(codes(again.transformer), codes(pipe.transformer), strict=True))
    assert again.sedialect_report().models[0].plan.quantized
    assert generate(again, arguments).isfinite().all()


LOAD = "import sedialect, diffusers; diffusers.WanTransformer3DModel.from_pretrained('me/wan-sedialect'); print('loaded')"


def test_what_was_loaded_once_loads_offline_and_what_was_not_does_not(hub, pushed):
    command = [sys.executable, "-P", "-c", LOAD]
    offline = {**hub.env(HF_HUB_OFFLINE="1")}
    missing = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert missing.returncode != 0 and "me/wan-sedialect" in missing.stderr
    online = subprocess.run(command, env=hub.env(HF_TOKEN=hub.token), capture_output=True, text=True)
    assert online.stdout.strip() == "loaded", online.stderr[-500:]
    assert subprocess.run(command, env=offline, capture_output=True, text=True).stdout.strip() == "loaded"


def test_a_tampered_book_in_a_repository_is_refused(hub, pushed, tmp_path):
    files = dict(hub.files(REPO, "main"))
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(files["diffusion_pytorch_model.safetensors"])
    assert "sedialect_record" in load_file(weights)
    first, other = (b'"half_units":[0,1,3,5,7,9,%d,15]' % magnitude for magnitude in (12, 11))
    spoiled = files["diffusion_pytorch_model.safetensors"].replace(first, other)
    assert spoiled != files["diffusion_pytorch_model.safetensors"]
    hub.add("someone/tampered", {**files, "diffusion_pytorch_model.safetensors": spoiled})
    with pytest.raises(InputError, match="formatbook digest"):
        diffusers.WanTransformer3DModel.from_pretrained("someone/tampered")


def test_loading_takes_little_more_memory_than_the_file():
    """The bench writes and loads 1 GB; this holds its machinery, at a size where other allocations still show."""
    loading = measure_loading(0.2)
    assert 0.15e9 < loading.file_bytes < 0.3e9
    assert 0.9 * loading.file_bytes < loading.peak_bytes < 1.4 * loading.file_bytes
