"""Where what was measured or fitted on this machine is kept."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of ours beside the Hub's cache: in HF_HOME, or else in XDG_CACHE_HOME/huggingface. It may be missing."""
    general = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("HF_HOME") or Path(general) / "huggingface")
    return home.expanduser() / "sedialect" / name
