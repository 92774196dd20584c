"""A tiny Wan on disk, quantized, made once a file."""

from pathlib import Path

import pytest
from checkpoint_files import load

from sedialect import SeDialectConfig


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory) -> Path:
    """The tiny Wan, quantized."""
    folder = tmp_path_factory.mktemp("saved")
    load(plain, quantization_config=SeDialectConfig()).save_pretrained(folder)
    return folder
