"""The table of settings: what each kind of value takes, and that a new setting is one entry."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import make_settings
import pytest

from sedialect import SeDialectConfig
from sedialect.sedialect_core.errors import ConfigError
from sedialect.sedialect_core.settings import (
    LIVE,
    SETTINGS,
    Choice,
    LayerPrecisions,
    Number,
    Numbers,
    Patterns,
    Switch,
    Text,
)
from sedialect.sedialect_core.settings.document import markdown

ROOT = Path(__file__).parents[3]
ENTRY = """
    haste: str = setting(
        "steady",
        Choice(("steady", "quick")),
        "Haste of the layers",
        "How much the layers hurry, in 100 % of all cases.",
    )
"""
# What each front end makes of its settings, in a process of its own, because ComfyUI is a stand-in there.
LOOK = """
import argparse, importlib, json, sys
from pathlib import Path
import comfyui_stand_in
sys.modules.update(comfyui_stand_in.modules(Path(sys.argv[1])))
import sedialect
from sedialect.cli.compare import add_config, config_of
from sedialect.sedialect_core.settings import SETTINGS
from sedialect.sedialect_core.settings.document import markdown
from sedialect.web.server.limits import OFFERED, checked_config
from sedialect.web.tabs.compare import setting_field

parser = argparse.ArgumentParser()
add_config(parser)
nodes = importlib.import_module("sedialect.nodes.settings")
socket = next(made for made in nodes.setting_inputs() if made.id == "haste")
field = setting_field(OFFERED["haste"])
print(json.dumps({
    "from": sedialect.__file__,
    "help": " ".join(parser.format_help().split()),
    "typed": config_of(parser.parse_args(["--haste", "quick"])).haste,
    "node": [socket.said["options"], socket.said["tooltip"], socket.said["advanced"]],
    "connected": nodes.config_from("default", {"haste": "quick"}, "").haste,
    "page": [type(field).__name__, [value for _, value in field.choices], field.label, field.info],
    "asked": checked_config("default", {"haste": "quick"}).haste,
    "row": next(line for line in markdown(SETTINGS).splitlines() if "haste" in line),
    "kept": sedialect.SeDialectConfig.from_dict(sedialect.SeDialectConfig(haste="quick").to_dict()).haste,
}))
"""


def with_entry(folder: Path) -> Path:
    """The package in a folder of links, all of it as it is but for the table, which has one entry more."""
    package, core = folder / "sedialect", folder / "sedialect" / "sedialect_core"
    (core / "settings").mkdir(parents=True)
    replaced = {ROOT / "sedialect_core", ROOT / "sedialect_core" / "settings", ROOT / "sedialect_core/settings/table.py"}
    for here, there in (
        (ROOT, package),
        (ROOT / "sedialect_core", core),
        (ROOT / "sedialect_core/settings", core / "settings"),
    ):
        for path in here.iterdir():
            if path not in replaced and path.name[0] != "." and path.name != "__pycache__":
                (there / path.name).symlink_to(path)
    before, mark, after = (
        (ROOT / "sedialect_core/settings/table.py").read_text(encoding="utf-8").partition("\n\nSETTINGS = ")
    )
    assert mark, "the table's end is not where this test looks for it"
    (core / "settings" / "table.py").write_text(before.rstrip() + ENTRY + mark + after, encoding="utf-8")
    return folder


def test_a_new_setting_is_one_entry(tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "base" / "models").mkdir(parents=True)
    package = with_entry(tmp_path / "changed")
    paths = os.pathsep.join(map(str, (package, ROOT / "tests" / "helpers")))
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "base")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    said = "How much the layers hurry, in 100 % of all cases."
    assert Path(seen["from"]).parent == package / "sedialect"
    assert "--haste HASTE how much the layers hurry, in 100 % of all cases (steady, quick)" in seen["help"]
    assert seen["node"] == [["preset", "steady", "quick"], said, True]
    assert seen["page"] == ["Dropdown", ["steady", "quick"], "Haste of the layers", said]
    row = ("`haste`", said, '`"steady"`, `"quick"`', '`"steady"`', "`--haste`", "haste (advanced)", "Haste of the layers")
    assert seen["row"] == f"| {' | '.join(row)} |"
    assert seen["typed"] == seen["connected"] == seen["asked"] == seen["kept"] == "quick"


def test_the_table_holds_the_configuration():
    assert [entry.name for entry in SETTINGS] == [field.name for field in fields(SeDialectConfig)]
    for entry in SETTINGS:
        assert entry.values.check(entry.name, entry.default) == entry.default == getattr(SeDialectConfig(), entry.name)
        assert entry.label and entry.help.endswith("."), entry.name
    assert {"salient_ratio", "protected_steps"} <= set(LIVE) and "precision" not in LIVE


def test_the_page_of_settings_is_written_from_the_code():
    assert make_settings.PAGE.read_text(encoding="utf-8") == make_settings.page_with(markdown(SETTINGS)), (
        "run: python tests/helpers/make_settings.py --write"
    )


def test_english_words_are_the_schemas_and_old_names_stay():
    from types import SimpleNamespace

    socket = {name: SimpleNamespace(id=name, said={"tooltip": f"of {name}"}) for name in ("old", "brand_new")}
    words = {"Node": {"display_name": "Node", "inputs": {"old": {"name": "Old name", "tooltip": "as it was"}, "gone": {}}}}
    made = make_settings.english(words, [SimpleNamespace(node_id="Node", inputs=list(socket.values()))])
    assert made["Node"]["inputs"] == {
        "old": {"name": "Old name", "tooltip": "of old"},
        "brand_new": {"name": "brand new", "tooltip": "of brand_new"},
    }
    assert made["Node"]["display_name"] == "Node"


@pytest.mark.parametrize(
    ("values", "bad", "message"),
    [
        (Choice((16, 32)), 7, "x is 7; choose one of 16, 32"),
        (Switch(), 1, "x is 1; it is True or False"),
        (Number(0), 0.5, "x is 0.5; give an integer of at least 0"),
        (Number(0), True, "x is True; give an integer of at least 0"),
        (Number(0, 1, whole=False), float("nan"), "x is nan; give a number from 0 to 1"),
        (Number(0, 1, whole=False), "1", "x is '1'; give a number from 0 to 1"),
        (Numbers(0, parts=("first", "last")), 3, "x is 3; give 2 integers of at least 0"),
        (Numbers(0, parts=("first", "last")), (1, 2, 3), r"x is \(1, 2, 3\); give 2 integers of at least 0"),
        (Numbers(0, 1, whole=False), "0.5", "x is '0.5'; give numbers from 0 to 1"),
        (Text(), 3, "x is 3; give a text"),
        (Patterns(), ["("], r"pattern '\(' is no regular expression"),
        (Patterns(), "attn2", "x is 'attn2'; give a list of regular expressions"),
        (LayerPrecisions(("w4a4",)), [("a", "w2a2")], r"x\['a'\] is 'w2a2'; choose one of w4a4"),
    ],
)
def test_values_refuse_what_they_do_not_hold(values, bad, message):
    with pytest.raises(ConfigError, match=message):
        values.check("x", bad)


def test_lists_become_tuples_and_paths_texts():
    assert Numbers(0, 1, whole=False).check("x", [0, 0.5]) == (0, 0.5)
    assert LayerPrecisions(("w4a4",)).check("x", [["a", "w4a4"]]) == (("a", "w4a4"),)
    assert Patterns().check("x", ["a"]) == ("a",) and Text().check("x", Path("a") / "b") == os.path.join("a", "b")
