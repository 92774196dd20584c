"""MODEL in, quantized MODEL out."""

from typing import Any

from comfy_api.latest import io

from ..sedialect_core.calibration.cache import CalibrationCache
from ..sedialect_core.formatbook import Formatbook
from .comfy import model as comfy_model
from .comfy.attention_alone import attention_alone
from .progress import Progress
from .settings import config_from, setting_inputs
from .sockets import CATEGORY, CalibrationSocket, FormatbookSocket

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
            search_aliases=["4-bit", "W4A4", "quantize video model", "SemanticDialect", "FP4"],
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
    def execute(
        cls,
        model: Any,
        preset: str = "default",
        skip: str = "",
        formatbook: Formatbook | None = None,
        calibration: CalibrationCache | None = None,
        quantized_source: str = SOURCES[0],
        **settings: Any,
    ) -> io.NodeOutput:
        """Quantize layer by layer; the run may be cancelled between two of them."""
        config = config_from(preset, settings, skip)
        if config.attention_alone:
            return io.NodeOutput(attention_alone(model, config))
        decode = quantized_source == SOURCES[1]
        with Progress("quantizing") as progress:
            return io.NodeOutput(comfy_model.quantize(model, config, formatbook, progress, calibration, decode))
