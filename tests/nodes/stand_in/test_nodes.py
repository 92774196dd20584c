"""The nodes' faces: schemas, words, help, settings; on a stand-in for ComfyUI. The real one: test_comfyui.py."""

import asyncio
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from layout_report import imported
from node_classes import NODES, node

from sedialect.sedialect_core.config import PRESETS, SeDialectConfig
from sedialect.sedialect_core.errors import ConfigError, ModelError

ROOT = Path(__file__).parents[3]
LANGUAGES = ("en", "zh", "ja")


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


def test_what_people_search_for_finds_the_nodes(schemas):
    for word, name in (
        ("nvfp4", "Quantize"), ("gguf", "Quantize"), ("int4", "Quantize"), ("fp8", "Quantize"), ("load 4-bit", "Load"),
        ("load nvfp4", "Load"), ("gguf loader", "Load"), ("save 4-bit", "Save"),
    ):  # fmt: skip
        assert word in schemas[f"SeDialect{name}"].search_aliases
