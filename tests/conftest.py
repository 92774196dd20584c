"""Before any test is collected: no test talks to the real Hugging Face Hub, and `hub` is the one it talks to instead.

`huggingface_hub` reads its environment when it is imported, which is why this happens here and not in a fixture.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from hub_server import Hub

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Workers share the cores; torch reads this when it is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))

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


if find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Parallel workers take whole files, and one takes all tests that share the running app."""
    for item in items:
        group = "app" if "served" in getattr(item, "fixturenames", ()) else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The Hub stand-in, empty, and an empty cache; hub_server.py says what it can do."""
    _HUB.reset()
    yield _HUB
    _HUB.reset()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: models as small as these spend their time waiting for each other's threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def served() -> Iterator[Any]:
    """The app with the bundled model and small videos, for all tests that need one: loading takes as long as many tests."""
    from app_server import serving

    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with chromium() as started:
        yield started
