"""What a quantized MODEL is: layers, bits, memory, kernels, how often each dialect is used; and what a run showed."""

from typing import Any

from comfy_api.latest import io, ui

from ..sedialect_core.charts.dialects import Use
from ..sedialect_core.errors import ModelError
from .comfy import model as comfy_model
from .comfy.attention_alone import alone_report
from .pictures import chart, saliency
from .progress import Progress
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
            "that stays in 16 bit; a chart of the dialects that its weights chose; and a map of the salient tokens.",
            search_aliases=["quantization report", "memory", "bits", "saliency map"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="From SeDialect Quantize or SeDialect Load."),
                io.Latent.Input(
                    "samples",
                    optional=True,
                    tooltip="From the sampler that runs the model: the report then waits for it and shows its saliency map.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="dialects", tooltip="Every dialect, and how many blocks of weights chose it."),
                io.Image.Output(display_name="saliency", tooltip="Which tokens of the last run stand out, frame by frame."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, samples: Any = None) -> io.NodeOutput:
        """Make it; `samples` only say that a run has ended."""
        known = comfy_model.quantized(model)
        if known is None and (attention := alone_report(model)) is not None:
            empty = saliency(None, "No layer is quantized: only attention runs in fewer bits.")
            return io.NodeOutput(str(attention), empty, empty, ui=ui.PreviewText(str(attention)))
        if known is None:
            raise ModelError("this MODEL is not quantized by SeDialect; connect SeDialect Quantize or SeDialect Load")
        with Progress("reading the model"):
            seen = comfy_model.run_seen(model, known)
            text = "\n".join([str(comfy_model.report(model, known)), *seen.notes, *comfy_model.speed(model, known)])
            use = Use(comfy_model.dialect_use(model, known), f"the weights of this {known.plan.model}")
            pictures = (chart(known.record.formatbook, use), saliency(seen.values, seen.says))
        return io.NodeOutput(text, *pictures, ui=ui.PreviewText(text))
