"""As much of ComfyUI's public API as the nodes' schemas need, so that they can be looked at without ComfyUI.

`test_comfyui.py` runs the same nodes in the real one.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any


class Socket:
    """An input or output: its kind, id, and whatever else was said."""

    def __init__(self, kind: str, name: str | None = None, **said: Any) -> None:
        self.kind, self.id, self.said = kind, name, said


class Kind:
    """A type of sockets, as `io.Combo` is one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def Input(self, name: str, **said: Any) -> Socket:
        return Socket(self.kind, name, **said)

    def Output(self, name: str | None = None, **said: Any) -> Socket:
        return Socket(self.kind, name, **said)


class NodeOutput:
    def __init__(self, *values: Any, ui: Any = None) -> None:
        self.values, self.ui = values, ui


class ComfyNode:
    pass


class PreviewText:
    def __init__(self, value: str) -> None:
        self.value = value


class ComfyAPISync:
    def __init__(self) -> None:
        self.execution = SimpleNamespace(set_progress=lambda value, max_value: None)


def modules(base: Any) -> dict[str, ModuleType]:
    """Stand-ins by the names that the nodes import; `base` is ComfyUI's base folder."""
    io, ui, latest, api, paths = (ModuleType(name) for name in ("io", "ui", "comfy_api.latest", "comfy_api", "folder_paths"))
    for kind in (
        "Model",
        "Clip",
        "Combo",
        "String",
        "Float",
        "Boolean",
        "Int",
        "Image",
        "Video",
        "MultiType",
        "Conditioning",
        "Latent",
    ):
        setattr(io, kind, Kind(kind.upper()))
    io.Custom, io.ComfyNode, io.NodeOutput = Kind, ComfyNode, NodeOutput
    io.Schema = lambda **said: SimpleNamespace(**said)
    ui.PreviewText = PreviewText
    latest.io, latest.ui, latest.ComfyExtension, latest.ComfyAPISync = io, ui, object, ComfyAPISync
    api.latest = latest
    models = base / "models"
    paths.models_dir = str(models)
    known = {name: models / name for name in ("diffusion_models", "text_encoders")}
    paths.add_model_folder_path = lambda name, path: known.__setitem__(name, type(models)(path))

    def full_path(name: str, file: str) -> str | None:
        path = known[name] / file if name in known else None
        return str(path) if path is not None and path.is_file() else None

    def listed(name: str) -> list[str]:
        folder = known[name]
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    paths.get_full_path = paths.get_full_path_or_raise = full_path
    paths.get_filename_list = listed
    paths.get_folder_paths = lambda name: [str(known[name])]
    paths.get_output_directory = lambda: str(base / "output")

    def save_path(prefix: str, output: str, **size: int) -> tuple[str, str, int, str, str]:
        subfolder, _, name = prefix.rpartition("/")
        folder = base / "output" / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder), name, len(list(folder.iterdir())) + 1, subfolder, prefix

    paths.get_save_image_path = save_path
    version = ModuleType("comfyui_version")
    version.__version__ = "0.33.0"
    model = ModuleType("sedialect.nodes.comfy.model")  # the one import that needs ComfyUI itself
    model.quantized = lambda patcher: getattr(patcher, "known", None)
    model.runs_on = lambda patcher: "cpu"
    model.summary = lambda patcher: "summary"
    alone = ModuleType("sedialect.nodes.comfy.attention_alone")
    alone.attention_alone = lambda patcher, config: patcher
    alone.alone_report = lambda patcher: getattr(patcher, "alone", None)
    clip = ModuleType("sedialect.nodes.comfy.clip")
    clip.quantized_clip = lambda clip: getattr(clip, "known", None)
    model.read_tensors = None
    calibration = ModuleType("sedialect.nodes.comfy.calibration")
    text = ModuleType("sedialect.nodes.comfy.text")
    text.shown = []  # what a node's line has said
    text.show = text.shown.append
    return {
        "comfy_api": api,
        "comfy_api.latest": latest,
        "folder_paths": paths,
        "comfyui_version": version,
        "sedialect.nodes.comfy.model": model,
        "sedialect.nodes.comfy.attention_alone": alone,
        "sedialect.nodes.comfy.calibration": calibration,
        "sedialect.nodes.comfy.clip": clip,
        "sedialect.nodes.comfy.text": text,
    }


NODE_FILES = (
    "extension",
    "quantize",
    "load_save",
    "formatbook",
    "calibrate",
    "clip",
    "report",
    "compare",
    "settings",
    "saving",
    "sockets",
    "progress",
)


def forget() -> None:
    """Drop what was imported on top of the stand-ins."""
    for name in NODE_FILES:
        sys.modules.pop(f"sedialect.nodes.{name}", None)
    package = sys.modules.get("sedialect.nodes")
    for name in (*NODE_FILES, "comfy_model", "comfy_calibration", "comfy_text"):
        if package is not None and hasattr(package, name):
            delattr(package, name)
