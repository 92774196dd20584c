"""The line of text on the node that is at work."""

from comfy_execution.utils import get_executing_context
from server import PromptServer


def show(text: str) -> None:
    """Show it on the node that runs in this context; outside of one, or without a server, nothing could show it."""
    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


def running_node() -> str:
    """The id of the node that runs in this context; "" outside of one."""
    context = get_executing_context()
    return "" if context is None else str(context.node_id)
