"""The example workflows: made from the nodes, with pictures and notes, laid out for both node systems, seeds fixed."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


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
