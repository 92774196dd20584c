"""Where something is to be written: the place that a path means, checked before the work and not after it."""

import os
from pathlib import Path

from ..errors import InputError, shortened, shown
from .atomic import check_writable


def place(text: str | Path) -> Path:
    """The place that a path means: absolute, links followed, `~` as one's own folder, without dots.

    Raises:
        InputError: it is empty, links lead round in a circle, `~` names nobody, or the text is no path.
    """
    if not str(text).strip():
        raise InputError("a path to write to is empty; name a folder")
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{shown(str(text))} is no place to write to: {shortened(error)}; choose another path") from None


def expanded(text: str | Path) -> Path:
    """The path to read from: `~` is one's own folder, as where something is written."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # it names nobody
        return Path(text)


def is_file(text: str | Path) -> bool:
    """Whether a file lies there; no, of names that no file system takes, where `Path.is_file` fails."""
    return os.path.isfile(expanded(text))


def is_folder(text: str | Path) -> bool:
    """The same of a folder."""
    return os.path.isdir(expanded(text))


def folder_to_write(text: str | Path) -> Path:
    """The folder that a path means, checked: see `place` and `check_place`, also for what they raise."""
    folder = place(text)
    check_place(folder)
    return folder


def check_place(folder: Path) -> None:
    """Refuse, before minutes of work, a folder that cannot be made or written in; nothing stays of the attempt.

    Raises:
        InputError: that is so, or a file stands in the way.
    """
    try:
        made = [part for part in (folder.parent, *folder.parent.parents) if not part.exists()]
        file = next((part for part in (folder, *folder.parents) if part.exists() and not part.is_dir()), None)
    except OSError as error:  # a name is too long, or a folder may not be looked into
        raise InputError(f"cannot write {shown(str(folder))}: {error.strerror}; choose another path") from None
    if file is not None:
        raise InputError(f"{file} is a file, where a folder is to be written; choose another --output, or remove it")
    try:
        check_writable(folder if folder.exists() else folder.parent)
    finally:
        for part in made:
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()


def on_another_disk(folder: Path) -> bool:
    """Whether a folder that is there lies on another file system than the one that it stands in."""
    return folder.is_dir() and os.stat(folder).st_dev != os.stat(folder.parent).st_dev
