"""What a quantized MODEL is: layers, bits, memory, kernels, and how often each dialect is used."""

from typing import Any

from comfy_api.latest import io, ui

from ..sedialect_core.dialect_chart import Use
from ..sedialect_core.errors import ModelError
from . import comfy_model
from .pictures import chart
from .sockets import CATEGORY


class SeDialectReport(io.ComfyNode):
    """Shows the report in the node, and gives it as text and picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SeDialectReport",
            display_name="SeDialect Report",
            category=CATEGORY,
            description="Layers, effective bits, memory and kernels of a quantized model, with the reason for each layer "
            "that stays in 16 bit; and a chart of the dialects that its weights chose.",
            search_aliases=["quantization report", "memory", "bits"],
            is_output_node=True,
            inputs=[io.Model.Input("model", tooltip="From SeDialect Quantize or SeDialect Load.")],
            outputs=[
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="dialects", tooltip="Every dialect, and how many blocks of weights chose it."),
            ],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        """Make it."""
        known = comfy_model.quantized(model)
        if known is None:
            raise ModelError("this MODEL is not quantized by SeDialect; connect SeDialect Quantize or SeDialect Load")
        text = str(comfy_model.report(model, known))
        use = Use(comfy_model.dialect_use(model, known), f"the weights of this {known.plan.model}")
        return io.NodeOutput(text, chart(known.record.formatbook, use), ui=ui.PreviewText(text))
