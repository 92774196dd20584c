"""The settings: one frozen, printable value, checked when it is made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, ClassVar

from .errors import ConfigError, shown
from .settings import Settings, entries
from .settings.patterns import finds
from .settings.table import UNQUANTIZED

CONFIG_VERSION = 1
MAX_CHARACTERS = 2048  # of the JSON form: diffusers puts it into config.json, and older ones into a request header
# What each is worth is measured in docs/quality.md.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "plain": {"formatbook": "sedialect-32", "salient_ratio": 0.0},
    "compact": {"block_size": 32},
    "quality": {"precision": "w4a8"},
    "weight-only": {"precision": "w4a16"},
}


class SeDialectMethod(StrEnum):
    """The name by which diffusers finds us. It reads `.value`, so a plain string will not do."""

    SEDIALECT = "sedialect"


@dataclass(frozen=True, kw_only=True)
class SeDialectConfig(Settings):
    """How a model is quantized. It is also what diffusers takes as `quantization_config=`.

    Its fields are those of `Settings`; docs/settings.md lists them, docs/quality.md has what they are worth.

    Raises:
        ConfigError: a value is not one of the possible ones, or all of them together are too long for a config.json.

    Example:
        >>> WanTransformer3DModel.from_pretrained("org/model", quantization_config=SeDialectConfig(block_size=32))
    """

    quant_method: ClassVar[SeDialectMethod] = SeDialectMethod.SEDIALECT

    def __post_init__(self) -> None:
        for entry in entries(type(self)):
            object.__setattr__(self, entry.name, entry.values.check(entry.name, getattr(self, entry.name)))
        if self.semantic and self.semantic_window == (1, 1, 1):
            raise ConfigError("semantic_window is (1, 1, 1), which holds nothing but the anchor; make it larger")
        length = len(json.dumps(self.to_dict()))
        if length > MAX_CHARACTERS:
            raise ConfigError(f"these settings take {length} of at most {MAX_CHARACTERS} characters; use shorter patterns")

    @classmethod
    def preset(cls, name: str = "default", **overrides: Any) -> "SeDialectConfig":
        """A named set of settings, with some of them overridden.

        Raises:
            ConfigError: no preset has this name, or an override is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(f"no preset {shown(name)}; there are {', '.join(PRESETS)}")
        return cls().override(**{**PRESETS[name], **overrides})

    def override(self, **settings: Any) -> "SeDialectConfig":
        """This configuration with some settings changed.

        Raises:
            ConfigError: there is no such setting.
        """
        known = [field.name for field in fields(self)]
        for name in settings:
            if name not in known:
                raise ConfigError(f"no setting {shown(name)}; {_nearest(name, known)}docs/format.md lists them all")
        if settings.get("formatbook", self.formatbook) != self.formatbook:
            settings.setdefault("formatbook_digest", "")  # the old one was of the old book
        return replace(self, **settings)

    @property
    def label(self) -> str:
        """What tells it from 16 bit, in a few words: the precision, and how attention runs."""
        attention = f"attention {self.attention}" if self.attention != UNQUANTIZED else ""
        return ", ".join(filter(None, ("" if self.attention_alone else self.precision, attention)))

    @property
    def attention_alone(self) -> bool:
        """Whether no layer is to be quantized, and attention is to run in fewer bits."""
        precisions = {self.precision, *(precision for _, precision in self.layer_precisions)}
        return precisions == {UNQUANTIZED} and self.attention != UNQUANTIZED

    def precision_of(self, name: str) -> str:
        """Precision of the layer called `name`, before its role and shape are looked at."""
        return next((value for pattern, value in self.layer_precisions if finds(pattern, name)), self.precision)

    def skips(self, name: str) -> str | None:
        """The pattern by which the layer called `name` stays 16 bit, or None."""
        return next((pattern for pattern in self.skip if finds(pattern, name)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the version of this form and the name that diffusers looks for."""
        return {"quant_method": self.quant_method.value, "version": CONFIG_VERSION, **asdict(self)}

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without the settings that have their defaults."""
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in self.to_dict().items() if key not in defaults or value != defaults[key]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_diff_dict` or `to_dict` as JSON; diffusers' own configs have this method too."""
        return json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SeDialectConfig":
        """A configuration from what `to_dict` gave; `quant_method` may be missing.

        Raises:
            ConfigError: the version or the method is another one, or a key is unknown.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"the settings are {shown(data)}, not an object; take config.json from where the weights are")
        settings = dict(data)
        method = settings.pop("quant_method", cls.quant_method)
        if method != cls.quant_method:
            raise ConfigError(f"settings of the quantizer {shown(method)}, not of {cls.quant_method.value!r}")
        version = settings.pop("version", None)
        if type(version) is not int or version != CONFIG_VERSION:
            raise ConfigError(
                f"settings of version {shown(version)}; this sedialect reads {CONFIG_VERSION}: update sedialect"
            )
        return cls().override(**settings)


def _nearest(name: object, known: list[str]) -> str:
    """What was meant, perhaps."""
    near = get_close_matches(str(name)[:60], known, 1)
    return f"did you mean {near[0]!r}? " if near else ""
