"""What visitors can do to a running app: `python tests/helpers/visitors.py`.

Two visitors, 60 posts by callers that vanish, and a third visitor who counts the seconds; then short runs one by one,
and the memory of the server's process.
"""

import argparse
import statistics
import threading
import time
from typing import Any

import httpx
import psutil
from app_server import serving, wait_for

from sedialect.web.app import Served

ASKED = {"prompt": "a ball", "width": 64, "height": 64, "num_frames": 5, "steps": 2}
POSTED = ["a ball", 0, 2, 5.0, 64, 64, 5, "", "default", {}, "", "none"]
MEGABYTE = 1e6


def run(served: Served, session: str) -> float:
    """A visitor's comparison; returns the seconds until it is no longer in line."""
    started, begun = time.monotonic(), None
    for news in served.service.compare(session, dict(ASKED), "default", {}, ""):
        stage = getattr(news, "stage", "")
        if begun is None and not stage.startswith(("in line", "waiting")):
            begun = time.monotonic() - started
    return begun or 0.0


def crowd(served: Served, posts: int) -> dict[str, Any]:
    """Two visitors and the posts; then the line is watched until it is free, and the third visitor comes."""
    visitors = [threading.Thread(target=run, args=(served, name)) for name in ("first", "second")]
    for visitor in visitors:
        visitor.start()
    route = f"{served.address.rstrip('/')}/gradio_api/call/compare"
    codes = [httpx.post(route, json={"data": POSTED}, timeout=60).status_code for _ in range(posts)]
    most = len(served.service.studio._line)
    started = time.monotonic()
    for visitor in visitors:
        visitor.join()
    wait_for(lambda: all(one.stopping for one in served.service.studio._line), "a free line")
    free = time.monotonic() - started
    return {
        "answers": sorted(set(codes)),
        "in line at most": most,
        "free after s": free,
        "third starts after s": run(served, "third"),
    }


def memory(served: Served, runs: int) -> list[float]:
    """Resident megabytes after each run."""
    process, found = psutil.Process(), []
    for number in range(runs):
        run(served, f"visitor {number}")
        found.append(process.memory_info().rss / MEGABYTE)
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="visitors of a running app")
    parser.add_argument("--posts", type=int, default=60)
    parser.add_argument("--runs", type=int, default=30)
    parsed = parser.parse_args()
    with serving() as served:
        for label, value in crowd(served, parsed.posts).items():
            print(f"{label}: {value if isinstance(value, list | int) else format(value, '.1f')}")
        found = memory(served, parsed.runs)
    early, late = (
        statistics.mean(part) for part in (found[parsed.runs // 3 : parsed.runs * 2 // 3], found[parsed.runs * 2 // 3 :])
    )
    print(
        f"memory over {parsed.runs} runs: {found[0]:.0f} MB at first, {early:.0f} in the middle, {late:.0f} at the end "
        f"({late / early - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
