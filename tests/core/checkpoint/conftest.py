"""A tiny Wan on disk, in 16 bit and quantized, made once a file."""

from pathlib import Path

import pytest
from checkpoint_files import WAN, load
from tiny_models import TINY

from sedialect import SeDialectConfig


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A tiny 16-bit Wan on disk."""
    folder = tmp_path_factory.mktemp("plain")
    TINY[WAN]()[0].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory) -> Path:
    """The same, quantized."""
    folder = tmp_path_factory.mktemp("saved")
    load(plain, quantization_config=SeDialectConfig()).save_pretrained(folder)
    return folder
