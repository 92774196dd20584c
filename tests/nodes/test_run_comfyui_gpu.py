"""What run_comfyui_gpu.py stands on, without ComfyUI: models on the disk, rows, and their places in docs/comfyui.md."""

from pathlib import Path

import comfyui_big_models
import pytest
import torch
from comfyui_big_models import Size
from comfyui_gpu_sections import attempt
from comfyui_measuring import Row, table
from run_comfyui_gpu import PAGE, SECTIONS, parts
from safetensors.torch import load_file

from sedialect.sedialect_core.storage.marked import marked

SIZE = Size(1, 256, 512)


def test_both_files_hold_the_same_weights(tmp_path: Path):
    whole = load_file(comfyui_big_models.write_wan(tmp_path / "a.safetensors", SIZE, "cpu"))
    fp8 = load_file(comfyui_big_models.write_wan(tmp_path / "b.safetensors", SIZE, "cpu", fp8=True))
    assert (tmp_path / "a.safetensors").stat().st_size >= comfyui_big_models.bytes_of(SIZE)
    for name, weight in whole.items():
        scale = fp8.get(f"{name}_scale")
        if scale is None:
            assert torch.equal(fp8[name], weight)
            continue
        assert fp8[name].dtype == torch.float8_e4m3fn and fp8[f"{name.removesuffix('.weight')}.comfy_quant"].numel() == 32
        error = fp8[name].float() * scale - weight.float()
        assert error.norm() < 0.04 * weight.float().norm()
    assert sum(name.endswith("_scale") for name in fp8) == 10


def test_a_row_that_fails_says_why(tmp_path: Path):
    def fails() -> Row:
        raise AssertionError("first line\nout of | memory\n}")

    row = attempt(Row("vram", "16 bit", ""), fails)
    (line,) = table([row]).splitlines()[2:]
    assert "AssertionError: out of / memory" in line and line.count("|") == table([row]).splitlines()[0].count("|")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_that_ran_has_a_place_in_the_document(section: str):
    rows = [
        Row(section, "16 bit", "", step=1.25, note="1 passed").to_dict(),
        Row("vram", "of the set-up", "", step=2.5).to_dict(),
    ]
    found = parts({"where": "*where*", "sections": [section], "rows": rows})
    text = marked(PAGE.read_text(encoding="utf-8"), found, PAGE)
    assert ("* 1 passed" if section == "suite" else "| 1.25 |") in text and "*where*" in text
    assert ("| of the set-up |" in text) == (section == "vram"), "rows of a section that did not run replace nothing"
