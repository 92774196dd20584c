"""A real ComfyUI with the bundled model, for the tests that COMFYUI_DIR names one for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_server import COMFYUI, FLAGS, Server, python_of_comfyui
from comfyui_workflows import Workflow, base_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ComfyUI keeps models, inputs and outputs in."""
    return base_folder(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    """It runs for all tests of a file."""
    assert COMFYUI is not None
    with Server(Path(COMFYUI), python_of_comfyui(), base, *FLAGS) as running:
        yield running


@pytest.fixture
def graph(base: Path) -> Workflow:
    """An empty workflow."""
    return Workflow(base)
