"""Before any test is collected: no test talks to the real Hugging Face Hub, and `hub` is the one it talks to instead.

`huggingface_hub` reads its environment when it is imported, which is why this happens here and not in a fixture.
"""

import os
import sys
import tempfile
import warnings
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
# What torch's compiler keeps on disk may be of another run, made for a CPU with wider vectors: it does not look at
# ATEN_CPU_CAPABILITY, and half of a buffer is then left as it was.
_graphs = tempfile.TemporaryDirectory(prefix="sedialect-graphs-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _graphs.name
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


APP = ("test_app", "test_app_browser", "test_app_line")  # they share the running app
# What takes longest begins first, so that no worker is left with it at the end.
LONGEST = (*APP, "test_demo", "test_app_measured", "test_watching", "test_bench_quality", "test_compatibility")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under parallel workers, the longest files first."""
    if workers:
        items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Parallel workers take whole files, whose fixtures are then made once, and one of them all files of the app."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            stem = Path(nodeid.partition("::")[0]).stem
            return APP[0] if stem in APP else stem

    config.option.loadscopereorder = False
    return Files(config, log)


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


@pytest.fixture
def no_kernel_fails() -> Iterator[None]:
    """What something else had to stand in for would make these tests say nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the (Triton kernel|FP8 product)")
        yield


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
