"""A pipeline's models without their weights: the real classes of diffusers and transformers, on the device meta."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import nn

from ..checkpoint.skeleton import skeleton
from ..checkpoint.source import Place
from ..errors import InputError, first_line
from ..inspection import is_transformer
from ..inspection.encoders import TEXT_ENCODER

# Decoded in float32, as diffusers advises for them; all other models are counted in 16 bit.
FLOAT32_VAES = ("AutoencoderKLWan",)
# What a config.json of transformers could say to make it fetch or run anything beside its own classes.
# The dtype of a file is left out as well: it is loaded in 16 bit.
REFUSED_KEYS = re.compile(
    r"auto_map|custom_pipelines|_?attn_implementation.*|quantization_config|_name_or_path|(torch_)?dtype"
)
BUILD_ERRORS = (TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError, NotImplementedError)
SIZE = ("height", "width", "num_frames")


@dataclass(frozen=True)
class Part:
    """One model of a pipeline. `model` has the dtypes that loading in bfloat16 gives, and no weights."""

    name: str
    role: str
    """"transformer", "text encoder", "VAE" or "other"."""
    class_name: str
    model: nn.Module


@dataclass(frozen=True)
class Outline:
    """What a model is made of, and the size of video that is usual for it, as far as it is known."""

    name: str
    parts: tuple[Part, ...]
    video: Mapping[str, int] = field(default_factory=dict)

    def of(self, role: str) -> tuple[Part, ...]:
        """The parts of one role."""
        return tuple(part for part in self.parts if part.role == role)


@cache
def known_models() -> Mapping[str, Any]:
    """The configurations that come with the package, by short name; `known_models.json` says where each is from."""
    models: dict[str, Any] = _data()["models"]
    return models


def text_encoder_config(name: str) -> Mapping[str, Any]:
    """The configuration of a text encoder that comes with the package, by the short name that `known_models.json` has."""
    config: Mapping[str, Any] = _data()["text_encoders"][name]["config"]
    return config


def outline_of(model: str) -> Outline:
    """The models of a pipeline, or one transformer.

    Args:
        model: a short name of `known_models`, a folder, or a repository on the Hub, of which config files are fetched alone.

    Raises:
        InputError: there is no such model, it has no video transformer, it is quantized already, or a class or configuration
            is none of diffusers and transformers.
    """
    _check_libraries()
    if model in known_models():
        return _known(known_models()[model])
    place = Place(model, or_else=f", and no short name; those are {', '.join(known_models())}")
    index = place.json("model_index.json")
    if index is None:
        config = _config(place, "config.json")
        return Outline(model, (_diffusers_part("transformer", "transformer", config, model),))
    names = [name for name, entry in index.items() if _is_model(entry)]
    if not any(is_transformer(name) for name in names):
        raise InputError(f"{model} is a {index.get('_class_name')} without a transformer; sedialect quantizes no UNets")
    parts = [
        _part(name, index[name][0], index[name][1], _config(place, f"{name}/config.json"), f"{model}/{name}")
        for name in names
    ]
    return Outline(model, tuple(parts))


def _check_libraries() -> None:
    try:
        import accelerate
        import diffusers
        import transformers
    except ImportError as error:
        raise InputError(f"plans need {error.name}; install it: pip install 'sedialect[diffusers]'") from None
    del accelerate, diffusers, transformers


def _data() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("known_models.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _known(entry: Mapping[str, Any]) -> Outline:
    parts = []
    for name, given in entry["components"].items():
        if isinstance(given, str):
            encoder = _data()["text_encoders"][given]
            parts.append(_part(name, "transformers", encoder["class"], encoder["config"], f"{entry['name']}/{name}"))
        else:
            parts.append(_part(name, "diffusers", given["_class_name"], given, f"{entry['name']}/{name}"))
    return Outline(entry["name"], tuple(parts), entry["video"])


def _is_model(entry: object) -> bool:
    """Whether an entry of a model_index.json is a model of diffusers or transformers; tokenizers and schedulers are none.

    Classes are looked up among what the libraries export: a file's names are never imported.
    """
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)):
        return False
    return _exported(*entry) is not None


def _exported(library: str, name: str) -> type[nn.Module] | None:
    import diffusers
    import transformers

    bases: dict[str, tuple[Any, type]] = {
        "diffusers": (diffusers, diffusers.ModelMixin),
        "transformers": (transformers, transformers.PreTrainedModel),
    }
    if library not in bases or name.startswith("_"):
        return None
    module, base = bases[library]
    found = getattr(module, name, None)
    is_one = isinstance(found, type) and issubclass(found, base) and issubclass(found, nn.Module)
    return found if is_one else None


def _config(place: Place, name: str) -> dict[str, Any]:
    config = place.json(name)
    if config is None:
        place.find(name)  # says why
        raise InputError(f"{place.model}: {name} cannot be read")
    return config


def _part(name: str, library: str, class_name: str, config: Mapping[str, Any], where: str) -> Part:
    if is_transformer(name):
        role = "transformer"
    elif TEXT_ENCODER.fullmatch(name):
        role = "text encoder"
    else:
        role = "VAE" if name == "vae" else "other"
    if library == "diffusers":
        return _diffusers_part(name, role, {**config, "_class_name": config.get("_class_name", class_name)}, where)
    return Part(name, role, class_name, _transformers_model(class_name, config, where))


def _diffusers_part(name: str, role: str, config: Mapping[str, Any], where: str) -> Part:
    class_name = str(config.get("_class_name"))
    cls = _exported("diffusers", class_name)
    if role == "transformer" and cls is not None and not cls.__module__.startswith("diffusers.models.transformers"):
        raise InputError(f"{where} is a {class_name}, which is no transformer; pass a video transformer or its pipeline")
    if cls is None and "_class_name" not in config and "model_type" in config:
        raise InputError(f"{where} is a {config['model_type']} of transformers; pass a video transformer or its pipeline")
    dtype = torch.float32 if class_name in FLOAT32_VAES else torch.bfloat16
    model = _built(lambda: skeleton(config, where), dtype, class_name, where)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and kept & set(key.split(".")):
            parameter.data = parameter.data.float()
    return Part(name, role, class_name, model)


def _transformers_model(class_name: str, config: Mapping[str, Any], where: str) -> nn.Module:
    from transformers import AutoConfig

    cls: Any = _exported("transformers", class_name)

    def build() -> nn.Module:
        settings = _harmless(config)
        model_type = str(settings.pop("model_type", None))
        with torch.device("meta"):  # accelerate's way would count tied weights twice
            described = AutoConfig.for_model(model_type, **settings)
            model: nn.Module = cls._from_config(described, attn_implementation="sdpa", dtype=torch.bfloat16)
        return model

    return _built(build, torch.bfloat16, class_name, where)


def _harmless(value: Any) -> Any:
    """A configuration without what could make transformers fetch or run code, at any depth."""
    if isinstance(value, Mapping):
        return {key: _harmless(entry) for key, entry in value.items() if not REFUSED_KEYS.fullmatch(key)}
    return [_harmless(entry) for entry in value] if isinstance(value, list) else value


def _built(build: Any, dtype: torch.dtype, class_name: str, where: str) -> nn.Module:
    """What `build` makes where new floats are `dtype`, as from_pretrained has it.

    Raises:
        InputError: the configuration makes no such model.
    """
    from huggingface_hub.errors import StrictDataclassError

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model: nn.Module = build()
    except InputError:
        raise
    except (*BUILD_ERRORS, StrictDataclassError) as error:
        raise InputError(
            f"{where}: its config.json makes no {class_name} ({first_line(error)}); download it again"
        ) from error
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)
