"""The nodes' faces: schemas, words, help, examples, refusals; on a stand-in for ComfyUI. The real one: test_comfyui.py."""

import asyncio
import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import comfyui_stand_in
import pytest
import torch
from layout_report import imported

from sedialect.sedialect_core.config import PRESETS, SeDialectConfig
from sedialect.sedialect_core.errors import ConfigError, FormatbookError, InputError, ModelError

ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "zh", "ja")
NAMES = ("Quantize", "Load", "Save", "Formatbook", "Calibrate", "Report", "Compare", "QuantizeCLIP", "LoadCLIP", "SaveCLIP")
NODES = [f"SeDialect{name}" for name in NAMES]


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """ComfyUI's base folder, with the stand-ins in place of ComfyUI."""
    for folder in ("models/diffusion_models", "models/text_encoders", "models/sedialect_formatbooks", "output"):
        (tmp_path / folder).mkdir(parents=True)
    comfyui_stand_in.forget()
    for name, module in comfyui_stand_in.modules(tmp_path).items():
        monkeypatch.setitem(sys.modules, name, module)
    yield tmp_path
    comfyui_stand_in.forget()


def node(name: str):
    extension = importlib.import_module("sedialect.nodes.extension")
    return next(found for found in extension.NODES if found.__name__ == name)


@pytest.fixture
def schemas(base) -> dict[str, SimpleNamespace]:
    return {name: node(name).define_schema() for name in NODES}


def test_comfyui_gets_all_nodes_through_the_front_door(base):
    import sedialect

    listed = asyncio.run(asyncio.run(sedialect.comfy_entrypoint()).get_node_list())
    assert [found.define_schema().node_id for found in listed] == NODES
    assert not hasattr(sedialect, "NODE_CLASS_MAPPINGS"), "with it, ComfyUI never calls comfy_entrypoint"


def test_an_old_comfyui_is_refused_with_its_version(base, monkeypatch):
    import sedialect

    monkeypatch.setattr(sys.modules["comfyui_version"], "__version__", "0.24.1")
    with pytest.raises(ModelError, match=r"needs ComfyUI 0.29 or newer, and this is 0.24.1"):
        asyncio.run(sedialect.comfy_entrypoint())


def test_every_node_is_described_and_every_input_has_a_tooltip(schemas):
    for name, schema in schemas.items():
        assert schema.display_name.startswith("SeDialect ") and schema.category == "SeDialect" and schema.description
        for socket in schema.inputs:
            assert socket.said.get("tooltip"), f"{name}.{socket.id}"


def test_inputs_that_may_be_added_to_later_are_optional(schemas):
    """In a saved workflow a widget input that is not optional is required, so a new one would break old workflows."""
    required = {name: [s.id for s in schema.inputs if not s.said.get("optional")] for name, schema in schemas.items()}
    assert required == {
        "SeDialectQuantize": ["model", "preset"],
        "SeDialectLoad": ["file"],
        "SeDialectSave": ["model", "filename_prefix", "names"],
        "SeDialectFormatbook": ["book"],
        "SeDialectCalibrate": ["model", "positive", "negative", "latent_image"],
        "SeDialectReport": ["model"],
        "SeDialectCompare": ["left", "right", "fps"],
        "SeDialectQuantizeCLIP": ["clip"],
        "SeDialectLoadCLIP": ["file", "type"],
        "SeDialectSaveCLIP": ["clip", "filename_prefix"],
    }


def test_each_error_before_a_run_is_told_once(schemas):
    """ComfyUI repeats what `validate_inputs` says for each input that it takes."""
    for name in schemas:
        check = getattr(node(name), "validate_inputs", None)
        if check is not None:
            assert check.__func__.__code__.co_argcount == 2, name
            assert check() is True, f"{name}: an input that is linked, or left out of an API workflow, is not passed"


def test_execute_takes_every_input(schemas):
    for name, schema in schemas.items():
        code = node(name).execute.__func__.__code__
        takes = set(code.co_varnames[1 : code.co_argcount])
        assert code.co_flags & 0x08 or takes == {socket.id for socket in schema.inputs}, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_translated(schemas, language):
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert list(words) == NODES
    for name, schema in schemas.items():
        said = words[name]
        assert said["display_name"] and said["description"]
        assert set(said["inputs"]) == {socket.id for socket in schema.inputs}
        assert all(entry["name"] and entry["tooltip"] for entry in said["inputs"].values())
        assert len(said.get("outputs", {})) == len(schema.outputs)
    if language == "en":
        assert all(words[name]["description"] == schema.description for name, schema in schemas.items())
        assert all(
            words[name]["inputs"][s.id]["tooltip"] == s.said["tooltip"]
            for name, schema in schemas.items()
            for s in schema.inputs
        )
    else:
        assert all(not said["description"].isascii() for said in words.values())


