"""Chromium and Node.js for the tests that need them, and what becomes of such a test where they are missing.

Missing, the test is skipped; with SEDIALECT_REQUIRE_BROWSER=1, as in continuous integration, it fails.
"""

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
NODE = 20  # the oldest release of Node.js whose test runner does


def needed(module: str, package: str) -> ModuleType:
    """A module of the development extra, or the end of the test file: skipped, or failed where browsers are required."""
    if required():
        return importlib.import_module(module)
    return pytest.importorskip(module, reason=f"no {module}: pip install {package}")


def required() -> bool:
    """Whether browser tests must run."""
    return os.environ.get("SEDIALECT_REQUIRE_BROWSER", "") not in ("", "0")


def missing(what: str) -> None:
    """Skip the test, or fail it where browsers are required."""
    if required():
        pytest.fail(f"{what}; SEDIALECT_REQUIRE_BROWSER is set, so that this test may not be skipped", pytrace=False)
    pytest.skip(what)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium: the system's, else the one that `playwright install chromium` put down."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        own = driver.chromium.executable_path
        path = next(filter(None, map(shutil.which, PROGRAMS)), own if os.path.exists(own) else None)
        if path is None:
            missing("no Chromium: apt-get install chromium, or playwright install chromium")
        started = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


def node() -> str:
    """The path of a Node.js that is new enough: the system's, else the one that Playwright runs on."""
    candidates = [shutil.which("node"), bundled_node()]
    for path in filter(None, candidates):
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        if int(shown.removeprefix("v").split(".")[0]) >= NODE:
            return path
    missing(f"no Node.js of version {NODE} or newer: apt-get install nodejs, or pip install playwright")
    raise AssertionError("missing() raises")


def bundled_node() -> str | None:
    """Playwright's wheel holds a Node.js of its own."""
    try:
        import playwright
    except ModuleNotFoundError:
        return None
    return shutil.which("node", path=str(Path(playwright.__file__).parent / "driver"))
