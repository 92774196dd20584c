"""A script in two processes that compute together."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from interruptible import PATIENCE


def run_both(script: str, argument: str, folder: Path) -> list[Any]:
    """What each process has saved as `folder`/rank.pt; the script is told rank, argument and folder."""
    command = [sys.executable, "-P", "-c", script]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([*command, str(rank), argument, str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
