"""The entry point by which vLLM finds us, in every process that it starts: group `vllm.general_plugins`, name `sedialect`.

vLLM-Omni lets others register a quantization method. It has no way to be told about a model before its weights are read,
which is when our files are looked into: so its loader is extended by one call after it has made the classes.
"""

import logging
from functools import wraps
from importlib.util import find_spec
from types import ModuleType
from typing import Any

METHOD = "sedialect"
LOADER = "vllm_omni.diffusion.model_loader.diffusers_loader"
LEAST = (0, 30)  # of vLLM-Omni: the first that is tested
MARK = "_sedialect_serves"
logger = logging.getLogger("sedialect")


def register() -> None:
    """Register `sedialect` with vLLM and vLLM-Omni. Calling it again changes nothing.

    Where vLLM-Omni is missing or too old nothing is registered, and the log says why: an error would keep vLLM from serving
    other models.
    """
    if (problem := refusal()) is not None:
        logger.warning("%s", problem)
        return
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm_omni.quantization import register_quantization_override
    from wrapt import register_post_import_hook

    from .linear_method import SeDialectServed

    register_quantization_config(METHOD)(SeDialectServed)
    register_quantization_override(METHOD, SeDialectServed.of_keywords)
    register_post_import_hook(extend_loader, LOADER)


def refusal() -> str | None:
    """Why nothing can be registered; None where it can."""
    if find_spec("vllm_omni") is None:
        return "vLLM-Omni is not installed, so vLLM does not know sedialect's folders; pip install 'sedialect[vllm]'"
    version = installed_version()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < LEAST:
        least = ".".join(map(str, LEAST))
        return (
            f"vLLM-Omni {version} does not know sedialect's folders, being older than {least}; pip install 'sedialect[vllm]'"
        )
    return None


def installed_version() -> str:
    """That of vLLM-Omni."""
    from ..environment import package_version

    return package_version("vllm-omni") or ""


def extend_loader(module: ModuleType) -> None:
    """Have vLLM-Omni's loader call `serve` once it has made a pipeline.

    Raises:
        ModelError: it has no such loader.
    """
    from ..errors import ModelError

    loader = getattr(module, "DiffusersPipelineLoader", None)
    needed = ("_init_from_load_format", "_get_weight_sources", "_prepare_weights")
    missing = [name for name in needed if not callable(getattr(loader, name, None))]
    if loader is None or missing:
        raise ModelError(
            f"vLLM-Omni {installed_version()} loads models in another way ({module.__name__} lacks "
            f"{(missing or ['its loader'])[0]}); use a version that docs/scale.md names"
        )
    make = loader._init_from_load_format
    if getattr(make, MARK, False):
        return

    @wraps(make)
    def making(self: Any, *args: Any, **kwargs: Any) -> Any:
        from .serving import serve

        pipeline = make(self, *args, **kwargs)
        serve(pipeline, self)
        return pipeline

    setattr(making, MARK, True)
    loader._init_from_load_format = making
