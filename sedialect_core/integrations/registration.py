"""`import sedialect` makes `pipe.enable_sedialect()` exist, without importing diffusers for those who do not use it.

diffusers is lazy itself: importing it does not import its pipelines, which cost seconds. So nothing is imported here; wrapt
calls us back when the module that defines pipelines is executed, or at once when it already was.
"""

import sys
from types import ModuleType

PIPELINE_MODULES = ("diffusers.pipelines.pipeline_utils", "diffusers.modular_pipelines.modular_pipeline")


def register_when_imported() -> None:
    """Put `SeDialectMixin` on diffusers' pipeline classes as soon as they exist. Calling it again changes nothing."""
    from wrapt import register_post_import_hook

    for name in PIPELINE_MODULES:
        register_post_import_hook(_extend_pipelines, name)


def register() -> None:
    """Put `SeDialectMixin` on diffusers' pipeline classes now, importing diffusers where necessary."""
    from importlib import import_module

    for name in PIPELINE_MODULES:
        _extend_pipelines(sys.modules.get(name) or import_module(name))


def _extend_pipelines(module: ModuleType) -> None:
    from .pipelines import SeDialectMixin

    for name in ("DiffusionPipeline", "ModularPipeline"):
        pipeline = getattr(module, name, None)
        if pipeline is not None:
            for method in SeDialectMixin.PUBLIC:
                setattr(pipeline, method, getattr(SeDialectMixin, method))
