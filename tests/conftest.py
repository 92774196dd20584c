"""Before any test is collected: no test talks to the real Hugging Face Hub, and `hub` is the one it talks to instead.

`huggingface_hub` reads its environment when it is imported, which is why this happens here and not in a fixture.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub

assert "huggingface_hub" not in sys.modules, "HF_ENDPOINT and HF_HOME must be set before huggingface_hub is imported"
_home = tempfile.TemporaryDirectory(prefix="sedialect-hub-")
_HUB = Hub(Path(_home.name))
for _name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_CACHE",
    "HF_TOKEN_PATH",
):
    os.environ.pop(_name, None)
os.environ.update(_HUB.variables())


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The Hub stand-in, empty, and an empty cache; hub_server.py says what it can do."""
    _HUB.reset()
    yield _HUB
    _HUB.reset()
