"""The bar on a node while it works."""

from comfy_api.latest import ComfyAPISync


class Progress:
    """Called with how much is done, of how much; ComfyUI raises in between where the user cancels."""

    def __init__(self) -> None:
        self._api = ComfyAPISync()

    def __call__(self, done: int, total: int) -> None:
        """Show it."""
        self._api.execution.set_progress(value=done, max_value=max(1, total))
