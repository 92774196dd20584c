"""`sedialect quantize`: folders and repositories in, folders and repositories out, and what happens when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import diffusers
import pytest
import torch
from checkpoint_files import WEIGHTS, same
from interruptible import PATIENCE, start
from safetensors.torch import load_file, save_file
from tiny_models import TINY
from tiny_pipelines import build, generate

from sedialect import SeDialectConfig
from sedialect.cli import main as cli
from sedialect.sedialect_core.checkpoint import conversion
from sedialect.sedialect_core.checkpoint.source import find_source
from sedialect.sedialect_core.quantize import weights as calibrated

CARD = """---
license: other
license_name: wan-terms
license_link: https://example.org/terms
pipeline_tag: image-to-video
language: [en]
---
# The original
"""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def wan22(tmp_path_factory) -> Path:
    """A pipeline with two transformers and a card."""
    folder = tmp_path_factory.mktemp("wan22")
    build("wan-2.2")[0].save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A model's own folder, in several shards and in bfloat16."""
    folder = tmp_path_factory.mktemp("single")
    TINY["WanTransformer3DModel"]()[0].to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def quantize(model: Path | str, output: Path, *more: str) -> int:
    return cli.main(["quantize", str(model), "--output", str(output), *more])


def test_both_experts_are_written_and_make_a_pipeline(wan22, tmp_path, capsys):
    table = tmp_path / "table.md"
    table.write_text("| prompt | PSNR |\n|---|---|\n| a ball | 30 |\n")
    output = tmp_path / "out"
    assert quantize(wan22, output, "--preset", "quality", "--quality-table", str(table), "--base-model", "org/wan") == 0
    out, error = capsys.readouterr()
    assert out.count("WanTransformer3DModel: 20 of 26 linears at 5.357 bits a weight") == 2 and f"written: {output}" in out
    assert "Quantizing transformer: 100%" in error and "Quantizing transformer_2: 100%" in error
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "transformer", "transformer_2"]
    assert sorted(path.name for path in (output / "transformer").iterdir()) == ["config.json", WEIGHTS]
    assert not list(tmp_path.glob(".*"))
    parts = {
        name: diffusers.AutoModel.from_pretrained(str(output), subfolder=name, dtype=torch.float32)
        for name in ("transformer", "transformer_2")
    }
    pipe = diffusers.DiffusionPipeline.from_pretrained(wan22, **parts, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert generate(pipe, build("wan-2.2")[1]).isfinite().all()

    from huggingface_hub import ModelCard

    card = ModelCard.load(output / "README.md")
    assert card.data.to_dict() == {
        "base_model": "org/wan",
        "base_model_relation": "quantized",
        "library_name": "diffusers",
        "license": "other",
        "license_name": "wan-terms",
        "license_link": "https://example.org/terms",
        "pipeline_tag": "image-to-video",
        "tags": ["sedialect", "w4a8", "4-bit", "quantized", "video"],
    }
    for text in (
        "import sedialect",
        'subfolder="transformer_2"',
        "WanPipeline.from_pretrained(",
        "5.357",
        "| a ball | 30 |",
    ):
        assert text in card.text
    assert "| 2 | `blocks.*.attn1.to_q` | 32 -> 32 | w4a8 | attention of a transformer block |" in card.text


def test_the_result_is_what_quantizing_while_loading_saves(single, tmp_path):
    assert quantize(single, tmp_path / "a", "--max-shard-size", "10KB") == 0
    model = diffusers.WanTransformer3DModel.from_pretrained(single, quantization_config=SeDialectConfig())
    model.save_pretrained(tmp_path / "b")
    again = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "a")
    assert same(again, model)
    stored = {k: v for path in (tmp_path / "a").glob("*.safetensors") for k, v in load_file(path).items()}
    other = load_file(tmp_path / "b" / WEIGHTS)
    assert stored.keys() == other.keys()
    assert all(stored[key].dtype == other[key].dtype and torch.equal(stored[key], other[key]) for key in other)
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in "ab"]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"] and "_name_or_path" not in configs[0]
    index = json.loads((tmp_path / "a" / f"{WEIGHTS}.index.json").read_text())
    assert set(index["weight_map"]) == set(stored) and len(set(index["weight_map"].values())) > 3


