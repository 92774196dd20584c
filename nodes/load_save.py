"""Quantized models from and to ComfyUI's model folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..sedialect_core.config import SeDialectConfig
from ..sedialect_core.errors import InputError, ModelError, SeDialectError
from ..sedialect_core.plan.ignored import ignored_settings
from .comfy import model as comfy_model
from .comfy.checkpoints import Checkpoint, check_complete, check_header, config_in, read_checkpoint, write_file, write_folder
from .download import download_model
from .progress import Progress
from .saving import check_prefix, place_for
from .settings import LIVE_SHOWN, inputs_of, named, with_settings
from .sockets import CATEGORY, SHOWS_TEXT

FOLDER = "diffusion_models"
FROM_HUB = "(from the Hub repository below)"
NAMES = ("ComfyUI", "diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"  # in a folder of diffusers
AS_SAVED = "as saved"
ALIASES = [
    "load quantized model",
    "load 4-bit",
    "4-bit loader",
    "load nvfp4",
    "load int4",
    "load fp8",
    "gguf loader",
    "unet loader",
    "diffusion model loader",
    "SemanticDialect",
]  # what people type who look for such a node


class SeDialectLoad(io.ComfyNode):
    """Loads a quantized file, or fetches it first."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SeDialectLoad",
            display_name="SeDialect Load",
            category=CATEGORY,
            description="Loads a model that SeDialect has quantized, from the folder diffusion_models or from the Hugging "
            "Face Hub. Files of diffusers and of ComfyUI both load.",
            search_aliases=ALIASES,
            **SHOWS_TEXT,
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[FROM_HUB, *folder_paths.get_filename_list(FOLDER)],
                    tooltip="A file in models/diffusion_models or output/diffusion_models.",
                ),
                io.String.Input(
                    "repository",
                    default="",
                    optional=True,
                    tooltip="A model repository on the Hugging Face Hub, owner/name; downloaded once into diffusion_models.",
                ),
                io.String.Input(
                    "revision", default="", optional=True, advanced=True, tooltip="Branch, tag or commit of the repository."
                ),
                *(made for entry in LIVE_SHOWN for made in inputs_of(entry, AS_SAVED, hidden=True)),
                io.String.Input(
                    "path",
                    optional=True,
                    force_input=True,
                    tooltip="From SeDialect Save: what it has just written is loaded, whatever file says.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The quantized model.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Look at the header before anything runs, unless another node gives the file. Of one input alone, for ComfyUI
        tells an error once for each."""
        if file is None or file == FROM_HUB:
            return True
        return file_problem(FOLDER, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str, repository: str = "", revision: str = "", **tokens: Any) -> Any:
        """A file that was written anew is another input."""
        path = folder_paths.get_full_path(FOLDER, file) if file != FROM_HUB else None
        status = Path(path).stat() if path else None
        return [file, repository, revision, tokens, *([status.st_mtime_ns, status.st_size] if status else [])]

    @classmethod
    def execute(
        cls, file: str, repository: str = "", revision: str = "", path: str | None = None, **tokens: Any
    ) -> io.NodeOutput:
        """Load it; `tokens` change what it does with its tokens."""
        with_settings(SeDialectConfig(), tokens, LIVE_SHOWN)  # what was typed, before anything is read
        if path is None and file == FROM_HUB and not repository.strip():
            raise InputError("choose a file, or write the repository to load from, as in owner/name")
        with Progress("loading") as progress:
            if path is not None:
                path = _inside(path)
            elif file == FROM_HUB:
                folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
                wanted = (repository.strip(), revision.strip() or None)
                progress.on_phase("downloading")
                path = str(download_model(*wanted, folder, progress, comfy_model.interruptible))
                progress.on_phase("loading")
            else:
                path = folder_paths.get_full_path_or_raise(FOLDER, file)
            made = load_model(path, tokens)
            known = comfy_model.quantized(made)
            idle = ignored_settings(known.plan.config, named(tokens, LIVE_SHOWN))
            return io.NodeOutput(made, ui=ui.PreviewText("\n".join([comfy_model.summary(made), *idle])))


def file_problem(folder: str, file: str) -> str:
    """Why a file of a folder of ComfyUI's cannot be loaded, by its header; empty where it can."""
    path = folder_paths.get_full_path(folder, file)
    if path is None:
        return f"there is no {file!r} in the folder {folder}; choose another file, or press R to read the folder again"
    try:
        check_header(path)
    except SeDialectError as error:
        return str(error)
    return ""


def _inside(path: str) -> str:
    """The weights at a path that another node gives: in ComfyUI's folders alone, for a shared workflow may name any.

    Raises:
        InputError: it leads elsewhere, or nothing is there.
    """
    place = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    roots = map(os.path.realpath, [folder_paths.get_output_directory(), *folder_paths.get_folder_paths(FOLDER)])
    if not any(Path(os.path.realpath(place)).is_relative_to(root) for root in roots):
        raise InputError(
            f"path is {path}, which is not in ComfyUI's output folder or {FOLDER}; connect SeDialect Save to it"
        )
    if not place.is_file():
        raise InputError(f"there is no {place}; connect SeDialect Save to path, or choose a file")
    return str(place)


def load_model(path: str, tokens: Mapping[str, Any], disable_dynamic: bool = False) -> Any:
    """The MODEL in a file; ComfyUI calls this again where it needs a fresh copy."""
    checkpoint = read_checkpoint(path, comfy_model.read_tensors)
    config = with_settings(config_in(checkpoint.settings, checkpoint.record), tokens, LIVE_SHOWN)
    return comfy_model.load(checkpoint, config, (load_model, (path, tokens)), disable_dynamic)


class SeDialectSave(io.ComfyNode):
    """Writes a quantized model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SeDialectSave",
            display_name="SeDialect Save",
            category=CATEGORY,
            description="Saves a quantized model. LoRAs on it are not saved: they stay beside the quantized weights. To "
            "bake one in, save the 16-bit MODEL with the LoRA first, and quantize that.",
            search_aliases=["save quantized model", "save 4-bit", "checkpoint save", "export diffusers", "SemanticDialect"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="From SeDialect Quantize or SeDialect Load."),
                io.String.Input(
                    "filename_prefix",
                    default="diffusion_models/sedialect",
                    tooltip="In the output folder. Files in output/diffusion_models can be chosen in SeDialect Load.",
                ),
                io.Combo.Input(
                    "names",
                    options=list(NAMES),
                    default=NAMES[0],
                    tooltip="ComfyUI: one file with ComfyUI's names. diffusers: a folder for from_pretrained(), Wan only. "
                    "SeDialect Load reads both.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where it was saved.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Whether the file can be written, before the model is quantized that is to stand in it."""
        return check_prefix(filename_prefix)

    @classmethod
    def execute(cls, model: Any, filename_prefix: str, names: str) -> io.NodeOutput:
        """Save it."""
        known = comfy_model.quantized(model)
        if known is None:
            raise ModelError("this MODEL is not quantized by SeDialect; connect SeDialect Quantize, or use Save Model")
        checkpoint = Checkpoint(comfy_model.tensors(model), known.record, known.settings)
        check_complete(checkpoint)
        folder, name, _ = place_for(filename_prefix, sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
        with Progress("writing"):
            if names == NAMES[0]:
                path = write_file(folder / f"{name}.safetensors", checkpoint)
            else:
                path = write_folder(folder / name, checkpoint, known.plan.config)
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved {path}"))
