"""Requests that this app has no use for, refused before Gradio reads them; headers that keep other sites out of its page."""

import ipaddress
import os
import re
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .listening import SPACE

MAX_BODY = 1 << 20  # bytes; the longest prompt that is allowed takes a few thousand
# Routes of Gradio's for things that this page does not have: files from visitors, recordings, an editor, statistics.
UNUSED = re.compile(
    r"(^|/gradio_api)/(upload|upload_progress|process_recording|stream|vibe-\w+(-\w+)?|undo-vibe-edit|profiling|monitoring|run-history|runs|"
    r"dev|custom_component)(/|$)"
)
REMOTE = re.compile(r"/file[=/]+\s*[a-z][a-z0-9+.-]+:|/proxy[=/]", re.IGNORECASE)
LOCAL = ("localhost", "127.0.0.1", "::1")
SHARED = ".gradio.live"  # names that Gradio's servers give with --share
FRAMES_ON_A_SPACE = "'self' https://huggingface.co https://*.hf.space"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {frames}"
)


class Guard:
    """ASGI middleware: no uploads, no fetching of other servers' files through this one, no bodies without bound.

    Args:
        names: hosts that the page may be asked for by, and no others, so that no other site's name can be made to lead here
            (DNS rebinding); None where any will do, as for a server that is public anyway.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...] | None = None) -> None:
        self.app, self.names = app, names
        frames = FRAMES_ON_A_SPACE if os.environ.get(SPACE) else "'self'"
        self.headers = {
            "Content-Security-Policy": POLICY.format(frames=frames),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
        }
        if frames == "'self'":
            self.headers["X-Frame-Options"] = "SAMEORIGIN"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        reason = self._refusal(scope)
        if reason is None:
            await self.app(scope, receive, with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(reason, status_code=403)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> str | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.names is not None:
            if not _is_one_of(host, self.names):
                return "this app is not served under that name; its operator can allow it with --allowed-host"
            origin = headers.get(b"origin")
            if scope.get("method") == "POST" and origin is not None and urlsplit(origin).netloc != host:
                return "this app takes no requests from the pages of other sites"
        path = scope["path"].replace("\\", "/")
        if UNUSED.search(path):
            return "this app takes no files" if "/upload" in path else "this app has no use for that"
        if REMOTE.search(path):
            return "this app fetches nothing from other servers"
        length = headers.get(b"content-length", "0")
        whole = length.isascii() and length.isdigit() and int(length) <= MAX_BODY
        if scope.get("method") == "POST" and (b"transfer-encoding" in headers or not whole):
            return f"a request may have {MAX_BODY} bytes, and must say how many it has"
        return None


def allowed_names(host: str, share: bool, more: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names that a server's page may be asked for by; None for any.

    Args:
        host: that it is bound to. Bound to this machine alone, it is for this machine's visitors, by this machine's names.
        share: whether Gradio's servers lead to it as well.
        more: what the operator allows besides.
    """
    if not _is_local(host):
        return more or None
    return (*LOCAL, *((SHARED,) if share else ()), *more)


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_one_of(host: str, names: tuple[str, ...]) -> bool:
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".") if host.isprintable() else ""
    return any(name == one.lower() or (one.startswith(".") and name.endswith(one.lower())) for one in names) or (
        bool(name) and LOCAL[1] in names and _is_local(name)
    )
