"""A script in several processes that compute together."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from interruptible import PATIENCE


def run_together(script: str, argument: str, folder: Path, ranks: int = 2) -> list[Any]:
    """What each process has saved as `folder`/rank.pt; the script is told rank, argument, folder and how many they are."""
    command = [sys.executable, "-P", "-c", script]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), argument, str(folder), str(ranks)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
