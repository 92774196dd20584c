"""A stand-in for ComfyUI with empty folders of models and outputs, and what each node's schema says on it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import comfyui_stand_in
import pytest
from node_classes import NODES, node


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


@pytest.fixture
def schemas(base) -> dict[str, SimpleNamespace]:
    return {name: node(name).define_schema() for name in NODES}
