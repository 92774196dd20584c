"""The app in threads of the test's own process, with small videos, so that tests can look at both sides."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sedialect.web.app import Served, Settings, serve

PATIENCE = 300.0  # seconds until a test gives up waiting: no measure of anything, a busy machine may need minutes
SMALL = {"steps": 2, "frames": 5, "side": 64}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(**offer: Any) -> Iterator[Served]:
    """The bundled model, ready; `offer` changes what is offered."""
    served = serve(Settings(port=free_port(), device="cpu", offer=tuple({**SMALL, **offer}.items())))
    try:
        wait_for(lambda: served.service.studio.ready, "the model")
        yield served
    finally:
        served.close()


def wait_for(true: Any, what: str, seconds: float = PATIENCE) -> None:
    """Until a function says yes."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.05)


def idle(served: Served) -> bool:
    """Whether nobody uses the pipeline, and it is as it was loaded."""
    from sedialect import SeDialectLinear

    studio = served.service.studio
    if not studio._lock.acquire(blocking=False):
        return False
    studio._lock.release()
    return not any(isinstance(module, SeDialectLinear) for module in studio._pipe.transformer.modules())
