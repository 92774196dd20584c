"""What nodes write, load and fit, on a stand-in for ComfyUI: paths, files and books, and what is refused before a run."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from node_classes import node

from sedialect.sedialect_core.errors import FormatbookError, InputError, ModelError

WRITERS = ("SeDialectSave", "SeDialectSaveCLIP", "SeDialectCompare")


class TestSave:
    @pytest.mark.parametrize(
        ("prefix", "says"),
        [
            ("", "names no file"),
            ("models/", "names no file"),
            ("..", "names no file"),
            ("a\0b", "no file name may"),
            ("x" * 201, "201 bytes"),
            ("../above", "leads out of the output folder"),
            ("/tmp/elsewhere/x", "leads out of the output folder"),
            ("taken/x", "taken is a file"),
            ("link/x", "leads out of the output folder"),
        ],
    )
    def test_a_path_that_cannot_be_written_is_said_before_the_run(self, base, prefix, says):
        (base / "output" / "taken").write_bytes(b"")
        (base / "output" / "link").symlink_to(base)
        for name in WRITERS:
            assert says in node(name).validate_inputs(filename_prefix=prefix)
        assert sorted(path.name for path in (base / "output").iterdir()) == ["link", "taken"], "nothing is made"

    def test_paths_that_can_be_written_pass_and_nothing_is_made(self, base):
        for prefix in ("x", "diffusion_models/sedialect", "a/b/c/x", "%year%/x", "./x", None):
            for name in WRITERS:
                assert node(name).validate_inputs(filename_prefix=prefix) is True
        assert node("SeDialectCalibrate").validate_inputs(glance=False) is True
        assert list((base / "output").iterdir()) == []

    def test_a_folder_without_permission_is_said(self, base, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: False)
        assert "cannot be written" in node("SeDialectSave").validate_inputs(filename_prefix="x")
        assert "cannot be written; allow it" in node("SeDialectCalibrate").validate_inputs(glance=False)

    def test_a_path_that_another_node_gives_is_looked_at_before_writing(self, base):
        with pytest.raises(InputError, match="leads out of the output folder"):
            importlib.import_module("sedialect.nodes.saving").place_for("../above")
        with pytest.raises(InputError, match="leads out of the output folder"):
            node("SeDialectCompare").execute(*[torch.rand(2, 32, 32, 3)] * 2, filename_prefix="../above")
        assert list(base.glob("*above*")) == []

    def test_calibrations_that_cannot_be_kept_are_said_before_sampling(self, base):
        (base / "output" / "sedialect_calibrations").write_bytes(b"")
        calibrate = node("SeDialectCalibrate")
        assert "is a file" in calibrate.validate_inputs(glance=True)
        with pytest.raises(InputError, match="sedialect_calibrations"):
            calibrate.execute(None, [], [], {"samples": None})


def test_a_loader_of_text_encoders_without_files_says_so(base):
    load = node("SeDialectLoadCLIP")
    (shown,) = load.define_schema().inputs[0].said["options"]
    assert "none yet" in shown and f"there is no {shown!r}" in load.validate_inputs(shown)
    (base / "models" / "text_encoders" / "t5.safetensors").write_bytes(b"")
    assert load.define_schema().inputs[0].said["options"] == ["t5.safetensors"]


class TestLoad:
    def test_what_cannot_be_loaded_is_said_before_the_run(self, base):
        load = node("SeDialectLoad")
        folder = base / "models" / "diffusion_models"
        (folder / "broken.safetensors").write_bytes(b"nothing")
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, folder / "plain.safetensors")
        assert "there is no 'gone'" in load.validate_inputs("gone")
        assert "cannot be read" in load.validate_inputs("broken.safetensors")
        assert "put SeDialect Quantize behind it" in load.validate_inputs("plain.safetensors")
        assert load.validate_inputs("(from the Hub repository below)") is True
        with pytest.raises(InputError, match="write the repository"):
            load.execute("(from the Hub repository below)", " ")

    def test_a_new_file_under_an_old_name_is_another_input(self, base):
        load, path = node("SeDialectLoad"), base / "models" / "diffusion_models" / "a.safetensors"
        path.write_bytes(b"1")
        before = load.fingerprint_inputs("a.safetensors")
        path.write_bytes(b"22")
        assert load.fingerprint_inputs("a.safetensors") != before


def test_what_is_not_quantized_is_neither_saved_nor_reported(base):
    for name, inputs in (("SeDialectSave", {"filename_prefix": "x", "names": "ComfyUI"}), ("SeDialectReport", {})):
        with pytest.raises(ModelError, match="not quantized by SeDialect"):
            node(name).execute(SimpleNamespace(), **inputs)


def test_a_full_disk_is_said_before_anything_is_written(base):
    node("SeDialectSave")
    saving = importlib.import_module("sedialect.nodes.saving")
    with pytest.raises(InputError, match=r"needs 1020000000.0 GB and .* GB are free; free some first"):
        saving.place_for("x", 10**18)
    assert saving.place_for("a/x", 1)[1:] == ("x_00001_", "a")


class TestFormatbook:
    def test_books_come_from_the_package_and_the_model_folder(self, base):
        from sedialect import Formatbook

        book = Formatbook.builtin("dialectfp4-16")
        book.save(base / "models" / "sedialect_formatbooks" / "mine.json")
        formatbook = node("SeDialectFormatbook")
        (choices, *_) = formatbook.define_schema().inputs
        assert {"sedialect-32", "dialectfp4-16", "mine.json"} <= set(choices.said["options"])
        for name in ("dialectfp4-16", "mine.json"):
            result = formatbook.execute(name)
            assert result.values[0].digest == book.digest and "dialectfp4-16" in result.ui.value
            image = result.values[1]
            assert image.shape[0] == 1 and image.shape[3] == 3 and 0.05 < float(image.std()) < 0.5

    def test_what_is_not_there_is_said(self, base):
        formatbook = node("SeDialectFormatbook")
        assert "no formatbook 'x'" in formatbook.validate_inputs("x")
        with pytest.raises(FormatbookError, match="write owner/name"):
            formatbook.execute("(from the Hub repository below)", "me")
        with pytest.raises(ValueError, match="connect a 16-bit MODEL"):
            formatbook.execute("(fitted to the MODEL below)")
