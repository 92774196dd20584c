"""How a ComfyUI is measured from outside: memory of GPU and process, a GPU of which others hold a part, rows of a table."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

GIB = 1 << 30
EVERY = 0.02  # seconds between two looks at memory
SETTLING = 15.0  # seconds that a server may take to give memory back


@dataclass
class Row:
    """A line of the tables; None where there is nothing to say."""

    section: str
    model: str
    flags: str
    left: str = "all"  # memory of the GPU that this process could have
    run: float | None = None  # seconds of the whole run, loading included
    first: float | None = None  # seconds of the first step; with dynamic VRAM, loading included
    step: float | None = None  # seconds of a later one, the median
    peak: float | None = None  # GiB
    latents: str = ""  # how they compare with those of the same model with all memory
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def number(value: float | None, digits: int = 2) -> str:
    """A number in a table."""
    return "" if value is None else f"{value:.{digits}f}"


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    head = ("model", "flags", "memory left", "whole run, s", "first step, s", "step, s", "peak, GiB", "latents", "")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = (
            row.model,
            row.flags or "none",
            row.left,
            *(number(v) for v in (row.run, row.first, row.step, row.peak)),
            row.latents,
        )
        lines.append("| " + " | ".join((*cells, row.note.replace("\n", " ").replace("|", "/")[:200])) + " |")
    return "\n".join(lines)


def writing_speed(folder: Path, amount: int = GIB) -> float:
    """Bytes a second that a folder's disk takes."""
    path, data = folder / "speed.tmp", b"\0" * (amount // 16)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(16):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return amount / seconds


class Gpu:
    """The memory of a GPU as its driver counts it, less what was taken before; without one, that of a process."""

    def __init__(self, cpu: bool) -> None:
        self.cpu, self.held, self.process = cpu, None, 0
        if not cpu:
            torch.zeros(1, device="cuda")
        self.base = 0 if cpu else self._used()

    def _used(self) -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    @property
    def total(self) -> int:
        """Bytes of the whole GPU."""
        return 0 if self.cpu else torch.cuda.mem_get_info()[1]

    def taken(self) -> int:
        """Bytes that the server holds."""
        if self.cpu:
            return anonymous(self.process)
        return self._used() - self.base - (0 if self.held is None else self.held.numel())

    def leave(self, gib: float | None) -> None:
        """Take all memory but so much, as another program would; None gives it back."""
        self.held = None
        if self.cpu:
            return
        torch.cuda.empty_cache()
        if gib is not None:
            self.held = torch.empty(self.total - self.base - int(gib * GIB), dtype=torch.uint8, device="cuda")


def anonymous(process: int) -> int:
    """Bytes of a process that no file backs; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


class Peak:
    """The most that the server held while the block ran."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.most, self._stop = gpu, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(EVERY):
            self.most = max(self.most, self.gpu.taken())

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def settle(ask: Callable[[], int]) -> int:
    """Wait until a number of bytes falls no more, and return it."""
    end, last, still = time.monotonic() + SETTLING, ask(), 0
    while time.monotonic() < end and still < 4:
        time.sleep(0.25)
        now = ask()
        still = still + 1 if now > last - GIB // 16 else 0
        last = min(last, now)
    return last
