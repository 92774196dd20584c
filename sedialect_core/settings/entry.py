"""An entry of the table of settings: one field of a configuration, with all that is said about it anywhere."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from .values import Numbers, Switch, Values

FRONT = "front"
BASIC = "basic"
ADVANCED = "advanced"
MORE = "More"


@dataclass(frozen=True)
class Option:
    """The setting on the command line.

    flag     where it is not made from the setting's name
    bare     what the option means without a value, or None where it needs one
    command  the one command that has it; empty: all that quantize
    metavar  what stands for the value in the help, where it is not the name
    """

    flag: str = ""
    bare: Any = None
    command: str = ""
    metavar: str = ""


@dataclass(frozen=True)
class Setting:
    """One setting.

    name     of the field; filled in by `entries`
    default  without a preset
    values   what is possible
    label    what a page calls it
    help     what it does, in one or two sentences; what is possible is told by `values`
    live     whether it may change in a quantized model, because the encoded weights are the same
    option   on the command line; None: it has none there
    node     in ComfyUI: FRONT, or folded away in two groups, BASIC before ADVANCED; empty: it is not shown
    web      the heading in the app that it stands below; empty: it is not shown
    most     the largest number that a visitor of the app may ask for, where `values` has no end
    """

    name: str
    default: Any
    values: Values
    label: str
    help: str
    live: bool = False
    option: Option | None = None
    node: str = ADVANCED
    web: str = MORE
    most: float | None = None

    @property
    def flag(self) -> str:
        """The option as it is typed, such as --block-size; of a switch, the one that turns it from its default."""
        if self.option is not None and self.option.flag:
            return self.option.flag
        off = "no-" if isinstance(self.values, Switch) and self.default else ""
        return f"--{off}{self.name.replace('_', '-')}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Ids of the node's inputs for it: one, or one for each part of several numbers."""
        if not self.node:
            return ()
        if isinstance(self.values, Numbers) and self.values.parts:
            return tuple(f"{self.name.rpartition('_')[0]}_{part}" for part in self.values.parts)
        return (self.name,)


def setting(default: Any, values: Values, label: str, help: str, **shown: Any) -> Any:
    """A dataclass field that is a setting; `shown` are other fields of `Setting`. It has an option unless that is None."""
    entry = Setting("", default, values, label, help, **{"option": Option(), **shown})
    return field(default=default, metadata={"setting": entry})


def entries(config: type) -> tuple[Setting, ...]:
    """The table: the settings of a configuration's class, in the order of its fields."""
    return tuple(
        replace(field.metadata["setting"], name=field.name) for field in fields(config) if "setting" in field.metadata
    )