@pytest.mark.parametrize("name", NODES)
def test_help_names_every_input_that_is_not_plain(schemas, name):
    text = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {schemas[name].display_name}\n")
    for language in ("zh", "ja"):
        assert (ROOT / "web" / "docs" / name / f"{language}.md").read_text(encoding="utf-8").startswith("# SeDialect")


def test_only_the_comfy_files_touch_comfyuis_internals():
    for path in sorted((ROOT / "nodes").glob("*.py")):
        internals = {module for dots, module in imported(path) if not dots and module.split(".")[0] == "comfy"}
        assert not internals or path.name.startswith("comfy_"), f"{path.name} imports {internals}"


class TestSettings:
    def test_every_preset_is_offered_and_left_as_it_is(self, base):
        settings = importlib.import_module("sedialect.nodes.settings")
        (preset, *others) = settings.setting_inputs()
        assert preset.said["options"] == ["auto", *PRESETS] and preset.said["default"] == "auto"
        untouched = {socket.id: socket.said["default"] for socket in others}
        for name in PRESETS:
            skip = untouched.get("skip", "")
            assert settings.config_from(name, untouched, skip) == SeDialectConfig.preset(name)

    def test_every_choice_overrides_the_preset(self, base):
        settings = importlib.import_module("sedialect.nodes.settings")
        for entry in settings.SHOWN:
            words = settings.choices(entry)
            for place, (name, made) in enumerate(zip(entry.inputs, settings.inputs_of(entry), strict=True)):
                given = words or {number: number for number in (0, made.said["max"])}
                assert not words or made.said["options"] == ["preset", *words]
                for word, wanted in given.items():
                    value = getattr(settings.config_from("compact", {name: word}, ""), entry.name)
                    assert (value[place] if len(entry.inputs) > 1 else value) == wanted
        both = settings.config_from("default", {"protected_first": 2, "protected_last": 1, "semantic": "on"}, "")
        assert both.protected_steps == (2, 1) and both.semantic is True
        assert settings.config_from("default", {}, " a+ \n\n b$ \n").skip == ("a+", "b$")
        with pytest.raises(ConfigError, match="no regular expression"):
            settings.config_from("default", {}, "(")

    def test_what_is_asked_for_is_told_where_it_changes_nothing(self, base):
        settings = importlib.import_module("sedialect.nodes.settings")
        found = settings.asked("auto", {"precision": "w4a8", "salient_ratio": 0.5}, "", "cpu")
        assert found.config == SeDialectConfig.preset("weight-only", precision="w4a8", salient_ratio=0.5)
        assert found.notes[0].startswith("auto took the preset weight-only: on cpu")
        assert found.notes[1].startswith("salient_ratio changes nothing") and len(found.notes) == 2
        assert settings.asked("default", {"salient_ratio": -1, "semantic": "preset"}, "", "cpu").notes == ()

    def test_a_number_between_the_unset_one_and_zero_is_refused_before_any_work(self, base):
        says = "salient_ratio is -0.5; give number from 0 to 1, or -1 to leave it to the preset or file"
        with pytest.raises(ConfigError, match=says):
            node("SeDialectQuantize").execute(SimpleNamespace(), salient_ratio=-0.5)
        with pytest.raises(ConfigError, match=says):
            node("SeDialectLoad").execute("(from the Hub repository below)", "me/model", salient_ratio=-0.5)

    def test_a_pattern_is_looked_at_before_the_run(self, base):
        assert node("SeDialectQuantize").validate_inputs(skip="ffn") is True
        assert "no regular expression" in node("SeDialectQuantize").validate_inputs(skip="(")

    def test_three_inputs_stand_in_front(self, schemas):
        shown = {"SeDialectQuantize": ["preset", "precision", "block_size"], "SeDialectLoad": ["file", "repository"]}
        for name, front in shown.items():
            widgets = [s for s in schemas[name].inputs if s.kind in ("COMBO", "STRING", "INT", "FLOAT", "BOOLEAN")]
            shown = [s.id for s in widgets if not s.said.get("advanced") and not s.said.get("force_input")]
            assert shown == front

    def test_the_order_of_inputs_is_that_of_saved_workflows(self, schemas):
        """A saved workflow holds values in this order: a new input comes at the end of the settings."""
        found = [s.id for s in schemas["SeDialectQuantize"].inputs]
        assert found[1:18] == [
            "preset", "precision", "block_size", "salient_ratio", "semantic", "protected_first", "protected_last",
            "salient_by", "salient_layers", "refresh_every", "rotation", "equalize", "candidates", "modulation",
            "attention", "products", "skip",
        ]  # fmt: skip


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


