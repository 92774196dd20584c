"""The logic of the video comparer (web/js), with Node's own test runner."""

import os
import subprocess
from pathlib import Path

import pytest
from browser import node

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "tests" / "js").glob("*.test.mjs"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name.removesuffix(".test.mjs"))
def test_script(script):
    done = subprocess.run(
        [node(), "--test", str(script)], capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "web" / "js").glob("*.js")), ids=lambda path: path.name)
def test_modules_stand_alone(script):
    """No build step and no network: a module imports its neighbours, and nothing else by a fixed address."""
    text = script.read_text(encoding="utf-8")
    imports = [line for line in text.splitlines() if line.startswith(("import ", "export ")) and " from " in line]
    assert all('from "./' in line for line in imports), imports
    assert "https://" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert len(text.splitlines()) <= 400
