"""CLIP in, quantized CLIP out, and files of it: the text encoder, which is often larger than the quantized video model."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..sedialect_core.config import SeDialectConfig
from ..sedialect_core.errors import ModelError
from ..sedialect_core.formatbook import Formatbook
from ..sedialect_core.settings.table import BLOCK_SIZES
from .comfy import clip as comfy_clip
from .comfy.checkpoints import check_complete, read_checkpoint, write_file
from .comfy.model import read_tensors
from .load_save import file_problem
from .progress import Progress
from .saving import check_prefix, place_for
from .sockets import CATEGORY, SHOWS_TEXT, FormatbookSocket

FOLDER = "text_encoders"
NONE = "(none)"
NO_FILE = "(none yet: SeDialect Save CLIP writes them)"
# Of ComfyUI's types of CLIP, those of video models; a type decides how a prompt is put into tokens.
KINDS = ("wan", "ltxv", "hunyuan_video", "hunyuan_video_15", "cogvideox", "mochi", "cosmos", "kandinsky5", "sd3", "flux")


class SeDialectQuantizeCLIP(io.ComfyNode):
    """Encodes the weights of text encoders, and leaves the CLIP that it was given as it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SeDialectQuantizeCLIP",
            display_name="SeDialect Quantize CLIP",
            category=CATEGORY,
            description="Quantizes the weights of a text encoder to 4 bit; activations stay in 16 bit. The CLIP that is "
            "connected stays as it is. LoRAs may stand before this node or behind it.",
            search_aliases=["4-bit text encoder", "quantize T5", "UMT5", "SemanticDialect"],
            **SHOWS_TEXT,
            inputs=[
                io.Clip.Input("clip", tooltip="A 16-bit text encoder: UMT5, T5, CLIP, Llama, Qwen, Gemma …"),
                io.Combo.Input(
                    "block_size",
                    options=[str(size) for size in BLOCK_SIZES],
                    default=str(BLOCK_SIZES[0]),
                    optional=True,
                    tooltip="Numbers that share one dialect: 16 takes 4.5 bits a weight, 32 takes 4.25.",
                ),
                FormatbookSocket.Input(
                    "formatbook", optional=True, tooltip="The set of number formats; the built-in one if none is connected."
                ),
            ],
            outputs=[
                io.Clip.Output(tooltip="The quantized text encoder."),
                io.String.Output(display_name="report", tooltip="Layers, bits and memory, and why some stay in 16 bit."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, block_size: str = "16", formatbook: Formatbook | None = None) -> io.NodeOutput:
        """Quantize layer by layer; the run may be cancelled between two of them."""
        config = SeDialectConfig(block_size=int(block_size))
        with Progress("quantizing") as progress:
            made = comfy_clip.quantize_clip(clip, config, formatbook, progress)
            known = comfy_clip.quantized_clip(made)
            said = ui.PreviewText(comfy_clip.summary_clip(made))
            return io.NodeOutput(made, str(comfy_clip.report_clip(made, known)), ui=said)


class SeDialectLoadCLIP(io.ComfyNode):
    """Loads quantized text encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        files = folder_paths.get_filename_list(FOLDER)
        return io.Schema(
            node_id="SeDialectLoadCLIP",
            display_name="SeDialect Load CLIP",
            category=CATEGORY,
            description="Loads text encoders that SeDialect Save CLIP has written, from the folder text_encoders.",
            search_aliases=["load quantized text encoder", "clip loader", "SemanticDialect"],
            **SHOWS_TEXT,
            inputs=[
                io.Combo.Input("file", options=files or [NO_FILE], tooltip="A file in models/text_encoders or output/clip."),
                io.Combo.Input(
                    "type", options=list(KINDS), tooltip="The video model that the prompt is for, as in Load CLIP."
                ),
                io.Combo.Input(
                    "second_file",
                    options=[NONE, *files],
                    default=NONE,
                    optional=True,
                    tooltip="The second text encoder of models that have two, such as HunyuanVideo.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The quantized text encoder.")],
        )

    @classmethod
    def validate_inputs(cls, file: str = "") -> bool | str:
        """Look at the first file's header before anything runs; ComfyUI would tell each error once for each input taken."""
        return not file or file_problem(FOLDER, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str, type: str, second_file: str = NONE) -> Any:
        """A file that was written anew is another input."""
        found = [Path(folder_paths.get_full_path_or_raise(FOLDER, name)).stat() for name in _chosen(file, second_file)]
        return [file, type, second_file, *((status.st_mtime_ns, status.st_size) for status in found)]

    @classmethod
    def execute(cls, file: str, type: str, second_file: str = NONE) -> io.NodeOutput:
        """Load them."""
        paths = [folder_paths.get_full_path_or_raise(FOLDER, name) for name in _chosen(file, second_file)]
        with Progress("loading"):
            made = load_clip(paths, type)
        return io.NodeOutput(made, ui=ui.PreviewText(comfy_clip.summary_clip(made)))


def load_clip(paths: list[str], kind: str) -> Any:
    """The CLIP in files."""
    checkpoints = [read_checkpoint(path, read_tensors) for path in paths]
    embeddings = folder_paths.get_folder_paths("embeddings")
    return comfy_clip.load_clip(checkpoints, kind, (load_patcher, (paths, kind)), embeddings)


def load_patcher(paths: list[str], kind: str, disable_dynamic: bool = False) -> Any:
    """Its patcher alone; ComfyUI calls this where it needs a fresh copy."""
    return load_clip(paths, kind).patcher.clone(disable_dynamic=disable_dynamic)


def _chosen(file: str, second_file: str) -> list[str]:
    return [name for name in (file, second_file) if name and name != NONE]


class SeDialectSaveCLIP(io.ComfyNode):
    """Writes quantized text encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SeDialectSaveCLIP",
            display_name="SeDialect Save CLIP",
            category=CATEGORY,
            description="Saves quantized text encoders, one file each. LoRAs on them are not saved: they stay beside the "
            "quantized weights.",
            search_aliases=["save quantized text encoder", "SemanticDialect"],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="From SeDialect Quantize CLIP or SeDialect Load CLIP."),
                io.String.Input(
                    "filename_prefix",
                    default="clip/sedialect",
                    tooltip="In the output folder. Files in output/clip can be chosen in SeDialect Load CLIP.",
                ),
            ],
            outputs=[io.String.Output(display_name="paths", tooltip="Where they were saved, one a line.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Whether files can be written, before text encoders are quantized."""
        return check_prefix(filename_prefix)

    @classmethod
    def execute(cls, clip: Any, filename_prefix: str) -> io.NodeOutput:
        """Save them."""
        known = comfy_clip.quantized_clip(clip)
        if known is None:
            raise ModelError("this CLIP is not quantized by SeDialect; connect SeDialect Quantize CLIP, or use CLIPSave")
        written = []
        with Progress("writing"):
            for encoder, checkpoint in comfy_clip.checkpoints_of(clip, known).items():
                check_complete(checkpoint)
                prefix = f"{filename_prefix}_{encoder}" if encoder else filename_prefix
                folder, name, _ = place_for(prefix, sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
                written.append(str(write_file(folder / f"{name}.safetensors", checkpoint)))
        text = "\n".join(written)
        return io.NodeOutput(text, ui=ui.PreviewText(f"saved {text}"))
