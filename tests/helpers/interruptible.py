"""Processes that Ctrl-C reaches, however the tests were started: background jobs of a shell ignore it, and children inherit
that."""

import signal
import subprocess
from functools import partial
from typing import Any

PATIENCE = 900.0  # seconds until a test gives up waiting for a process


def start(command: list[str], **options: Any) -> subprocess.Popen:
    """Start a command whose errors are piped, with the default reaction to SIGINT."""
    react = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=react, **options)
