"""Whose run it is, and whether anybody waits for it still."""

import ipaddress
import os
import threading
import time
from typing import Any

PATIENCE = 8.0  # seconds that messages may lie unread before a run is ended
UNREAD = 3  # messages that may lie unread at any time
SPACE = "SPACE_ID"  # set where Hugging Face runs a Space: there, its proxy is who calls


class Listeners:
    """Visitors by session: their addresses, and whether they read what they are told.

    Gradio ends a run whose page was closed, or whose stream was broken off. Of a caller that posts and never opens a stream
    it does not know; what is told to it stays unread, and that is what is looked at here.
    """

    def __init__(self) -> None:
        self._page: Any = None
        self._addresses: dict[str, str] = {}
        self._read: dict[str, float] = {}
        self._lock = threading.Lock()

    def attach(self, page: Any) -> None:
        """Look at the messages of this page's server."""
        self._page = page  # its queue is another one once it is served

    def session_of(self, request: Any) -> str:
        """A caller's session; its address is remembered."""
        session: str = request.session_hash or ""
        with self._lock:
            self._addresses[session] = address_of(request)
            while len(self._addresses) > 1024:
                self._addresses.pop(next(iter(self._addresses)))
        return session

    def address(self, session: str) -> str:
        """Where a session calls from; "" where that says nothing, as on the server's own machine."""
        return self._addresses.get(session, "")

    def begins(self, session: str) -> None:
        """A run begins, and the time in which nothing was read with it."""
        self._read[session] = time.monotonic()

    def ends(self, session: str) -> None:
        """The run is over."""
        self._read.pop(session, None)

    def gone(self, session: str) -> bool:
        """Whether nobody has read what this session is told for a while."""
        if self._page is None or not session:
            return False
        messages = self._page._queue.pending_messages_per_session.get(session)
        now = time.monotonic()
        if messages is not None and messages.qsize() <= UNREAD:
            self._read[session] = now
        return now - self._read.get(session, now) > PATIENCE


def address_of(request: Any) -> str:
    """The address that a request comes from; "" for this machine itself, behind which anybody may stand."""
    client = getattr(request, "client", None)
    found = str(getattr(client, "host", "") or "")
    if os.environ.get(SPACE):
        found = str(request.headers.get("x-forwarded-for", "")).rpartition(",")[2].strip()
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return "" if address.is_loopback else str(ipaddress.ip_network((address, 64), strict=False))  # one household
    mapped = getattr(address, "ipv4_mapped", None) or address
    return "" if mapped.is_loopback else str(mapped)
