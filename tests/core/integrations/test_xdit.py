"""A saved folder in xDiT's Wan, its sequence split over two processes. Needs `pip install --no-deps xfuser yunchang distvae
einops`; skipped without."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from interruptible import PATIENCE

SCRIPT = Path(__file__).parents[2] / "helpers" / "split_xdit.py"
NEEDED = ("xfuser", "yunchang", "distvae", "einops")
missing = [name for name in NEEDED if find_spec(name) is None]


@pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")
def test_a_saved_folder_in_xdit_computes_what_diffusers_does(tmp_path):
    command = [sys.executable, "-P", str(SCRIPT), str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"}, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert set(results) == {"plain", "default", "quality"}
        for alone, together in results.values():
            assert torch.equal(alone, together)
