"""Files that are whole or absent: written under a temporary name beside their place, then moved there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

REMEDY = "choose a writable place with free space"
ROOM = 1.02  # of what is written: headers, and what a file system adds


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path with the suffix of `path`; moved to `path` when the block ends well, removed when it does not.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix, delete=False) as file:
            temporary = Path(file.name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # a temporary file is private; what it becomes follows the user's umask
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; {REMEDY}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`; its files move up when the block ends well, and vanish when it does not.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full.
    """
    staged: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        yield staged
        for path in staged.iterdir():
            path.replace(folder / path.name)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; {REMEDY}") from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path`, whole or not at all, and return `path`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def check_room(place: Path, needed: int) -> None:
    """Refuse to write `needed` bytes where there is no room for them; `place` itself may not be there yet.

    Raises:
        InputError: too little is free.
    """
    folder = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if needed * ROOM > free:
        raise InputError(f"{place} needs {needed * ROOM / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free some first")


def check_writable(folder: Path) -> None:
    """Fail before minutes of sampling where the output could not be written.

    Raises:
        InputError: the folder cannot be made or written.
    """
    existed = folder.exists()
    with staging(folder) as staged:
        (staged / "probe").write_bytes(b"")
        (staged / "probe").unlink()
    if not existed:
        folder.rmdir()
