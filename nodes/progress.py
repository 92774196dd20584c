"""The bar on a node while it works, and below it what is done and for how long."""

import time
from contextlib import ExitStack

from comfy_api.latest import ComfyAPISync

from ..sedialect_core.progress import Watch, beating
from .comfy import text as comfy_text


class Progress(Watch):
    """Shows a node's work, while it is open: `with Progress("quantizing") as progress`.

    Called with how much is done, of how much; ComfyUI raises in between where the user cancels.
    """

    def __init__(self, label: str) -> None:
        self._api = ComfyAPISync()
        self._open = ExitStack()
        self._label, self._started, self._total = label, time.monotonic(), 0

    def __enter__(self) -> "Progress":
        comfy_text.show(self._label)
        self._open.enter_context(beating(self.on_beat))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __call__(self, done: int, total: int) -> None:
        """Show the bar."""
        self._api.execution.set_progress(value=done, max_value=max(1, total))

    def on_phase(self, label: str, total: int | None = None, unit: str = "it") -> None:
        """Another work begins."""
        self._label, self._started, self._total = label, time.monotonic(), total or 0
        comfy_text.show(label)

    def on_count(self, done: int) -> None:
        """Show the bar."""
        self(done, self._total)

    def on_beat(self) -> None:
        """Show the text alone: the bar's call raises where the user cancels, which is for the thread that works."""
        comfy_text.show(f"{self._label}: {time.monotonic() - self._started:.0f} s")
