"""`import sedialect` makes `pipe.enable_sedialect()` exist and quantized models loadable, and imports no diffusers for it.

diffusers is lazy itself: importing it does not import its pipelines, which cost seconds. So nothing is imported here; wrapt
calls us back when the module that defines pipelines is executed, or at once when it already was.
"""

import sys
from functools import wraps
from types import ModuleType
from typing import Any

PIPELINE_MODULES = ("diffusers.pipelines.pipeline_utils", "diffusers.modular_pipelines.modular_pipeline")
QUANTIZER_MODULES = ("diffusers.quantizers.auto", "transformers.quantizers.auto")
PEFT_MODULES = ("peft.tuners.lora.layer", "peft.tuners.lora.dora", "peft.tuners.tuners_utils")


def register_when_imported() -> None:
    """Do all of this as soon as the classes in question exist. Calling it again changes nothing."""
    from wrapt import register_post_import_hook

    for name in PIPELINE_MODULES:
        register_post_import_hook(_extend_pipelines, name)
    for name in QUANTIZER_MODULES:
        register_post_import_hook(_add_quantizer, name)
    for name in PEFT_MODULES:
        register_post_import_hook(_extend_peft, name)


def register() -> None:
    """Extend diffusers now, importing it where necessary."""
    from importlib import import_module

    _add_quantizer(import_module(QUANTIZER_MODULES[0]))
    for name in PIPELINE_MODULES:
        _extend_pipelines(sys.modules.get(name) or import_module(name))


def _extend_pipelines(module: ModuleType) -> None:
    from .pipelines import disable_sedialect, enable_sedialect, sedialect_report

    for name in ("DiffusionPipeline", "ModularPipeline"):
        pipeline = getattr(module, name, None)
        if pipeline is not None:
            for method in (enable_sedialect, disable_sedialect, sedialect_report):
                setattr(pipeline, method.__name__, method)
    _follow_pipelines(module)


def _follow_pipelines(module: ModuleType) -> None:
    """Have quantized models learn whose scheduler counts their steps, also those that were loaded before their pipeline."""
    pipeline = getattr(module, "DiffusionPipeline", None)
    if pipeline is None or hasattr(pipeline.register_modules, "__wrapped__"):
        return
    register_modules = pipeline.register_modules

    @wraps(register_modules)
    def registering(self: Any, **parts: Any) -> None:
        from .semantics import follow_all

        register_modules(self, **parts)
        follow_all(self, parts.values())

    pipeline.register_modules = registering


def _add_quantizer(module: ModuleType) -> None:
    """An entry in the tables of both libraries, as other quantizers have it: diffusers has no way to register, and the one
    of transformers asks for a subclass of its own config."""
    from ..config import SeDialectConfig, SeDialectMethod

    name = SeDialectMethod.SEDIALECT.value
    module.AUTO_QUANTIZATION_CONFIG_MAPPING[name] = SeDialectConfig
    module.AUTO_QUANTIZER_MAPPING[name] = (
        _make_quantizer if module.__name__.startswith("diffusers") else _make_text_quantizer
    )


def _make_quantizer(*args: Any, **kwargs: Any) -> Any:
    """Stands in for the class, which is imported when the first model needs it."""
    from .quantizer import SeDialectQuantizer

    return SeDialectQuantizer(*args, **kwargs)


def _make_text_quantizer(*args: Any, **kwargs: Any) -> Any:
    """The same for models of transformers."""
    from .text_quantizer import SeDialectTextQuantizer

    return SeDialectTextQuantizer(*args, **kwargs)


def _extend_peft(module: ModuleType) -> None:
    from .adapters import extend_tuners
    from .lora import extend_peft

    if hasattr(module, "BaseTuner"):
        extend_tuners(module)
    extend_peft(module)
