"""The ComfyUI that the nodes need, checked before anything of it is imported."""

from ..sedialect_core.errors import ModelError

NEEDED = (0, 29)


def check_comfyui() -> None:
    """Raises ModelError where ComfyUI is too old: its quantized layers cannot take formats of others yet."""
    from comfyui_version import __version__

    parts = tuple(int(part) for part in __version__.split(".")[:2])
    if parts < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise ModelError(f"SeDialect needs ComfyUI {needed} or newer, and this is {__version__}; update ComfyUI")
