"""Files that are whole or absent, also after a power cut: written under a temporary name beside their place, brought to the
disk, then moved there."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, shortened

if TYPE_CHECKING:
    import torch

REMEDY = "choose a writable place with free space"
LAST = "config.json"  # of the files in a folder: where it is, the others are
ROOM = 1.02  # of what is written: headers, and what a file system adds


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path with the suffix of `path`; moved to `path` when the block ends well, removed when it does not.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full; or at `path` is something other than a file,
            such as a device, which whoever may write in its folder could replace.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is a folder, a pipe or a device, where a file is to be written; choose another path")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix, delete=False) as file:
            temporary = Path(file.name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # a temporary file is private; what it becomes follows the user's umask
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
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
            sync(path)
        for path in sorted(staged.iterdir(), key=lambda path: path.name == LAST):
            path.replace(folder / path.name)
        sync(folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; {REMEDY}") from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders, and writes names through
    number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file, whole or not at all, and return `path`.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:  # of what the system says, it keeps the text alone
            raise InputError(f"cannot write {path}: {shortened(error)}; {REMEDY}") from error
    return path


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
