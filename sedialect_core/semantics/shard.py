"""A process's part of the video tokens, where a model's sequence is split over processes, and what they tell each other.

What is chosen among all tokens is chosen among those of all processes: each tells the others its scores, a number a token,
and all make the same choice from the same numbers. The inputs of tokens stay where they are. The collectives are torch's
functional ones, which graphs can hold.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ..errors import ModelError


class Shard(NamedTuple):
    """A sequence's part that this process has: the parts follow each other in the order of the ranks. A tuple, since
    torch.compile watches those by their items; torch 2.11 refuses a frozen dataclass.

    group   name of the process group
    uneven  whether parts may differ by a token: then the first ranks have one more (`torch.tensor_split`)
    """

    group: str
    rank: int
    ranks: int
    uneven: bool = False

    def sizes(self, total: int) -> list[int]:
        """Tokens of each process, of `total`."""
        each, more = divmod(total, self.ranks)
        return [each + int(self.uneven and rank < more) for rank in range(self.ranks)]

    def own(self, total: int) -> int:
        """Tokens of this process, of `total`."""
        return self.sizes(total)[self.rank]

    def first(self, total: int) -> int:
        """Place of this process's first token among `total`."""
        return sum(self.sizes(total)[: self.rank])

    def total(self, own: int) -> int:
        """Tokens of all processes, where this one has `own`.

        Raises:
            ModelError: parts may differ, so that one does not tell the others' sizes.
        """
        if self.uneven:
            raise ModelError(
                "ulysses_anything and ring_anything split this model's sequence into parts whose sizes its inputs do not "
                "tell; choose a size that divides evenly and leave them off, or set salient_ratio=0"
            )
        return own * self.ranks

    def gather(self, part: torch.Tensor, total: int) -> torch.Tensor:
        """The tokens of all processes, [B, total], of a number for each of this one's, [B, n]."""
        sizes = self.sizes(total)
        padded = functional.pad(part, (0, max(sizes) - part.shape[1])).contiguous()
        gathered = _wait(torch.ops._c10d_functional.all_gather_into_tensor(padded, self.ranks, self.group))
        parts = gathered.view(self.ranks, *padded.shape).unbind(0)
        return torch.cat([one[:, :size] for one, size in zip(parts, sizes, strict=True)], dim=1)

    def add_up(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return _wait(torch.ops._c10d_functional.all_reduce(part.contiguous(), "sum", self.group))

    def largest(self, part: torch.Tensor) -> torch.Tensor:
        """The largest of all processes' numbers, element by element."""
        return _wait(torch.ops._c10d_functional.all_reduce(part.contiguous(), "max", self.group))

    def counts(self, own: int, device: torch.device) -> list[int]:
        """A number of each process, in the order of the ranks; waits for the GPU."""
        numbers = torch.zeros(self.ranks, dtype=torch.int64, device=device)
        numbers[self.rank] = own
        told: list[int] = self.add_up(numbers).tolist()
        return told

    def mine(self, places: torch.Tensor, total: int) -> torch.Tensor:
        """Which of this process's tokens are among `places`, int64 [B, k] of all `total`: bool [B, n]."""
        none = torch.zeros(places.shape[0], total, dtype=torch.bool, device=places.device)
        return self.part(none.scatter(1, places, True))

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """What belongs to this process's tokens, [B, n], of numbers for all, [B, total]."""
        total = whole.shape[1]
        first = self.first(total)
        return whole[:, first : first + self.own(total)]


def packed(marked: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """The marked of `values`, in order, and then -1, int32 [count]; both of one shape, with `count` marks at most.

    Shapes tell the size of the result, so that nothing waits for a GPU.
    """
    marked = marked.flatten()
    place = torch.where(marked, marked.cumsum(0) - 1, count)  # the last place is for what is not wanted
    result = torch.full((count + 1,), -1, dtype=torch.int32, device=values.device)
    return result.scatter(0, place, values.flatten().int())[:count]


def shard_of(model: Any) -> Shard | None:
    """The part of the sequence that this process has of a model, by diffusers' context parallelism or xDiT's, or None."""
    config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        return _of_xdit(model)
    group = config._flattened_mesh.get_group()
    return Shard(group.group_name, group.rank(), group.size(), config.ulysses_anything or config.ring_anything)


def is_of_xdit(model: Any) -> bool:
    """Whether the model is one of xDiT's classes."""
    return any(base.__module__.startswith("xfuser.") for base in type(model).__mro__)


def _of_xdit(model: Any) -> Shard | None:
    """The same of one of xDiT's classes, which fill a sequence up to a number of tokens that divides evenly."""
    if not is_of_xdit(model):
        return None
    from xfuser.core.distributed import get_sp_group

    group = get_sp_group()
    return Shard(group.device_group.group_name, group.rank_in_group, group.world_size) if group.world_size > 1 else None


def as_arguments(shard: Shard | None) -> tuple[str, int, int, bool]:
    """A part, or none, as arguments of an operator."""
    return ("", 0, 1, False) if shard is None else (shard.group, shard.rank, shard.ranks, shard.uneven)


def from_arguments(group: str, rank: int, ranks: int, uneven: bool) -> Shard | None:
    """What `as_arguments` was given."""
    return Shard(group, rank, ranks, uneven) if group else None


def _wait(started: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops._c10d_functional.wait_tensor(started)
    return result
