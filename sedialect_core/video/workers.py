"""The processes of a run, one a GPU: those that torchrun, accelerate or Slurm have started, or as many, started here."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError

# By whom a process may have been started: variables with its number, how many there are, and its number on its machine.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Slurm's srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # a batch script has the first alone
    "a Slurm array": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", ""),
}


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is.

    local    its number among those on its machine, which is that of its GPU
    device   "cuda" or "cpu"
    meeting  a file by which processes that were started here find each other; empty where variables tell
    """

    rank: int = 0
    processes: int = 1
    local: int = 0
    device: str = "cpu"
    meeting: str = ""

    def own_device(self) -> torch.device:
        """The device of this process, made the current one."""
        if self.device != "cuda":
            return torch.device("cpu")
        device = torch.device("cuda", self.local % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def join(self) -> torch.device:
        """Make a process group with the others; gives the device of this process.

        Raises:
            InputError: nothing tells how they are to find each other.
        """
        import torch.distributed as dist

        address: dict[str, Any] = {"rank": self.rank, "world_size": self.processes}
        if self.meeting:
            address["init_method"] = f"file://{self.meeting}"
        elif "MASTER_ADDR" not in os.environ:
            raise InputError("MASTER_ADDR is not set, so processes cannot find each other; start them with torchrun")
        device = self.own_device()
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device, **address)
        else:
            # Named by its device: diffusers sends sizes by a GPU that torch knows, unless the name says "cpu".
            dist.init_process_group("cpu:gloo", **address)
        return device


def launched(device: str, variables: Mapping[str, str] = os.environ) -> Place | None:
    """The place that a launcher has given this process; None where none has started it, or it alone (as `srun --pty` does).

    Raises:
        InputError: variables of one hold no numbers that fit together.
    """
    for launcher, (rank, count, local) in LAUNCHERS.items():
        if rank not in variables or count not in variables:
            continue
        try:
            number, processes = int(variables[rank]), int(variables[count])
            if "ARRAY" in rank:
                number -= int(variables.get("SLURM_ARRAY_TASK_MIN", 0))
            place = Place(number, processes, int(variables.get(local, number if local else 0)), device)
        except ValueError:
            said = f"{rank}={variables[rank]!r} and {count}={variables[count]!r}"
            raise InputError(f"{said} of {launcher} are no numbers; start the processes by it, or unset both") from None
        if not 0 <= place.rank < place.processes:
            raise InputError(
                f"{rank}={variables[rank]} of {launcher} is none of {processes} processes; number them without gaps, as in "
                "--array=0-7"
            )
        return place if processes > 1 else None
    return None


def run_processes(work: Callable[..., None], processes: int, device: str, *arguments: Any, together: bool = True) -> None:
    """Call `work(place, *arguments)` in as many processes, started here.

    Args:
        together: whether they need each other, so that one that fails ends all; otherwise the others finish.

    Raises:
        InputError: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        meeting = str(Path(folder) / "meeting")
        places = [Place(rank, processes, rank, device, meeting) for rank in range(processes)]
        children = [context.Process(target=_begin, args=(work, place, *arguments)) for place in places]
        for child in children:
            child.start()
        failed = _wait(children, together)
    if failed:
        others = "the others were stopped" if together else "the others have finished"
        raise InputError(f"process {failed[0]} of {processes} failed, and {others}; what it said stands above")


def _begin(work: Callable[..., None], place: Place, *arguments: Any) -> None:
    if place.device == "cpu":
        torch.set_num_threads(1)  # several processes share the CPU
    work(place, *arguments)


def _wait(children: list[Any], together: bool) -> list[int]:
    """Wait for all, or until one has failed if they need each other; those that failed."""
    left = dict(enumerate(children))
    failed: list[int] = []
    try:
        while left and not (together and failed):
            wait([child.sentinel for child in left.values()])
            for rank, child in list(left.items()):
                if child.exitcode is not None:
                    failed += [rank] * bool(child.exitcode)
                    del left[rank]
        return failed
    finally:
        for child in left.values():
            child.terminate()
            child.join()
