"""Inputs of a node made from the fields of `SeDialectConfig`, so that a new setting is one entry here.

Every setting starts as "preset": the chosen preset decides, until the user does. A number has -1 for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..sedialect_core.config import (
    BLOCK_SIZES,
    MODULATIONS,
    PRECISIONS,
    PRESETS,
    ROTATIONS,
    SALIENCES,
    SALIENT_LAYERS,
    SeDialectConfig,
)

AS_PRESET = "preset"
UNSET = -1
SWITCH = {True: "on", False: "off"}


@dataclass(frozen=True)
class Setting:
    """A field of the settings as an input: a choice, a number from 0 to `highest`, or a whole one.

    place  where in the field's value the input's stands, for a field of several
    """

    name: str
    tooltip: str
    choices: tuple[Any, ...] = ()
    highest: float = 1.0
    advanced: bool = False
    field: str = ""
    place: int = 0

    def input(self, unset: str = AS_PRESET, hidden: bool = False) -> Any:
        """The input of the node.

        Args:
            unset: the choice that decides nothing.
            hidden: among the advanced inputs, even where it is not by itself.
        """
        said: dict[str, Any] = {"optional": True, "tooltip": self.tooltip, "advanced": self.advanced or hidden}
        if self.choices:
            return io.Combo.Input(self.name, options=[unset, *map(_word, self.choices)], default=unset, **said)
        if isinstance(self.highest, int):
            return io.Int.Input(self.name, default=UNSET, min=UNSET, max=self.highest, **said)
        return io.Float.Input(self.name, default=float(UNSET), min=float(UNSET), max=self.highest, step=0.01, **said)

    def value(self, given: Any) -> Any:
        """The setting's own value for what the input holds, or None where the preset decides."""
        if self.choices:
            return next((choice for choice in self.choices if _word(choice) == given), None)
        return None if given is None or given < 0 else given


def _word(choice: Any) -> str:
    return SWITCH[choice] if isinstance(choice, bool) else str(choice)


TOKEN_SETTINGS = (
    Setting(
        "salient_ratio",
        "Part of the video tokens that get a second 4-bit term, 0 to 1: nearer to 16 bit, but slower. -1: as "
        "in the preset or file.",
    ),
    Setting(
        "semantic",
        "Tokens that attend to each other and are nearly equal share their number formats.",
        (True, False),
    ),
    Setting(
        "protected_first",
        "Number of steps at the start of sampling that run with 8-bit activations; -1: as in the preset or file.",
        highest=10000,
        field="protected_steps",
    ),
    Setting(
        "protected_last",
        "Number of steps at the end of sampling that run with 8-bit activations; -1: as in the preset or file.",
        highest=10000,
        field="protected_steps",
        place=1,
    ),
    Setting(
        "salient_by",
        "How the tokens with a second term are chosen: by norm, by encoding error, or by the attention they receive.",
        SALIENCES,
        advanced=True,
    ),
    Setting("salient_layers", "Which layers give tokens a second term.", SALIENT_LAYERS, advanced=True),
    Setting(
        "refresh_every",
        "Attention is profiled in the first step of a sampler and then every so many steps; 0: in the first "
        "only; -1: as in the preset or file.",
        highest=10000,
        advanced=True,
    ),
)
"""What layers do while the model runs; the encoded weights are the same."""
SETTINGS = (
    Setting(
        "precision",
        "Bits of weights and activations in the transformer blocks. w4a4 is the method; w4a8 is closer to 16 bit, and as "
        "fast on GPUs with FP8; w4a16 encodes the weights only.",
        PRECISIONS,
    ),
    Setting("block_size", "Numbers that share one dialect: 16 takes 4.5 bits a weight, 32 takes 4.25.", BLOCK_SIZES),
    *TOKEN_SETTINGS,
    Setting(
        "rotation",
        "Rotates weights and activations by Hadamard blocks of this many channels, which spreads outliers; 0: off.",
        ROTATIONS,
        advanced=True,
    ),
    Setting(
        "equalize",
        "Scales input channels by powers of two, so that outlier channels do not set the scale of their rows.",
        (True, False),
        advanced=True,
    ),
    Setting(
        "candidates",
        "Which dialects a block of activations chooses from: those of its maximum, or all, which is slower.",
        ("max", "all"),
        advanced=True,
    ),
    Setting(
        "modulation",
        "Modulation layers (adaLN), which have one row per sample: w4a16 quantizes their weights, keep "
        "leaves them in 16 bit.",
        MODULATIONS,
        advanced=True,
    ),
)
SKIP_TOOLTIP = "Regular expressions, one per line; a layer whose name matches one of them stays in 16 bit."


def setting_inputs() -> list[Any]:
    """Inputs for the preset, every setting, and the layers to leave out."""
    preset = io.Combo.Input(
        "preset", options=list(PRESETS), default="default", tooltip="A set of settings; on GPUs with FP8 units take quality."
    )
    skip = io.String.Input("skip", default="", multiline=True, optional=True, advanced=True, tooltip=SKIP_TOOLTIP)
    return [preset, *(setting.input() for setting in SETTINGS), skip]


def config_from(preset: str, given: Mapping[str, Any], skip: str) -> SeDialectConfig:
    """The settings that the inputs ask for.

    Raises:
        ConfigError: they do not exist, or a pattern is no regular expression.
    """
    patterns = tuple(line.strip() for line in skip.splitlines() if line.strip())
    config = with_settings(SeDialectConfig.preset(preset), given, SETTINGS)
    return config.override(skip=patterns) if patterns else config


def with_settings(config: SeDialectConfig, given: Mapping[str, Any], settings: Sequence[Setting]) -> SeDialectConfig:
    """The configuration with what the inputs of `settings` decide."""
    chosen: dict[str, Any] = {}
    for setting in settings:
        value = setting.value(given.get(setting.name))
        if value is None:
            continue
        if setting.field:
            several = list(chosen.get(setting.field, getattr(config, setting.field)))
            several[setting.place] = value
            chosen[setting.field] = tuple(several)
        else:
            chosen[setting.name] = value
    return config.override(**chosen)
