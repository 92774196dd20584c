"""Inputs of a node made from the table of settings.

Every setting starts as "preset": the chosen preset decides, until the user does. A number has -1 for that.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from comfy_api.latest import io

from ..sedialect_core.config import PRESETS, SeDialectConfig
from ..sedialect_core.errors import ConfigError
from ..sedialect_core.plan.advice import best_preset
from ..sedialect_core.plan.ignored import ignored_settings
from ..sedialect_core.settings import ADVANCED, BASIC, FRONT, SETTINGS, Choice, Number, Setting, Switch

AUTO = "auto"  # a preset by the device that the MODEL runs on
AS_PRESET = "preset"
UNSET = -1
MOST = 10000  # of a number without an end: ComfyUI wants one
SWITCH = {True: "on", False: "off"}
SHOWN = tuple(entry for where in (FRONT, BASIC, ADVANCED) for entry in SETTINGS if entry.node == where)
LIVE_SHOWN = tuple(entry for entry in SHOWN if entry.live)
"""What layers do while the model runs; the encoded weights are the same."""
PATTERNS = next(entry for entry in SETTINGS if entry.name == "skip")


def inputs_of(entry: Setting, unset: str = AS_PRESET, hidden: bool = False) -> Iterator[Any]:
    """The node's inputs for a setting: one, or one for each of several numbers.

    Args:
        unset: the choice that decides nothing.
        hidden: folded away, even where it stands in front by itself.
    """
    values, words = entry.values, choices(entry)
    for name, part in zip(entry.inputs, getattr(values, "parts", ()) or ("",), strict=True):
        tooltip = " ".join(filter(None, (entry.help, f"This input: {part}." if part else "")))
        said: dict[str, Any] = {"optional": True, "advanced": hidden or entry.node != FRONT}
        if words:
            yield io.Combo.Input(name, options=[unset, *words], default=unset, tooltip=tooltip, **said)
        elif isinstance(values, Number):
            said["tooltip"] = f"{tooltip} {UNSET}: as in the preset or file."
            most = MOST if values.high is None else values.high
            if values.whole:
                yield io.Int.Input(name, default=UNSET, min=UNSET, max=int(most), **said)
            else:
                yield io.Float.Input(name, default=float(UNSET), min=float(UNSET), max=float(most), step=0.01, **said)
        else:
            raise TypeError(f"{entry.name} has values that no input holds; give its entry node=''")


def choices(entry: Setting) -> dict[str, Any]:
    """Value of each word that an input offers; empty for numbers."""
    if isinstance(entry.values, Switch):
        return {word: value for value, word in SWITCH.items()}
    return {str(option): option for option in entry.values.options} if isinstance(entry.values, Choice) else {}


def setting_inputs() -> list[Any]:
    """Inputs for the preset, every setting, and the layers to leave out."""
    preset = io.Combo.Input(
        "preset",
        options=[AUTO, *PRESETS],
        default=AUTO,
        tooltip="A set of settings. auto takes the best for this machine: quality on GPUs with FP8 or INT8 units, else "
        "weight-only; the node says which. default is the method as published, 4-bit weights and activations.",
    )
    skip = io.String.Input(
        PATTERNS.name, default="", multiline=True, optional=True, advanced=True, tooltip=f"{PATTERNS.help} One a line."
    )
    return [preset, *(made for entry in SHOWN for made in inputs_of(entry)), skip]


class Asked(NamedTuple):
    """The settings that a node's inputs ask for, and what there is to say of them."""

    config: SeDialectConfig
    notes: tuple[str, ...]


def asked(preset: str, given: Mapping[str, Any], skip: str, device: Any) -> Asked:
    """The settings that the inputs ask for, for a MODEL that runs on `device`.

    Raises:
        ConfigError: they do not exist, or a pattern is no regular expression.
    """
    notes = []
    if preset == AUTO:
        preset, reason = best_preset(device)
        notes.append(f"{AUTO} took the preset {preset}: {reason}")
    config = config_from(preset, given, skip)
    return Asked(config, (*notes, *ignored_settings(config, named(given, SHOWN))))


def config_from(preset: str, given: Mapping[str, Any], skip: str) -> SeDialectConfig:
    """The settings of a preset with what the inputs decide.

    Raises:
        ConfigError: they do not exist, or a pattern is no regular expression.
    """
    patterns = tuple(line.strip() for line in skip.splitlines() if line.strip())
    config = with_settings(SeDialectConfig.preset(preset), given, SHOWN)
    return config.override(skip=patterns) if patterns else config


def problem(given: Mapping[str, Any], skip: str = "") -> str | None:
    """What is wrong with values that were typed, in a sentence, or None; before anything runs."""
    try:
        config_from("default", given, skip)
    except ConfigError as error:
        return str(error)
    return None


def named(given: Mapping[str, Any], settings: Sequence[Setting]) -> list[str]:
    """The settings that the inputs decide."""
    return [entry.name for entry in settings if any(_value(entry, given.get(name)) is not None for name in entry.inputs)]


def with_settings(config: SeDialectConfig, given: Mapping[str, Any], settings: Sequence[Setting]) -> SeDialectConfig:
    """The configuration with what the inputs of `settings` decide."""
    chosen: dict[str, Any] = {}
    for entry in settings:
        values = [_value(entry, given.get(name)) for name in entry.inputs]
        if all(value is None for value in values):
            continue
        old = getattr(config, entry.name)
        if len(values) > 1:
            chosen[entry.name] = tuple(was if value is None else value for was, value in zip(old, values, strict=True))
        else:
            chosen[entry.name] = values[0]
    return config.override(**chosen)


def _value(entry: Setting, given: Any) -> Any:
    """The setting's own value for what an input holds, or None where the preset decides."""
    words = choices(entry)
    if words:
        return words.get(given)
    if given is None or given == UNSET:
        return None
    if given < 0:
        raise ConfigError(
            f"{entry.name} is {given:g}; give {entry.values.words}, or {UNSET} to leave it to the preset or file"
        )
    return given
