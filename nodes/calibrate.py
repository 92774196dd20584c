"""MODEL and conditioning in, what the model's layers read out."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..sedialect_core.calibration.prompts import GLANCE_STEPS
from ..sedialect_core.storage.atomic import check_writable
from .comfy import calibration as comfy_calibration
from .progress import Progress
from .saving import folder_problem
from .sockets import CATEGORY, CalibrationSocket

FOLDER = "sedialect_calibrations"  # in ComfyUI's output folder
SEED, STEPS, CFG = 5000, 20, 5.0
EVERY = 2
FIXED = getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True)


class SeDialectCalibrate(io.ComfyNode):
    """Samples videos with a 16-bit model, and keeps what its linear layers read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SeDialectCalibrate",
            display_name="SeDialect Calibrate",
            category=CATEGORY,
            description="Samples videos with the 16-bit model and collects statistics of its layers' inputs, so that "
            "SeDialect Quantize can round weights for the smallest output error. Takes as long as those videos; "
            "the result is kept in the output folder.",
            search_aliases=["calibration", "GPTQ", "error compensation"],
            inputs=[
                io.Model.Input("model", tooltip="The same 16-bit video model as for SeDialect Quantize."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompts, as different as they can be: join several with Conditioning (Combine); each is "
                    "sampled by itself.",
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty video; a smaller size than that of your videos is usually good enough."
                ),
                io.Int.Input(
                    "seed",
                    default=SEED,
                    min=0,
                    max=2**53,
                    optional=True,
                    control_after_generate=FIXED,  # else the frontend takes another after each run, which calibrates anew
                    tooltip="Seed of the first video's noise.",
                ),
                io.Int.Input("steps", default=STEPS, min=1, max=1000, optional=True, tooltip="Sampling steps of a video."),
                io.Float.Input(
                    "cfg",
                    default=CFG,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Guidance scale that you will use with the model.",
                ),
                io.Int.Input(
                    "every",
                    default=EVERY,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="Statistics are collected at every N-th sampling step.",
                ),
                io.Boolean.Input(
                    "glance",
                    default=False,
                    optional=True,
                    tooltip=f"Seconds in place of minutes: only the first prompt is sampled, in at most {GLANCE_STEPS} "
                    "steps, and SeDialect Quantize only equalizes channels by what is read there; weights are rounded to "
                    "nearest.",
                ),
            ],
            outputs=[CalibrationSocket.Output(display_name="calibration", tooltip="For SeDialect Quantize.")],
        )

    @classmethod
    def validate_inputs(cls, glance: bool | None = None) -> bool | str:
        """Whether the result can be kept, before anything runs. Of one input, for ComfyUI tells an error once for each."""
        return folder_problem(FOLDER) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int = SEED,
        steps: int = STEPS,
        cfg: float = CFG,
        every: int = EVERY,
        glance: bool = False,
    ) -> io.NodeOutput:
        """Sample, prompt by prompt; a cancelled run goes on where it was saved."""
        folder = Path(folder_paths.get_output_directory()) / FOLDER
        check_writable(folder)
        sampling = comfy_calibration.Sampling(positive, negative, latent_image, seed, steps, cfg, every)
        if glance:
            sampling = sampling.glance()
        with Progress("calibrating") as progress:
            return io.NodeOutput(comfy_calibration.calibrate(model, sampling, folder, progress))
