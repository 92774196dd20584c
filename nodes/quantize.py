"""MODEL in, quantized MODEL out."""

from typing import Any

from comfy_api.latest import io, ui

from ..sedialect_core.calibration.cache import CalibrationCache
from ..sedialect_core.formatbook import Formatbook
from .comfy import model as comfy_model
from .comfy.attention_alone import attention_alone
from .progress import Progress
from .settings import AUTO, asked, problem, setting_inputs
from .sockets import CATEGORY, SHOWS_TEXT, CalibrationSocket, FormatbookSocket

ALIASES = [
    "4-bit",
    "quantize 4-bit",
    "W4A4",
    "W4A8",
    "W4A16",
    "FP4",
    "nvfp4",
    "mxfp4",
    "int4",
    "int8",
    "fp8",
    "gguf",
    "quantize video model",
    "quantize Wan",
    "compress model",
    "low VRAM",
    "SemanticDialect",
]  # what people type who look for such a node

SOURCES = ("refuse", "decode")


class SeDialectQuantize(io.ComfyNode):
    """Encodes the linear layers of a video model, and leaves the model that it was given as it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SeDialectQuantize",
            display_name="SeDialect Quantize",
            category=CATEGORY,
            description="Quantizes a video model to 4-bit weights and 4-bit activations. The model that is connected "
            "stays as it is, so that both can be compared in one workflow. LoRAs may stand before this node or behind it.",
            search_aliases=ALIASES,
            **SHOWS_TEXT,
            inputs=[
                io.Model.Input("model", tooltip="A 16-bit video model: Wan, HunyuanVideo, LTX, Cosmos, CogVideoX, ..."),
                *setting_inputs(),
                FormatbookSocket.Input(
                    "formatbook", optional=True, tooltip="The set of number formats; the built-in one if none is connected."
                ),
                CalibrationSocket.Input(
                    "calibration",
                    optional=True,
                    tooltip="From SeDialect Calibrate: weights are rounded for the smallest error of each layer's output.",
                ),
                io.Combo.Input(
                    "quantized_source",
                    options=list(SOURCES),
                    default=SOURCES[0],
                    optional=True,
                    advanced=True,
                    tooltip="A MODEL whose weights are FP8, NVFP4, INT8 or GGUF: refuse it, or decode them to 16 bit and "
                    "quantize those. They are then rounded twice; a 16-bit file gives a better result.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The quantized model.")],
        )

    @classmethod
    def validate_inputs(cls, skip: str = "") -> bool | str:
        """Look at patterns before anything runs. Of one input alone, for ComfyUI tells an error once for each."""
        return problem({}, skip) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        preset: str = AUTO,
        skip: str = "",
        formatbook: Formatbook | None = None,
        calibration: CalibrationCache | None = None,
        quantized_source: str = SOURCES[0],
        **settings: Any,
    ) -> io.NodeOutput:
        """Quantize layer by layer; the run may be cancelled between two of them."""
        device = comfy_model.runs_on(model)
        config, notes = asked(preset, settings, skip, device)
        if config.attention_alone:
            return io.NodeOutput(attention_alone(model, config), ui=ui.PreviewText("\n".join(notes) or config.label))
        decode = quantized_source == SOURCES[1]
        with Progress("quantizing") as progress:
            made = comfy_model.quantize(model, config, formatbook, progress, calibration, notes, decode)
        return io.NodeOutput(made, ui=ui.PreviewText(comfy_model.summary(made)))
