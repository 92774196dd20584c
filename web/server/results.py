"""Where results lie: one folder a run, under a name that nobody guesses, inside the one folder that the server shows."""

import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

KEPT_SECONDS = 3600.0  # that a result stays, if nothing else ends it sooner
GRACE_SECONDS = 600.0  # that it stays once its visitor has left: a lost connection is no farewell
KEPT = 32  # results of all visitors together

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """One value a visitor, of the last few visitors alone: what is too large to be kept for everyone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[str, Value] = {}
        self._lock = threading.Lock()

    def put(self, session: str, value: Value) -> None:
        """Remember a visitor's value; the visitor who has been quiet the longest is forgotten."""
        with self._lock:
            self._values.pop(session, None)
            self._values[session] = value
            while len(self._values) > self._limit:
                del self._values[next(iter(self._values))]

    def get(self, session: str) -> Value | None:
        """A visitor's value."""
        with self._lock:
            return self._values.get(session)

    def drop(self, session: str) -> None:
        """The visitor has gone."""
        with self._lock:
            self._values.pop(session, None)


@dataclass
class _Kept:
    folder: Path
    session: str
    expires: float


class Results:
    """The folders of results, and whose they are. A visitor has one at a time; old ones are removed."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="sedialect-app-"))
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()

    def new_folder(self, session: str) -> Path:
        """A place for a visitor's next result; it replaces the last one. Nothing is made yet."""
        with self._lock:
            now = time.monotonic()
            for kept in self._kept:
                if kept.session == session:
                    kept.expires = now
            self._sweep(now, KEPT - 1)
            folder = self.root / secrets.token_urlsafe(16)
            self._kept.append(_Kept(folder, session, now + KEPT_SECONDS))
            return folder

    def drop(self, folder: Path) -> None:
        """A result that came to nothing: what there is of it is removed."""
        with self._lock:
            shutil.rmtree(folder, ignore_errors=True)
            self._kept = [kept for kept in self._kept if kept.folder != folder]

    def left(self, session: str) -> None:
        """A visitor has gone: the result goes too, a little later."""
        with self._lock:
            now = time.monotonic()
            for kept in self._kept:
                if kept.session == session:
                    kept.expires = min(kept.expires, now + GRACE_SECONDS)
            self._sweep(now, KEPT)

    def remove_all(self) -> None:
        """The server ends."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _sweep(self, now: float, limit: int) -> None:
        expired = [kept for kept in self._kept if kept.expires <= now]
        lasting = [kept for kept in self._kept if kept.expires > now]
        for kept in (*expired, *lasting[: max(0, len(lasting) - limit)]):
            shutil.rmtree(kept.folder, ignore_errors=True)
            self._kept.remove(kept)