def test_what_people_search_for_finds_the_nodes(schemas):
    for word, name in (
        ("nvfp4", "Quantize"), ("gguf", "Quantize"), ("int4", "Quantize"), ("fp8", "Quantize"), ("load 4-bit", "Load"),
        ("load nvfp4", "Load"), ("gguf loader", "Load"), ("save 4-bit", "Save"),
    ):  # fmt: skip
        assert word in schemas[f"SeDialect{name}"].search_aliases


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


class TestCompare:
    def run(self, left, right, **more):
        return node("SeDialectCompare").execute(left, right, **more).ui["sedialect_compare"]

    def test_both_videos_are_written_and_measured(self, base):
        left = torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(0))
        right = left.clone()
        right[2] = (right[2] + 0.25).clamp(0, 1)
        (payload,) = self.run(left, SimpleNamespace(get_components=lambda: SimpleNamespace(images=right)), fps=24.0)
        assert payload["fps"] == 24.0 and payload["frames"] == 5 and payload["labels"] == ["16 bit", "SemanticDialect"]
        psnr, ssim, flicker = (row["values"] for row in payload["series"])
        assert [value is None for value in psnr] == [True, True, False, True, True]  # equal frames have no finite PSNR
        assert ssim[0] == 1 and ssim[2] < 0.99
        assert flicker[0] is None and flicker[1] == 0 and flicker[2] > 0 and flicker[3] > 0 and flicker[4] == 0
        json.dumps(payload, allow_nan=False)
        import av

        for side, count in (("left", 5), ("right", 5)):
            file = base / "output" / payload[side]["subfolder"] / payload[side]["filename"]
            with av.open(str(file)) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 32)
                assert float(stream.average_rate) == 24 and sum(1 for _ in container.decode(video=0)) == count

    def test_videos_of_different_size_or_length_are_refused(self, base):
        with pytest.raises(InputError, match=r"left has 3 frames of 32x32 and right 4 of 32x32"):
            self.run(torch.rand(3, 32, 32, 3), torch.rand(4, 32, 32, 3))
        with pytest.raises(InputError, match="too small"):
            self.run(torch.rand(3, 8, 8, 3), torch.rand(3, 8, 8, 3))

    def test_the_player_listens_for_what_the_node_sends(self, base):
        script = (ROOT / "web" / "js" / "compare_node.js").read_text(encoding="utf-8")
        compare = importlib.import_module("sedialect.nodes.compare")
        assert f'"{compare.UI_KEY}"' in script and '"SeDialectCompare"' in script


