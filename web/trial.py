"""How a server does: seconds until its page is there and a comparison is made, and whether it keeps what visitors leave.

python -m sedialect.web.trial [--generations 20] [--write docs/app.md]
"""

import argparse
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..sedialect_core.environment import environment, machine_line
from ..sedialect_core.errors import InputError, SeDialectError
from ..sedialect_core.storage.marked import write_marked

START_SECONDS = 120.0
SHORT = 2  # steps of the comparisons after which memory is looked at
PROMPT = "a red ball moves left"
PART = "trial"  # the name of the marks in a document between which the measured lines stand


@dataclass(frozen=True)
class Trial:
    """Seconds until the page, seconds of one comparison as the page proposes it, and bytes held after each short one."""

    page_seconds: float
    comparison_seconds: float
    held: tuple[int, ...]

    def __str__(self) -> str:
        megabytes = [round(one / 1e6) for one in self.held]
        growth = self.held[-1] / self.held[1] - 1
        lines = [
            f"page after {self.page_seconds:.1f} s",
            f"then a comparison, with the rest of the model's loading, in {self.comparison_seconds:.1f} s",
            f"memory after 2 short comparisons {megabytes[1]} MB, after {len(megabytes)} {megabytes[-1]} MB: {growth:+.1%}",
            f"after each: {megabytes}",
        ]
        return "\n".join(lines)


def trial(generations: int) -> Trial:
    """Start `sedialect app` with the bundled model in a process of its own, and be its visitors, one after the other.

    Raises:
        InputError: this is no Linux, Gradio is missing, or the server does not start.
    """
    try:
        from gradio_client import Client
    except ImportError:
        raise InputError("the app needs Gradio; install it: pip install 'sedialect[app]'") from None
    begun = time.monotonic()
    with server() as (process, address), TemporaryDirectory(prefix="sedialect-trial-") as downloads:
        shown = time.monotonic()
        seconds, held = [], []
        for number in range(generations + 1):
            asked: dict[str, Any] = {"prompt": f"{PROMPT} {number}", "seed": number} if number else {"prompt": PROMPT}
            start = time.monotonic()
            client = Client(address, verbose=False, download_files=downloads)
            client.predict(**asked, **({"steps": SHORT} if number else {}), api_name="/compare")
            client.close()
            seconds.append(time.monotonic() - start)
            held.append(resident(process.pid))
    return Trial(shown - begun, seconds[0], tuple(held[1:]))


@contextmanager
def server() -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`sedialect app`, once its page is there, and its address.

    Raises:
        InputError: it ended, or did not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/"
    command = [sys.executable, "-P", "-m", "sedialect", "app", "--port", address.rstrip("/").rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > end:
                raise InputError(f"`{' '.join(command[3:])}` did not start; run it by hand to see why")
            time.sleep(0.1)
        yield process, address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def resident(process: int) -> int:
    """Bytes of memory that a process holds now.

    Raises:
        InputError: this is no Linux.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise InputError("memory is read from /proc, which only Linux has; measure there") from None
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def main() -> int:
    """Measure and print, with machine, versions and date."""
    parser = argparse.ArgumentParser(description="seconds and memory of the app with the bundled model")
    parser.add_argument("--generations", type=int, default=20, help="short comparisons")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="whose marked lines are replaced, too")
    given = parser.parse_args()
    try:
        found = f"```\n{trial(max(2, given.generations))}\n```\n\n{machine_line(environment())}"
        print(found)
        if given.write is not None:
            write_marked(given.write, {PART: found})
    except SeDialectError as error:
        print(f"sedialect: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