def test_the_code_on_the_card_runs(single, tmp_path):
    assert quantize(single, tmp_path / "out") == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "base_model" not in text and "The licence is the original's" in text
    code = text.split("```python\n")[1].split("```")[0].replace("PATH_OR_REPOSITORY", str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-P", "-c", code + "print(type(model).__name__)"], capture_output=True, text=True)
    assert done.stdout.strip() == "WanTransformer3DModel", done.stderr


class Stopped(BaseException):
    """As sudden as a kill, for a test."""


def test_a_stopped_run_goes_on_behind_its_last_part(single, tmp_path, monkeypatch, capsys):
    encoded = []

    def encode(weight, *, name, **settings):
        if len(encoded) == 9:
            raise Stopped
        encoded.append(name)
        return original(weight, name=name, **settings)

    original = calibrated.encode
    monkeypatch.setattr(calibrated, "encode", encode)
    arguments = ["--max-shard-size", "8KB"]
    with pytest.raises(Stopped):
        quantize(single, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
    parts = sorted((tmp_path / ".out.unfinished").glob("*.safetensors"))
    assert parts
    times = [path.stat().st_mtime_ns for path in parts]
    first = set(encoded)
    encoded.extend([""] * 100)  # never 9 again
    capsys.readouterr()
    assert quantize(single, tmp_path / "out", *arguments) == 0
    assert "Quantizing" in capsys.readouterr().err
    written = sorted((tmp_path / "out").glob("*.safetensors"))[: len(parts)]
    assert [path.stat().st_mtime_ns for path in written] == times
    second = set(encoded[109:])
    assert len(first & second) < len(first) and len(first | second) == 20
    model = diffusers.WanTransformer3DModel.from_pretrained(single, quantization_config=SeDialectConfig())
    assert same(diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "out"), model)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_no_output_and_the_next_finishes(tmp_path, how):
    wide = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=64, text_dim=32, freq_dim=32, ffn_dim=256, num_layers=4
    )
    wide.save_pretrained(tmp_path / "base")
    command = [
        sys.executable,
        "-P",
        "-m",
        "sedialect",
        "quantize",
        str(tmp_path / "base"),
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--max-shard-size", "40KB"]
    process = start(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + PATIENCE
    while not list((tmp_path / ".out.unfinished").glob("*-00002.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, error = process.communicate(timeout=PATIENCE)
    assert not (tmp_path / "out").exists() and "Traceback" not in error
    if how == signal.SIGINT:
        assert process.returncode == 2 and "interrupted; run the command again and it goes on from" in error
    assert quantize(tmp_path / "base", tmp_path / "out", "--max-shard-size", "40KB") == 0
    assert not list(tmp_path.glob(".out*")) and not list((tmp_path / "out").glob(".*"))
    model = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "out")
    assert model.hf_quantizer.plan is not None


def test_finished_components_are_not_done_again(wan22, tmp_path, monkeypatch):
    names = []

    def encode(weight, *, name, **settings):
        if name.startswith("transformer_2"):
            raise Stopped
        names.append(name)
        return original(weight, name=name, **settings)

    original = calibrated.encode
    monkeypatch.setattr(calibrated, "encode", encode)
    with pytest.raises(Stopped):
        quantize(wan22, tmp_path / "out")
    assert (tmp_path / ".out.unfinished/transformer/config.json").exists() and names
    monkeypatch.setattr(calibrated, "encode", original)
    names.clear()
    assert quantize(wan22, tmp_path / "out") == 0 and not names


def test_a_finished_output_is_not_done_again_and_its_card_is_kept(single, tmp_path, monkeypatch):
    assert quantize(single, tmp_path / "out") == 0
    (tmp_path / "out/README.md").write_text("mine")

    def encode(*_, **__):
        raise Stopped

    monkeypatch.setattr(calibrated, "encode", encode)
    assert quantize(single, tmp_path / "out") == 0
    assert (tmp_path / "out/README.md").read_text() == "mine"


def test_unfinished_work_of_another_kind_is_not_mixed_in(single, wan22, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise Stopped

    finish = conversion._Task._finish
    monkeypatch.setattr(conversion._Task, "_finish", stop)
    with pytest.raises(Stopped):
        quantize(single, tmp_path / "out")
    monkeypatch.setattr(conversion._Task, "_finish", finish)
    assert quantize(single, tmp_path / "out", "--block-size", "32") == 2
    assert "holds unfinished work with other settings or weights; remove it" in capsys.readouterr().err
    assert quantize(wan22, tmp_path / "out") == 2
    assert "holds unfinished work on other components; remove it" in capsys.readouterr().err
    assert quantize(single, tmp_path / "out") == 0


def test_only_what_is_needed_is_read_from_the_hub_and_the_result_goes_back(wan22, hub, tmp_path, monkeypatch, capsys):
    files = {path.relative_to(wan22).as_posix(): path.read_bytes() for path in wan22.rglob("*") if path.is_file()}
    hub.add("org/wan", files)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    arguments = ["--component", "transformer_2", "--push-to", "me/wan-4bit"]
    assert quantize("org/wan", tmp_path / "out", *arguments) == 0, capsys.readouterr().err
    assert "pushed: " in capsys.readouterr().out
    cache = Path(os.environ["HF_HOME"]) / "hub" / "models--org--wan" / "snapshots"
    got = {path.name for path in cache.rglob("*") if path.is_file()}
    assert got == {"README.md", "config.json", "model_index.json", WEIGHTS}
    assert set(hub.files("me/wan-4bit")) == {".gitattributes", "README.md", "config.json", WEIGHTS}
    card = hub.files("me/wan-4bit")["README.md"].decode()
    assert "base_model: org/wan" in card and 'WanTransformer3DModel.from_pretrained("me/wan-4bit"' in card
    model = diffusers.WanTransformer3DModel.from_pretrained("me/wan-4bit", token=hub.token)
    assert same(model, diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "out"))
    assert quantize("org/wan", tmp_path / "out", *arguments) == 0  # an interrupted push is repeated without quantizing


def index_that_climbs(folder: Path) -> None:
    (folder / WEIGHTS).unlink(missing_ok=True)
    text = json.dumps({"weight_map": {"x": "../../secret.safetensors"}})
    (folder / f"{WEIGHTS}.index.json").write_text(text)


def no_weights(folder: Path) -> None:
    for path in folder.glob("diffusion*"):
        path.unlink()


def pickled(folder: Path) -> None:
    no_weights(folder)
    torch.save({"x": torch.zeros(1)}, folder / "diffusion_pytorch_model.bin")


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-50])


def without_a_key(folder: Path) -> None:
    state = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
    del state["proj_out.bias"]
    save_file(state, folder / WEIGHTS)


def setting(**changes):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (index_that_climbs, "may reach outside its folder"),
        (no_weights, f"has no {WEIGHTS}.index.json or {WEIGHTS}"),
        (pickled, f"has no {WEIGHTS}.index.json or {WEIGHTS}"),
        (truncated, f"{WEIGHTS} cannot be read"),
        (without_a_key, "the key 'proj_out.bias' is missing (1 in all)"),
        (
            setting(num_layers=1, in_channels=8),
            "'patch_embedding.weight' is [64, 4, 1, 2, 2], and config.json makes it [64, 8,",
        ),
        (setting(_class_name="Path"), "is a Path, which is no model of diffusers"),
        (setting(_class_name="os.system"), "is a os.system, which is no model of diffusers"),
        (setting(quantization_config={"quant_method": "sedialect"}), "is quantized already (sedialect); take the original"),
        (no_config, "has no config.json"),
        (no_json, "config.json is damaged: "),
    ],
)
def test_folders_that_will_not_do_get_one_line_and_exit_code_2(tmp_path, capsys, spoil, message):
    folder = tmp_path / "base"
    TINY["WanTransformer3DModel"]()[0].save_pretrained(folder)
    spoil(folder)
    assert quantize(folder, tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sedialect: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--component", "vae"], "has no component 'vae' to quantize; there are transformer, transformer_2"),
        (["--preset", "best"], "no preset 'best'"),
        (["--max-shard-size", "2XB"], "--max-shard-size is '2XB'; write a number"),
        (["--push-to", "nobody"], "--push-to is 'nobody'; write owner/name"),
        (["--quality-table", "nowhere.md"], "nowhere.md cannot be read"),
        (
            ["--variant", "fp16"],
            f"has no transformer/{WEIGHTS}.index.fp16.json or transformer/diffusion_pytorch_model.fp16.",
        ),
        (["--device", "cuda:9"], "device 'cuda:9' cannot be used"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(wan22, tmp_path, capsys, arguments, message):
    assert quantize(wan22, tmp_path / "out", *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sedialect: ")]
    assert len(lines) == 1 and message in lines[0]


def test_too_little_room_is_found_out_first(single, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    assert quantize(single, tmp_path / "out") == 2
    assert "out needs 0.0 GB and 0.0 GB are free; free some first" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_that_holds_something_else_is_left_alone(single, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert quantize(single, tmp_path) == 2
    assert "holds other files already; choose another --output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_variants_and_pipelines_without_a_transformer(tmp_path):
    TINY["WanTransformer3DModel"]()[0].save_pretrained(tmp_path, variant="fp16", max_shard_size="60KB")
    (component,) = find_source(str(tmp_path), variant="fp16").components
    assert len(component.files) > 1 and component.name == ""
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(ValueError, match="is a DDPMPipeline without a transformer; sedialect quantizes no UNets"):
        find_source(str(tmp_path))


def test_the_device_and_dtype_of_the_rest(single, tmp_path):
    shutil.rmtree(tmp_path)
    assert quantize(single, tmp_path, "--dtype", "float16", "--device", "cpu") == 0
    state = load_file(tmp_path / WEIGHTS)
    assert state["proj_out.weight"].dtype == torch.float16 and state["scale_shift_table"].dtype == torch.float32
