"""A tiny Wan on disk in 16 bit, made once a file: what checkpoints are made of."""

from pathlib import Path

import pytest
from checkpoint_files import WAN
from tiny_models import TINY


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A tiny 16-bit Wan on disk."""
    folder = tmp_path_factory.mktemp("plain")
    TINY[WAN]()[0].save_pretrained(folder)
    return folder
