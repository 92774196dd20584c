"""What all test nodes share: parts of their schemas, and the way to the pack under test."""

import importlib
import sys

from comfy_api.latest import io

ENDS = {"is_output_node": True, "not_idempotent": True}
"""Of nodes that a workflow ends with, and that run anew each time."""


def schema(name, inputs=(), outputs=(), **more):
    """The schema of the node SeDialectTest<name>."""
    said = {"inputs": list(inputs), "outputs": list(outputs), **more}
    return io.Schema(node_id=f"SeDialectTest{name}", category="sedialect tests", **said)


def sedialect(name):
    """A module of the pack under test, whatever name ComfyUI gave it."""
    root = next(key for key in sys.modules if "custom_nodes" in key and key.endswith("sedialect"))
    return importlib.import_module(f"{root}.{name}")
