"""Installations like those on Windows, on Linux: what they lack is hidden from a real ComfyUI. COMFYUI_DIR names it, as for
test_comfyui.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import comfyui_models
import pytest
import torch
from comfyui_server import COMFYUI, FLAGS, Server, needs_comfyui, python_of_comfyui
from comfyui_workflows import DEMO, PROMPT, Workflow, samples

pytestmark = needs_comfyui


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As people unpack it: spaces, a backslash, and letters that are not ASCII."""
    folder = tmp_path_factory.mktemp("comfyui") / "ComfyUI portable (1)" / r"new\vidéo 動画"
    models = folder / "models" / "diffusion_models" / "Wan 2.1"
    models.mkdir(parents=True)
    comfyui_models.bundled(models)
    comfyui_models.embeddings(folder / "prompts.safetensors", [PROMPT, ""])
    return folder


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without Triton and a C compiler, and `-s`, as the portable package starts it."""
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "triton.py").write_text("raise ModuleNotFoundError(\"No module named 'triton'\", name='triton')\n")
    paths = {"PYTHONPATH": str(hidden), "PATH": str(hidden), "CC": "", "CXX": ""}
    assert COMFYUI is not None
    with Server(Path(COMFYUI), python_of_comfyui(), base, *FLAGS, options=("-s",), environment=paths) as running:
        yield running


def test_nothing_of_the_pack_needs_triton_or_a_compiler(server, base):
    assert "IMPORT FAILED: " + str(base / "custom_nodes" / "sedialect") not in server.log.read_text()
    graph = Workflow(base)
    model = graph.model(f"Wan 2.1/{DEMO}")
    book = graph.add("SeDialectFormatbook", book="universal-32")
    quantized = graph.quantize(model, formatbook=book)
    first = graph.keep(graph.sample(quantized), "first")
    graph.add("SeDialectSave", model=quantized, filename_prefix="diffusion_models/my models/four bit", names="ComfyUI")
    graph.add("SeDialectSave", model=quantized, filename_prefix="diffusion_models/my models/folder", names="diffusers")
    report = graph.add("SeDialectReport", model=quantized)
    frames = [graph.add("SeDialectTestDecode", samples=graph.sample(one)) for one in (model, quantized)]
    compare = graph.add("SeDialectCompare", left=frames[0], right=frames[1], fps=16.0)
    outcome = server.run(graph.nodes)
    assert "80 in w4a4" in outcome.text(report[0]) and "universal-32" in outcome.text(book[0])
    (payload,) = outcome.outputs[compare[0]]["sedialect_compare"]
    assert payload["frames"] == 5
    again = Workflow(base)
    folder = base / "output" / "diffusion_models"
    (file,) = (folder / "my models").glob("four bit*.safetensors")
    (other,) = (folder / "my models").glob("folder*/diffusion_pytorch_model.safetensors")
    files = [
        again.keep(again.sample(again.add("SeDialectLoad", file=str(path.relative_to(folder)))), f"again{number}")
        for number, path in enumerate((file, other))
    ]
    server.run(again.nodes)
    assert all(torch.equal(samples(path), samples(first)) for path in files)


def test_a_calibration_is_kept_and_found_again_in_such_a_folder(server, base):
    texts = []
    for _ in range(2):
        graph = Workflow(base)
        model, text = graph.model(f"Wan 2.1/{DEMO}"), graph.prompt(PROMPT)
        said = {"positive": text, "negative": graph.prompt(""), "latent_image": graph.latent(frames=13, size=96)}
        calibration = graph.add("SeDialectCalibrate", model=model, steps=4, cfg=2.0, glance=True, **said)
        report = graph.add("SeDialectReport", model=graph.quantize(model, calibration=calibration))
        texts.append(server.run(graph.nodes).text(report[0]))
    (folder,) = (base / "output" / "sedialect_calibrations").iterdir()
    assert json.loads((folder / "calibration.json").read_text(encoding="utf-8"))["inputs"]
    assert all("equalized by a glance" in text for text in texts)


def test_backslashes_in_names_stay_in_the_output_folder(server, base):
    """On Windows they part folders; here they are letters. Neither may lead out of the output folder."""
    graph = Workflow(base)
    quantized = graph.quantize(graph.model(f"Wan 2.1/{DEMO}"))
    graph.add("SeDialectSave", model=quantized, filename_prefix=r"diffusion_models\from windows\four", names="ComfyUI")
    (path,) = server.run(graph.nodes).saved
    assert path.is_file() and path.is_relative_to(base / "output")


def test_fast_and_plain_give_the_same(base):
    """--fast changes ComfyUI's own layers, and none of ours."""
    files = []
    for flags in ((), ("--fast",)):
        with Server(Path(COMFYUI), python_of_comfyui(), base, *FLAGS, *flags) as server:
            graph = Workflow(base)
            sampled = graph.sample(graph.quantize(graph.model(f"Wan 2.1/{DEMO}")))
            path = graph.keep(sampled, f"fast{len(flags)}")
            server.run(graph.nodes)
            files.append(samples(path))
    assert torch.equal(*files)
