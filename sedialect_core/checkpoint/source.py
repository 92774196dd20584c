"""Where the models to be quantized come from: a folder, or the Hub, from which only what is needed is fetched."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, shown
from ..inspection import is_transformer
from ..storage import hub
from ..storage.paths import expanded, is_file, is_folder
from ..storage.reading import read_bytes, read_object

WEIGHTS = "diffusion_pytorch_model"
MAX_TEXT = 1 << 20  # bytes of a card
AGAIN = "download it again"


@dataclass(frozen=True)
class Component:
    """One model to be quantized: where its files are, and its config.json. The model of a plain folder has no name."""

    name: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Source:
    """The models of a folder or repository, what pipeline they belong to, and its card; either may be unknown."""

    components: tuple[Component, ...]
    pipeline: str | None
    card: str | None


def find_source(model: str, component: str | None = None, variant: str | None = None) -> Source:
    """The video transformers of a pipeline, or the one model of a plain folder.

    Args:
        model: a folder, or a repository on the Hub.
        component: the only one wanted; all transformers where it is None.
        variant: of the weights, such as "fp16" in `diffusion_pytorch_model.fp16.safetensors`.

    Raises:
        InputError: there is no such model, or its weights are no safetensors files.
    """
    place = Place(model)
    index = place.json("model_index.json")
    if index is None:
        if component is not None:
            raise InputError(f"{model} is no pipeline (it has no model_index.json), so it has no {component}")
        return Source((_component(place, "", variant),), None, place.text("README.md"))
    names = [name for name, entry in index.items() if is_transformer(name) and isinstance(entry, list) and all(entry)]
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str | None):
        raise InputError(f"{model}: model_index.json names the class {shown(pipeline)}; {AGAIN}")
    if not names:
        raise InputError(f"{model} is a {pipeline} without a transformer; sedialect quantizes no UNets")
    if component is not None and component not in names:
        raise InputError(f"{model} has no component {component!r} to quantize; there are {', '.join(names)}")
    chosen = [component] if component is not None else names
    components = tuple(_component(place, name, variant) for name in chosen)
    return Source(components, pipeline, place.text("README.md"))


class Place:
    """A folder or repository; asks for a file, and says where it lies.

    Raises:
        InputError: `model` is neither; the message ends with `or_else`.
    """

    def __init__(self, model: str, or_else: str = "") -> None:
        self.model = model
        self.folder = expanded(model) if is_folder(model) else None
        self.commit: str | None = None
        if self.folder is None and (is_file(model) or not hub.is_repo_id(model)):
            raise InputError(f"{shown(model)} is neither a folder nor the name of a repository on the Hub{or_else}")

    def find(self, *names: str) -> Path:
        """The first of these files that is there.

        Raises:
            InputError: none is.
        """
        problem: InputError | None = None
        for name in map(hub.check_file_name, names):
            if self.folder is not None:
                if (self.folder / name).is_file():
                    return self.folder / name
                continue
            try:
                fetched = hub.download(self.model, name, revision=self.commit)
            except InputError as error:
                problem = problem or error
            else:
                self.commit = fetched.commit  # the rest from the same version
                return fetched.path
        raise problem or InputError(f"{self.model} has no {' or '.join(names)}")

    def text(self, name: str) -> str | None:
        """A file's text, or None where it is missing."""
        try:
            return read_bytes(self.find(name), MAX_TEXT).decode()
        except (InputError, UnicodeDecodeError):
            return None

    def json(self, name: str) -> dict[str, Any] | None:
        """A file's JSON object, or None where it is missing.

        Raises:
            InputError: it is there and holds anything else.
        """
        try:
            path = self.find(name)
        except InputError:
            return None
        return read_object(path, remedy=AGAIN)


def _component(place: Place, name: str, variant: str | None) -> Component:
    prefix = f"{name}/" if name else ""
    config = place.json(f"{prefix}config.json")
    if config is None:
        place.find(f"{prefix}config.json")  # says why
        raise InputError(f"{place.model}: {prefix}config.json cannot be read")
    middle = f".{variant}" if variant else ""
    index = f"{prefix}{WEIGHTS}.safetensors.index{middle}.json"
    found = place.find(index, f"{prefix}{WEIGHTS}{middle}.safetensors")
    if found.suffix == ".safetensors":
        return Component(name, config, (found,))
    shards = _shards(place.json(index) or {})
    if not shards or any("/" in shard or not shard.endswith(".safetensors") for shard in map(hub.check_file_name, shards)):
        raise InputError(f"{place.model}: {index} lists no safetensors files beside it; {AGAIN}")
    return Component(name, config, tuple(place.find(prefix + shard) for shard in shards))


def _shards(index: Mapping[str, Any]) -> list[str]:
    """The files that an index lists, or none where it lists anything else."""
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        return []
    return sorted(set(files.values()))
