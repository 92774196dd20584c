"""Requests that this app has no use for, refused before Gradio reads them."""

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BODY = 1 << 20  # bytes; the longest prompt that is allowed takes a few thousand
UPLOAD, REMOTE_FILE, PROXY = "/upload", "/file=http", "/proxy="


class Guard:
    """ASGI middleware: no uploads, no fetching of other servers' files through this one, no bodies without bound."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        reason = _refusal(scope) if scope["type"] == "http" else None
        if reason is None:
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse(reason, status_code=403)(scope, receive, send)


def _refusal(scope: Scope) -> str | None:
    path = scope["path"]
    if path.rstrip("/").endswith(UPLOAD):
        return "this app takes no files"
    if REMOTE_FILE in path or PROXY in path:
        return "this app fetches nothing from other servers"
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    if scope["method"] == "POST" and (b"transfer-encoding" in headers or not length.isdigit() or int(length) > MAX_BODY):
        return f"a request may have {MAX_BODY} bytes, and must say how many it has"
    return None
