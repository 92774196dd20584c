"""The processes of a run: those that torchrun has started, or as many as there are to be, started here."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...sedialect_core.errors import InputError

LONG = 3600.0


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is. `meeting`: a file by which they find each other; empty where variables tell."""

    rank: int
    processes: int
    device: str
    meeting: str = ""

    def join(self) -> torch.device:
        """Join the others; gives the device of this process."""
        import torch.distributed as dist

        address: dict[str, Any] = {"rank": self.rank, "world_size": self.processes}
        if self.meeting:
            address["init_method"] = f"file://{self.meeting}"
        if self.device != "cuda":
            torch.set_num_threads(1)  # several processes share the CPU
            dist.init_process_group("gloo", **address)
            return torch.device("cpu")
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        device = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, **address)
        return device


def launched() -> Place | None:
    """The place that a launcher has given this process; None where none has started it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def run_processes(work: Callable[..., None], processes: int, device: str, *arguments: Any) -> None:
    """Call `work(place, *arguments)` in each of the processes; where a launcher has started this one, in it alone.

    Raises:
        InputError: a process failed; the others have been stopped.
    """
    place = launched()
    if place is not None:
        work(place, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        meeting = str(Path(folder) / "meeting")
        children = [
            context.Process(target=work, args=(Place(rank, processes, device, meeting), *arguments))
            for rank in range(processes)
        ]
        for child in children:
            child.start()
        failed = _wait(children)
    if failed is not None:
        raise InputError(f"process {failed} of {processes} failed, and the others were stopped; what it said stands above")


def _wait(children: list[Any]) -> int | None:
    """Wait for all; the first that failed, after ending the others, or None."""
    from multiprocessing.connection import wait

    left = dict(enumerate(children))
    try:
        while left:
            wait([child.sentinel for child in left.values()], LONG)
            for rank, child in list(left.items()):
                if child.exitcode is None:
                    continue
                del left[rank]
                if child.exitcode:
                    return rank
        return None
    finally:
        for child in left.values():
            child.terminate()
            child.join()
