"""Work for processes that are started by spawning, which import it by its name."""

import time
from pathlib import Path

from sedialect.sedialect_core.video.workers import Place


def write_or_fail(place: Place, folder: str) -> None:
    """The first process writes a file, after a second; others fail at once."""
    if place.rank:
        raise RuntimeError("on purpose")
    time.sleep(1)
    (Path(folder) / "0").write_text("done", encoding="utf-8")
