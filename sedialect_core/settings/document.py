"""The table of settings as Markdown, for docs/settings.md."""

import json
from collections.abc import Iterable

from .entry import Setting
from .values import Choice, Switch

HEAD = ("setting", "what it does", "values", "default", "command line", "ComfyUI", "app")


def markdown(settings: Iterable[Setting]) -> str:
    """A row for each setting: what it does, what is possible, and where it is found; values as in config.json."""
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, settings)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(entry: Setting) -> tuple[str, ...]:
    option = "" if entry.option is None else f"`{' '.join(filter(None, (entry.option.command, entry.flag)))}`"
    inputs = ", ".join(name.replace("_", " ") for name in entry.inputs)
    shown = f"{inputs} ({entry.node})" if inputs else ""
    page = entry.label if entry.web else ""
    return f"`{entry.name}`", entry.help.replace("|", "\\|"), _values(entry), _json(entry.default), option, shown, page


def _values(entry: Setting) -> str:
    if isinstance(entry.values, Choice):
        return ", ".join(map(_json, entry.values.options))
    return ", ".join(map(_json, (True, False))) if isinstance(entry.values, Switch) else entry.values.words


def _json(value: object) -> str:
    return f"`{json.dumps(value)}`"
