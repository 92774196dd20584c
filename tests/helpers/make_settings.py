"""Writes what is said of the settings elsewhere: the table of docs/settings.md, and the English words of the nodes.

python tests/helpers/make_settings.py --write    # without --write: print the table
"""

import argparse
import asyncio
import importlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import comfyui_stand_in

from sedialect.sedialect_core.settings import SETTINGS
from sedialect.sedialect_core.settings.document import markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
WORDS = ROOT / "locales" / "en" / "nodeDefs.json"
BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def page_with(table: str) -> str:
    """The page with this table between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def english(words: dict[str, Any], schemas: list[Any]) -> dict[str, Any]:
    """The nodes' words, with the names and tooltips of their inputs as the schemas have them."""
    told = json.loads(json.dumps(words))
    for schema in schemas:
        old = words[schema.node_id]["inputs"]
        told[schema.node_id]["inputs"] = {
            socket.id: {"name": _name(socket.id, old), "tooltip": socket.said["tooltip"]} for socket in schema.inputs
        }
    return told


def _name(socket: str, old: dict[str, Any]) -> str:
    """What a node shows: the name that it has had, or the id in words."""
    return old[socket]["name"] if socket in old else socket.replace("_", " ")


def schemas() -> list[Any]:
    """The nodes' schemas, on a stand-in for ComfyUI."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "models").mkdir()
        sys.modules.update(comfyui_stand_in.modules(Path(folder)))
        import sedialect

        for name in ("diffusion_models", "sedialect_formatbooks"):
            (Path(folder) / "models" / name).mkdir()
        asyncio.run(sedialect.comfy_entrypoint())
        return [node.define_schema() for node in importlib.import_module("sedialect.nodes.extension").NODES]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the documents")
    if parser.parse_args().write:
        PAGE.write_text(page_with(markdown(SETTINGS)), encoding="utf-8")
        made = english(json.loads(WORDS.read_text(encoding="utf-8")), schemas())
        WORDS.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        print(markdown(SETTINGS))
