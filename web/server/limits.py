"""What a visitor may ask for. Everything that comes from a page or through the API passes here before it costs anything."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...sedialect_core.config import PRESETS, SeDialectConfig
from ...sedialect_core.demo import defaults, evaluation_prompts
from ...sedialect_core.errors import InputError, shown
from ...sedialect_core.formatbook.book import builtin_names
from ...sedialect_core.settings import SETTINGS, Book, Choice, LayerPrecisions, Numbers, Setting
from ...sedialect_core.settings.table import PRECISIONS
from ...sedialect_core.video.sampling import Request

MAX_SEED = 2**32 - 1
MAX_FRAGMENTS = 200  # characters of a list of layers
OFFERED: dict[str, Setting] = {entry.name: entry for entry in SETTINGS if entry.web}
"""The settings that a visitor may change, by name."""


@dataclass(frozen=True)
class Offer:
    """What the page offers for a model, and the bounds of it. 0 leaves a size or a number of frames to the pipeline."""

    prompt: str = ""
    examples: tuple[tuple[str, int], ...] = ()
    seed: int = 0
    steps: int = 30
    max_steps: int = 50
    guidance_scale: float = 5.0
    max_guidance: float = 20.0
    side: int = 0
    min_side: int = 64
    max_side: int = 1280
    side_step: int = 16
    frames: int = 0
    max_frames: int = 121
    frame_step: int = 4
    max_pixels: int = 832 * 480 * 81
    prompt_characters: int = 1000
    fps: int = 16
    seconds: int = 900
    """That one run may take before it is stopped."""
    waiting: int = 16
    """Visitors that may wait in line."""

    @property
    def fixed_sizes(self) -> bool:
        """Whether sizes are always given, as for the bundled model, rather than left to the pipeline."""
        return self.side > 0


def bundled_offer(**changes: Any) -> Offer:
    """The offer of the model that comes with the package: sizes up to those that it was trained at."""
    settings = defaults()
    given = {
        "prompt": settings["prompt"],
        "examples": evaluation_prompts()[:6],
        "seed": settings["seed"],
        "steps": settings["steps"],
        "guidance_scale": settings["guidance_scale"],
        "side": settings["height"],
        "max_side": settings["height"],
        "frames": settings["num_frames"],
        "max_frames": settings["num_frames"],
        "fps": settings["fps"],
    }
    return Offer(**{**given, **changes})


def checked_request(
    offer: Offer,
    prompt: str,
    negative_prompt: str = "",
    seed: float = 0,
    steps: float = 1,
    guidance_scale: float = 1.0,
    width: float = 0,
    height: float = 0,
    num_frames: float = 0,
) -> Request:
    """A request within the offer's bounds.

    Raises:
        InputError: a value is outside of them, or no number; the message names it and the bounds.
    """
    prompt, negative_prompt = (
        _text(name, text, offer) for name, text in (("prompt", prompt), ("negative prompt", negative_prompt))
    )
    if not prompt:
        raise InputError("the prompt is empty; say what the video shows")
    sizes = {
        "width": _size("width", width, offer),
        "height": _size("height", height, offer),
        "num_frames": _whole("frames", num_frames, 1 if offer.frames else 0, offer.max_frames) or None,
    }
    wide, high, frames = (sizes[name] or 0 for name in ("width", "height", "num_frames"))
    if wide * high * frames > offer.max_pixels:
        raise InputError(
            f"{frames} frames of {wide}x{high} are too many pixels for this server; ask for fewer or smaller frames"
        )
    return Request(
        prompt=prompt,
        negative_prompt=negative_prompt or None,
        seed=_whole("seed", seed, 0, MAX_SEED),
        steps=_whole("steps", steps, 1, offer.max_steps),
        guidance_scale=_number("guidance", guidance_scale, 0, offer.max_guidance),
        **sizes,
    )


def checked_config(preset: str, settings: Mapping[str, Any] | None = None, keep: str | None = "") -> SeDialectConfig:
    """A configuration from a preset, settings by name, and fragments of layer names that stay in 16 bit.

    An empty list of layers leaves the preset's own.

    Raises:
        InputError: a setting is unknown, or one that only the operator may give.
        ConfigError: a preset or a value is unknown.
    """
    settings = dict(settings or {})
    if preset not in PRESETS:
        raise InputError(f"no preset {shown(preset)}; there are {', '.join(PRESETS)}")
    for name, value in settings.items():
        if name not in OFFERED:
            raise InputError(f"no setting {shown(name)} is offered here; there are {', '.join(OFFERED)}")
        settings[name] = _setting(OFFERED[name], value, preset)
    fragments = tuple(re.escape(part) for part in _parts(keep))
    config = SeDialectConfig.preset(preset, **settings, **({"skip": fragments} if fragments else {}))
    if any(0 < 2 * step < size for step, size in zip(config.semantic_spacing, config.semantic_window, strict=True)):
        raise InputError("semantic_spacing is less than half of semantic_window; so many windows would take too much memory")
    return config


def choices_of(entry: Setting) -> tuple[Any, ...]:
    """What a visitor may choose from, where it is a choice."""
    if isinstance(entry.values, Book):
        return builtin_names()  # a path or a Hub name is the operator's to give, never a visitor's
    return entry.values.options if isinstance(entry.values, Choice) else ()


def shown_value(config: SeDialectConfig, entry: Setting) -> Any:
    """A setting as its field shows it: several numbers as "2, 2, 2", layers as nothing."""
    value = getattr(config, entry.name)
    if isinstance(entry.values, Numbers):
        return ", ".join(map(str, value))
    return "" if isinstance(entry.values, LayerPrecisions) else value


def _setting(entry: Setting, value: Any, preset: str) -> Any:
    choices = choices_of(entry)
    if choices and value not in choices:
        raise InputError(f"{entry.name} is {shown(value)}; choose one of {', '.join(map(str, choices))}")
    if isinstance(entry.values, Numbers):
        return _numbers(entry, entry.values, value)
    if isinstance(entry.values, LayerPrecisions):
        return _layer_precisions(value) or SeDialectConfig.preset(preset).layer_precisions
    return value


def _numbers(entry: Setting, values: Numbers, given: Any) -> tuple[float, ...]:
    """Several numbers, which are written as "2, 2, 2", or as a list."""
    words = re.split(r"[\s,]+", given[:MAX_FRAGMENTS].strip(", ")) if isinstance(given, str) else given
    if not isinstance(words, list | tuple):
        raise InputError(f"{entry.name} is {shown(given)}; give numbers, separated by commas")
    read = _whole if values.whole else _number
    most = values.high if entry.most is None else entry.most
    if most is None:
        raise TypeError(f"{entry.name} has no largest number; give `most` in its entry")
    return tuple(read(entry.name, word, values.low, most) for word in words[:MAX_FRAGMENTS] if word != "")


def _layer_precisions(text: Any) -> tuple[tuple[str, str], ...]:
    found = []
    for part in _parts(text):
        fragment, _, precision = (word.strip() for word in part.partition("="))
        if not fragment or precision not in PRECISIONS:
            raise InputError(
                f"{part!r} is no layer with its precision ({', '.join(PRECISIONS)}); write such as attn2 = w4a8"
            )
        found.append((re.escape(fragment), precision))
    return tuple(found)


def _parts(text: Any) -> list[str]:
    """What stands between the commas of a list of layers."""
    text = str(text or "")
    if len(text) > MAX_FRAGMENTS:
        raise InputError(f"the list of layers has {len(text)} characters; at most {MAX_FRAGMENTS} are read")
    return [part.strip() for part in text.split(",") if part.strip()]


def _text(name: str, text: Any, offer: Offer) -> str:
    text = " ".join(str(text or "").split())
    if len(text) > offer.prompt_characters:
        raise InputError(
            f"the {name} has {len(text)} characters; at most {offer.prompt_characters} are read here: shorten it"
        )
    return text


def _size(name: str, value: Any, offer: Offer) -> int | None:
    size = _whole(name, value, offer.min_side if offer.fixed_sizes else 0, offer.max_side)
    if not size:
        return None
    if size < offer.min_side or size % offer.side_step:
        raise InputError(
            f"{name} is {size}; choose a multiple of {offer.side_step} from {offer.min_side} to {offer.max_side}"
        )
    return size


def _whole(name: str, value: Any, low: float, high: float) -> int:
    number = _number(name, value, low, high)
    if number != int(number):
        raise InputError(f"{name} is {number}; give a whole number from {low} to {high}")
    return int(number)


def _number(name: str, value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {shown(value)}; give a number from {low} to {high}") from None
    if not low <= number <= high:  # NaN is outside of every range
        raise InputError(f"{name} is {number:g}; it must lie between {low} and {high}")
    return number