class TestExamples:
    files = sorted((ROOT / "example_workflows").glob("*.json"))

    def test_they_are_what_is_written_from_the_nodes(self, base):
        """tests/helpers/make_workflows.py --write makes them; a new setting changes them."""
        made = importlib.import_module("make_workflows").examples()
        assert {path.stem: path.read_text(encoding="utf-8") for path in self.files} == made

    def test_titles_are_for_people_and_for_every_file_system(self):
        """ComfyUI shows the file's name."""
        for path in self.files:
            assert " " in path.stem and path.stem[0].isupper() and "_" not in path.stem
            assert re.fullmatch(r"[A-Za-z0-9 ,.-]+", path.stem), "signs that an address or a file system treats otherwise"

    @pytest.mark.parametrize("path", files, ids=lambda path: path.stem)
    def test_each_has_a_picture_and_a_note_of_what_it_takes(self, path):
        from PIL import Image

        with Image.open(path.with_suffix(".jpg")) as picture:
            assert (picture.format, picture.size) == ("JPEG", (640, 400))
        (said,) = [node for node in json.loads(path.read_text())["nodes"] if node["type"] == "MarkdownNote"]
        (words,) = said["widgets_values"]
        files = {
            model["name"] for node in json.loads(path.read_text())["nodes"] for model in node["properties"].get("models", [])
        }
        assert files and all(f"[{name}](https://huggingface.co/Comfy-Org/" in words for name in files)
        for part in ("**GPU memory:**", "**First run", " GB |"):
            assert part in words, part

    @pytest.mark.parametrize("path", files, ids=lambda path: path.stem)
    def test_nodes_stand_apart_and_the_whole_is_narrow(self, path):
        """With the heights of both node systems; test_comfyui_templates.py looks at them in the browser."""
        boxes = [(*node["pos"], *node["size"]) for node in json.loads(path.read_text())["nodes"]]
        for number, (x, y, width, height) in enumerate(boxes):
            for left, top, across, down in boxes[number + 1 :]:
                apart = x + width + 20 <= left or left + across + 20 <= x
                assert apart or y + height + 60 <= top or top + down + 60 <= y
        assert max(x + width for x, _, width, _ in boxes) <= 2100 and max(y + height for _, y, _, height in boxes) <= 1150

    @pytest.mark.parametrize("path", files, ids=lambda path: path.stem)
    def test_links_and_widgets_fit_the_nodes(self, schemas, path):
        graph = json.loads(path.read_text(encoding="utf-8"))
        nodes = {entry["id"]: entry for entry in graph["nodes"]}
        for number, source, output, target, slot, kind in graph["links"]:
            assert number in nodes[source]["outputs"][output]["links"]
            assert nodes[target]["inputs"][slot]["link"] == number and kind == nodes[source]["outputs"][output]["type"]
        ours = [entry for entry in graph["nodes"] if entry["type"] in schemas]
        assert ours
        for entry in ours:
            linked = {socket["name"] for socket in entry["inputs"]}
            widgets = [socket for socket in schemas[entry["type"]].inputs if socket.id not in linked]
            values = list(entry["widgets_values"])
            if entry["type"] == "SeDialectCalibrate":
                assert values.pop(1) == "fixed"  # ComfyUI's own, behind a seed
            assert len(widgets) == len(values), entry["type"]
            for socket, value in zip(widgets, values, strict=True):
                if entry["type"] == "SeDialectLoad" and socket.id == "file":
                    assert value.startswith(("(from the Hub", "wan2.1_t2v_1.3B_sedialect"))  # which another example saves
                elif "options" in socket.said:
                    assert value in socket.said["options"], (socket.id, value)

    @pytest.mark.parametrize("path", files, ids=lambda path: path.stem)
    def test_seeds_are_fixed(self, path):
        """ComfyUI randomizes each sampler's seed after a run, unless the workflow says otherwise: two would differ."""
        for entry in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if entry["type"] in ("KSampler", "KSamplerAdvanced", "RandomNoise"):
                assert "fixed" in entry["widgets_values"]


def test_requirements_for_comfyui_manager_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    needed = [entry for entry in project["project"]["dependencies"] if not entry.startswith("torch")]
    assert set(needed) <= set(asked)
    extra = project["project"]["optional-dependencies"]["demo"]
    assert set(asked) - set(needed) <= set(extra), "floors must be those of the extra that has them"
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and "web" not in comfy
    floor = re.search(r">=(\d+)\.(\d+)", comfy["requires-comfyui"])
    from sedialect.nodes.versions import NEEDED

    assert tuple(map(int, floor.groups())) == NEEDED


def test_the_registry_entry_is_what_the_comfy_registry_reads():
    """As comfy-cli 1.23.0 reads it: three numbers in a version, classifiers that it knows, pictures in its bounds."""
    import tomllib

    from PIL import Image

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    comfy, about = project["tool"]["comfy"], project["project"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert {"Operating System :: OS Independent", "Environment :: GPU :: NVIDIA CUDA"} <= set(about["classifiers"])
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", about["name"]) and "comfyui" not in about["name"]
    raw = about["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    for key, fits in (("Icon", lambda w, h: w <= 800 and h <= 400), ("Banner", lambda w, h: abs(w / h - 21 / 9) < 0.01)):
        assert comfy[key].startswith(raw)
        with Image.open(ROOT / comfy[key].removeprefix(raw)) as picture:
            assert picture.format == "PNG" and fits(*picture.size), picture.size


def test_what_the_registry_leaves_out_is_not_imported_by_the_nodes():
    left = [line.strip("/") for line in (ROOT / ".comfyignore").read_text().splitlines() if line.endswith("/")]
    assert "tests" in left
    for room in ("nodes", "kernels", "sedialect_core"):
        for path in (ROOT / room).rglob("*.py"):
            for dots, module in imported(path):
                up = len(path.relative_to(ROOT).parts)
                assert not (dots == up and module.split(".")[0] in left), f"{path.name} imports {module}"
