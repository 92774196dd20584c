"""The settings: one frozen, printable value, checked when it is made."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, ClassVar

from .errors import ConfigError, shown
from .storage.patterns import MAX_PATTERNS, check_pattern, finds

CONFIG_VERSION = 1
# Settings that only matter while the model runs: they can change without encoding weights anew.
SEMANTICS = (
    "salient_ratio",
    "salient_by",
    "salient_layers",
    "semantic",
    "semantic_window",
    "semantic_spacing",
    "semantic_quantile",
    "semantic_similarity",
    "semantic_sharing",
    "refresh_every",
    "refresh_at",
    "profile_megabytes",
    "protected_steps",
)
MAX_CHARACTERS = 2048  # of the JSON form: diffusers puts it into config.json, and older ones into a request header
PRECISIONS = ("w4a4", "w4a8", "w4a16")
MODULATIONS = ("w4a16", "keep")
BLOCK_SIZES = (16, 32)
ROTATIONS = (0, 16, 32, 64, 128)
SALIENCES = ("norm", "error", "attention", "peak-attention", "attention-error", "random")
CHOSEN_BY_PROFILE = ("attention", "peak-attention")  # settings `salient_by` by which a profile alone says which tokens
BY_ATTENTION = (*CHOSEN_BY_PROFILE, "attention-error")  # those that need one
SALIENT_LAYERS = ("feed_forward", "all")
SHARINGS = ("sub-formatbook", "dialect")

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


@dataclass(frozen=True)
class SeDialectConfig:
    """How a model is quantized. It is also what diffusers takes as `quantization_config=`.

    Args:
        precision: of the layers in the transformer blocks: "w4a4" (the method), "w4a8" (E4M3 activations) or "w4a16"
            (weights only); docs/quality.md compares them.
        block_size: 16 (4.5 bits a weight) or 32 (4.25 bits).
        formatbook: a built-in book's name or a file that `Formatbook.save` wrote.
        candidates: which dialects an activation block chooses from: "max", those of its maximum; "all", every one.
        modulation: the adaLN linears, which see one row a sample: "w4a16", or "keep" for 16 bit.
        skip: regular expressions; a layer whose name one of them finds stays 16 bit.
        layer_precisions: pairs (regular expression, precision); the first that finds a layer's name decides.
        rotation: rotate weights and activations by Hadamard blocks of this many channels, which spreads outliers; 0: do
            not. With calibration, only the layers that it brings nearer to 16 bit.
        equalize: scale input channels by powers of two, so that outlier channels do not set the scale of their rows; their
            sizes are told from the weights' columns or, with calibration, from the inputs.
        salient_ratio: the part of the video tokens, 0..1, whose residual is encoded as well (docs/semantics.md), and with
            them all text tokens; 0: none.
        salient_by: which tokens those are: of the largest "norm" or encoding "error" of the layer's input; those that
            received most "attention" when the block was last profiled, or the highest single one, "peak-attention"; of the
            largest error times received attention, "attention-error"; or, for comparison, "random" ones.
        salient_layers: "feed_forward", where a second term brings most for what it costs (docs/quality.md), or "all".
        semantic: let tokens that belong together share what `semantic_sharing` says (docs/semantics.md).
        semantic_window: frames, rows and columns around an anchor whose tokens may join it.
        semantic_spacing: frames, rows and columns from one anchor to the next; zeros: as the window, so that none overlap.
        semantic_quantile: a member's attention from the anchor lies at or above this quantile of the window's, 0..1.
        semantic_similarity: and the cosine between its input and the anchor's is at least this, -1..1.
        semantic_sharing: in each block of channels, a "sub-formatbook", from which each token takes its own dialect, or the
            "dialect" itself.
        refresh_every: profile attention and groups at every such step; 0: at the first only.
        refresh_at: or at these parts of the schedule, 0..1, whatever `refresh_every` says; each model of a pipeline also at
            its own first step if one of them lies before it.
        profile_megabytes: what profiling and grouping may take in temporaries, in units of 10^6 bytes; one head of one
            sample, at least, is looked at at a time.
        protected_steps: how many steps at the start and at the end of sampling run with 8-bit activations, as "w4a8".
        formatbook_digest: what the book's numbers must hash to, as checkpoints record it; empty where any will do.

    Raises:
        ConfigError: a value is not one of the possible ones, or all of them together are too long for a config.json.

    Example:
        >>> WanTransformer3DModel.from_pretrained("org/model", quantization_config=SeDialectConfig(block_size=32))
    """

    quant_method: ClassVar[SeDialectMethod] = SeDialectMethod.SEDIALECT

    precision: str = "w4a4"
    block_size: int = 16
    formatbook: str = "universal-32"
    candidates: str = "max"
    modulation: str = "w4a16"
    skip: tuple[str, ...] = ()
    layer_precisions: tuple[tuple[str, str], ...] = ()
    formatbook_digest: str = ""
    rotation: int = 0
    equalize: bool = True
    salient_ratio: float = 0.25
    salient_by: str = "norm"
    salient_layers: str = "feed_forward"
    semantic: bool = False
    semantic_window: tuple[int, int, int] = (2, 2, 2)
    semantic_spacing: tuple[int, int, int] = (0, 0, 0)
    semantic_quantile: float = 0.5
    semantic_similarity: float = 0.995
    semantic_sharing: str = "sub-formatbook"
    refresh_every: int = 5
    refresh_at: tuple[float, ...] = ()
    profile_megabytes: int = 128
    protected_steps: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self._check_kinds()
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("block_size", self.block_size, BLOCK_SIZES)
        _one_of("candidates", self.candidates, ("max", "all"))
        _one_of("modulation", self.modulation, MODULATIONS)
        _one_of("rotation", self.rotation, ROTATIONS)
        if type(self.equalize) is not bool:
            raise ConfigError(f"equalize is {shown(self.equalize)}; it is True or False")
        self._check_semantics()
        for pattern, precision in self.layer_precisions:
            _one_of(f"layer_precisions[{shown(pattern)}]", precision, PRECISIONS)
        length = len(json.dumps(self.to_dict()))
        if length > MAX_CHARACTERS:
            raise ConfigError(f"these settings take {length} of at most {MAX_CHARACTERS} characters; use shorter patterns")

    def _check_kinds(self) -> None:
        """Lists, paths and texts as what they must be: settings may come from a file, with anything in their place."""
        if isinstance(self.formatbook, os.PathLike):
            object.__setattr__(self, "formatbook", os.fspath(self.formatbook))
        for name in ("formatbook", "formatbook_digest"):
            if not isinstance(getattr(self, name), str) or len(getattr(self, name)) > MAX_CHARACTERS:
                raise ConfigError(
                    f"{name} is {shown(getattr(self, name))}; give a text of at most {MAX_CHARACTERS} characters"
                )
        for name in ("skip", "layer_precisions", "refresh_at", "semantic_window", "semantic_spacing", "protected_steps"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or len(value) > MAX_PATTERNS:
                raise ConfigError(f"{name} is {shown(value)}; give a list of at most {MAX_PATTERNS} values")
        if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in self.layer_precisions):
            raise ConfigError(f"layer_precisions is {shown(self.layer_precisions)}; give pairs (pattern, precision)")
        object.__setattr__(self, "skip", tuple(check_pattern(pattern) for pattern in self.skip))
        pairs = tuple((check_pattern(pattern), value) for pattern, value in self.layer_precisions)
        object.__setattr__(self, "layer_precisions", pairs)

    def _check_semantics(self) -> None:
        for name, length in (("semantic_window", 3), ("semantic_spacing", 3), ("protected_steps", 2)):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            least = 1 if name == "semantic_window" else 0
            if len(values) != length or any(type(value) is not int or value < least for value in values):
                raise ConfigError(f"{name} is {shown(values)}; give {length} integers of at least {least}")
        self._check_schedule()
        _one_of("salient_by", self.salient_by, SALIENCES)
        _one_of("semantic_sharing", self.semantic_sharing, SHARINGS)
        _one_of("salient_layers", self.salient_layers, SALIENT_LAYERS)
        for name, low in (("salient_ratio", 0), ("semantic_quantile", 0), ("semantic_similarity", -1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= 1:
                raise ConfigError(f"{name} is {shown(value)}; it lies between {low} and 1")
        if type(self.semantic) is not bool:
            raise ConfigError(f"semantic is {shown(self.semantic)}; it is True or False")
        if self.semantic and self.semantic_window == (1, 1, 1):
            raise ConfigError("semantic_window is (1, 1, 1), which holds nothing but the anchor; make it larger")

    def _check_schedule(self) -> None:
        if type(self.refresh_every) is not int or self.refresh_every < 0:
            raise ConfigError(f"refresh_every is {shown(self.refresh_every)}; give a number of steps, or 0")
        if type(self.profile_megabytes) is not int or self.profile_megabytes < 1:
            raise ConfigError(f"profile_megabytes is {shown(self.profile_megabytes)}; give an integer of at least 1")
        object.__setattr__(self, "refresh_at", tuple(self.refresh_at))
        for part in self.refresh_at:
            if isinstance(part, bool) or not isinstance(part, int | float) or not 0 <= part <= 1:
                raise ConfigError(f"refresh_at holds {shown(part)}; its parts of the schedule lie between 0 and 1")

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


def _one_of(name: str, value: object, possible: tuple[object, ...]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in possible):
        raise ConfigError(f"{name} is {shown(value)}; choose one of {', '.join(map(str, possible))}")
