"""Our ComfyUI nodes: their names, and the class of one, which needs a ComfyUI or a stand-in for it."""

import importlib

NAMES = ("Quantize", "Load", "Save", "Formatbook", "Calibrate", "Report", "Compare", "QuantizeCLIP", "LoadCLIP", "SaveCLIP")
NODES = [f"SeDialect{name}" for name in NAMES]


def node(name: str):
    extension = importlib.import_module("sedialect.nodes.extension")
    return next(found for found in extension.NODES if found.__name__ == name)
