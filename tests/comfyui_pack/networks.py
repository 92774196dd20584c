"""Networks of ComfyUI's that are made without a file."""

from contextlib import contextmanager

import comfy.memory_management


@contextmanager
def with_weights():
    """Networks made within have weights: under dynamic VRAM ComfyUI leaves them out until a file is loaded."""
    dynamic, comfy.memory_management.aimdo_enabled = comfy.memory_management.aimdo_enabled, False
    try:
        yield
    finally:
        comfy.memory_management.aimdo_enabled = dynamic
