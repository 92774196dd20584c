"""Inputs of a node made from the fields of `SeDialectConfig`, so that a new setting is one entry here.

Every setting starts as "preset": the chosen preset decides, until the user does. A number has -1 for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..sedialect_core.config import BLOCK_SIZES, MODULATIONS, PRECISIONS, PRESETS, ROTATIONS, SeDialectConfig

AS_PRESET = "preset"
UNSET = -1.0


@dataclass(frozen=True)
class Setting:
    """A field of the settings as an input: a choice, or a number from 0 to `highest`."""

    name: str
    tooltip: str
    choices: tuple[Any, ...] = ()
    highest: float = 1.0
    advanced: bool = False

    def input(self) -> Any:
        """The input of the node."""
        said: dict[str, Any] = {"optional": True, "tooltip": self.tooltip, "advanced": self.advanced}
        if self.choices:
            return io.Combo.Input(self.name, options=[AS_PRESET, *map(str, self.choices)], default=AS_PRESET, **said)
        return io.Float.Input(self.name, default=UNSET, min=UNSET, max=self.highest, step=0.01, **said)

    def value(self, given: Any) -> Any:
        """The setting's own value for what the input holds, or None where the preset decides."""
        if self.choices:
            return next((choice for choice in self.choices if str(choice) == given), None)
        return None if given is None or given < 0 else given


SETTINGS = (
    Setting(
        "precision",
        "Bits of weights and activations in the transformer blocks. w4a4 is the method; w4a8 is closer to 16 bit, and as "
        "fast on GPUs with FP8; w4a16 encodes the weights only.",
        PRECISIONS,
    ),
    Setting("block_size", "Numbers that share one dialect: 16 takes 4.5 bits a weight, 32 takes 4.25.", BLOCK_SIZES),
    Setting(
        "rotation",
        "Rotates weights and activations by Hadamard blocks of this many channels, which spreads outliers; 0 does not.",
        ROTATIONS,
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
        "Layers that see one row a sample (adaLN): w4a16 encodes their weights, keep leaves them in 16 bit.",
        MODULATIONS,
        advanced=True,
    ),
)
SKIP_TOOLTIP = "Regular expressions, one a line; a layer whose name one of them finds stays in 16 bit."


def setting_inputs() -> list[Any]:
    """Inputs for the preset, every setting, and the layers to leave out."""
    preset = io.Combo.Input("preset", options=list(PRESETS), default="default", tooltip="Settings that go well together.")
    skip = io.String.Input("skip", default="", multiline=True, optional=True, advanced=True, tooltip=SKIP_TOOLTIP)
    return [preset, *(setting.input() for setting in SETTINGS), skip]


def config_from(preset: str, given: Mapping[str, Any], skip: str) -> SeDialectConfig:
    """The settings that the inputs ask for.

    Raises:
        ConfigError: they do not exist, or a pattern is no regular expression.
    """
    values = {setting.name: setting.value(given.get(setting.name)) for setting in SETTINGS}
    chosen = {name: value for name, value in values.items() if value is not None}
    patterns = tuple(line.strip() for line in skip.splitlines() if line.strip())
    return SeDialectConfig.preset(preset, **chosen, **({"skip": patterns} if patterns else {}))
