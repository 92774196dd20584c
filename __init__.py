"""sedialect: one folder with two front doors, `import sedialect` and ComfyUI's custom_nodes/ loader.

Both open lazily: ComfyUI executes this file under a name made from its path, pytest under `__init__` with no package
at all, so nothing may be imported relatively while it is executed. The one exception is the name `sedialect`: a plain
`import sedialect` promises `pipe.enable_sedialect()`, so it asks to be called when diffusers is imported.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sedialect_core import (
        CalibrationCache,
        Dialect,
        EncodedTensor,
        Formatbook,
        GenerateVideos,
        Plan,
        Request,
        SeDialectConfig,
        SeDialectError,
        SeDialectLinear,
        Seen,
        TokenLayout,
        VideoBatch,
        calibrate,
        enable_context_parallel,
        encode,
        fit_formatbook,
        quantize_model,
        watch_function,
    )

__version__ = "0.1.0"
__all__ = [
    "CalibrationCache",
    "Dialect",
    "EncodedTensor",
    "Formatbook",
    "GenerateVideos",
    "Plan",
    "Request",
    "SeDialectConfig",
    "SeDialectError",
    "SeDialectLinear",
    "Seen",
    "TokenLayout",
    "VideoBatch",
    "calibrate",
    "enable_context_parallel",
    "encode",
    "fit_formatbook",
    "quantize_model",
    "watch_function",
]

WEB_DIRECTORY = "./web"  # served by ComfyUI: js/ holds the player, docs/ the help of each node


async def comfy_entrypoint() -> object:
    """ComfyUI calls this once; the only way into nodes/, so that `import sedialect` never needs ComfyUI."""
    from .nodes.versions import check_comfyui

    check_comfyui()
    from .nodes.extension import SeDialectExtension

    return SeDialectExtension()


def __getattr__(name: str) -> object:
    if name in __all__:
        from . import sedialect_core

        return getattr(sedialect_core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if __name__ == "sedialect":
    from .sedialect_core.integrations.registration import register_when_imported

    register_when_imported()
