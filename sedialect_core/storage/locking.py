"""One process at a time where files are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from .atomic import REMEDY


@contextmanager
def only_one(place: Path) -> Iterator[None]:
    """Hold `place`, a folder that need not be there yet, for this process while the block runs.

    The lock is a file beside it. The system lets go of it when a process ends, however it ends.

    Raises:
        InputError: another process holds it, or the folder that it lies in cannot be written.
    """
    from filelock import FileLock, Timeout

    whole = Path(os.path.abspath(place))
    path = whole.parent / f".{whole.name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        while not path.exists():  # another process ended between our opening its file and our locking it
            lock.release()
            lock.acquire()
    except Timeout:
        raise InputError(f"another process is writing {place}; wait until it has ended, or choose another place") from None
    except OSError as error:
        raise InputError(f"cannot write {place}: {error.strerror or error}; {REMEDY}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held: nobody else's
        lock.release()
