"""The pipeline that a job is about: loaded, its LoRA fused, its outliers planted; and the sizes of its layers' inputs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...sedialect_core import demo
from ...sedialect_core.calibration.prompts import SELF, requests_of
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError, first_line
from ...sedialect_core.inspection.denoisers import denoisers
from ...sedialect_core.plan.rules import make_plan
from ...sedialect_core.progress import shown_bar
from ...sedialect_core.video.compute_dtype import DtypeChoice
from ...sedialect_core.video.sampling import load_pipeline
from ..outliers import plant_pipeline
from ..smoothing import Sizes, measuring_sizes
from .job import Job
from .measuring import sample_batch

PROMPTS = 2  # by which inputs are measured: their sizes hardly depend on what is shown


def pipeline_of(job: Job) -> Any:
    """The job's pipeline in its dtype.

    Raises:
        InputError: there is no such pipeline or LoRA.
        ModelError: outliers are asked for, and cannot be planted.
    """
    with shown_bar("loading the model"):
        pipe = load_pipeline(job.model, DtypeChoice(getattr(torch, job.dtype), job.dtype_reason), job.device)
    if job.fast:
        demo.use_few_steps(pipe)
    if job.lora is not None:
        _fuse(pipe, job.lora)
    plant_pipeline(denoisers(pipe), job.planted)
    return pipe


def input_sizes(pipe: Any, job: Job) -> Mapping[str, Sizes]:
    """Root mean squares of what the layers read, by component and layer, on calibration prompts at the job's settings."""
    models = denoisers(pipe)
    layers = {name: make_plan(model, SeDialectConfig()).quantized for name, model in models.items()}
    wanted = [replace(job.requests[0], prompt=one.prompt, seed=one.seed) for one in requests_of(pipe, SELF)[:PROMPTS]]
    with measuring_sizes(models, layers) as sizes:
        sample_batch(pipe, wanted, decode=False)
    return sizes


def _fuse(pipe: Any, name: str) -> None:
    path = Path(name)
    place = {"weight_name": path.name} if path.is_file() else {}
    try:
        pipe.load_lora_weights(str(path.parent) if place else name, **place)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot fuse the LoRA {name!r}: {first_line(error)}") from error
