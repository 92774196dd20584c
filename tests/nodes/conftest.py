"""A real ComfyUI with the bundled model, and its frontend, for the tests that COMFYUI_DIR names one for."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui_page import ready
from comfyui_server import COMFYUI, FLAGS, Server, python_of_comfyui
from comfyui_workflows import Workflow, base_folder

# With COMFYUI_SHARED all files of a run share a server, which is quicker where tests are spread over processes.
SCOPE = "session" if os.environ.get("COMFYUI_SHARED") else "module"
SYSTEMS = {"canvas": False, "vue": True}  # ComfyUI's node systems: is the second one on?


@pytest.fixture(scope=SCOPE)
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ComfyUI keeps models, inputs and outputs in."""
    return base_folder(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope=SCOPE)
def server(base: Path) -> Iterator[Server]:
    """It runs for all tests of a file, or of a run."""
    assert COMFYUI is not None
    with Server(Path(COMFYUI), python_of_comfyui(), base, *FLAGS) as running:
        yield running


@pytest.fixture
def graph(base: Path) -> Workflow:
    """An empty workflow."""
    return Workflow(base)


@pytest.fixture(params=SYSTEMS)
def page(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Any]:
    """The frontend, ready, in one of the two node systems; at the end none of our scripts may have failed."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    ready(page, server.url, SYSTEMS[request.param])
    page.system = request.param
    yield page
    context.close()
    assert [fault for fault in faults if "sedialect" in fault.lower()] == []
