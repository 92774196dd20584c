"""What 8-bit numbers would save in the four all-to-alls of one self-attention, with what encoding and decoding cost."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives

from ..speed.timing import summary, synchronize, time_each
from .cases import Case
from .forecast import EXCHANGES

CALLS, WARM_UPS = 20, 3
LARGEST = 448.0  # of E4M3
SCALE_BYTES = 4  # a float32 beside the numbers of a token and head
SIXTEEN, EIGHT, CODING, OFF = "BF16, s", "FP8, s", "coding, s", "FP8, distance"


def parted(x: torch.Tensor, ranks: int) -> torch.Tensor:
    """[N, H, D] of this process's tokens by whose heads they are: [ranks, N, H / ranks, D]."""
    return x.unflatten(1, (ranks, -1)).transpose(0, 1).contiguous()


def encoded(x: torch.Tensor, ranks: int) -> torch.Tensor:
    """The same in E4M3 with a scale a token and head, as bytes [ranks, N, H / ranks, D + 4]."""
    parts = x.unflatten(1, (ranks, -1)).transpose(0, 1).float()
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    codes = (parts / scale).to(torch.float8_e4m3fn)
    scale_bytes = scale.view(torch.int32) >> _shifts(x.device)
    return torch.cat([codes.view(torch.uint8), (scale_bytes & 255).to(torch.uint8)], dim=-1)


def decoded(received: torch.Tensor) -> torch.Tensor:
    """bfloat16 [..., D] of what `encoded` gave."""
    codes, scale_bytes = received[..., :-SCALE_BYTES], received[..., -SCALE_BYTES:].int()
    scale = (scale_bytes << _shifts(received.device)).sum(-1, keepdim=True, dtype=torch.int32).view(torch.float32)
    return (codes.contiguous().view(torch.float8_e4m3fn).float() * scale).to(torch.bfloat16)


def _shifts(device: torch.device) -> torch.Tensor:
    """Of a scale's bytes: a view as bytes needs a last stride of 1, which a compiler may lay out in another way."""
    return torch.arange(0, 8 * SCALE_BYTES, 8, dtype=torch.int32, device=device)


def exchange(x: torch.Tensor, group: Any) -> torch.Tensor:
    """An all-to-all over the first axis."""
    received: torch.Tensor = collectives.wait_tensor(collectives.all_to_all_single(x.flatten(), None, None, group))
    return received.view(x.shape)


def measure_wire(case: Case, device: torch.device, group: Any) -> dict[str, float]:
    """Seconds of four all-to-alls in bfloat16, and in E4M3 with its coding; of the coding alone; and how far E4M3 is off."""
    ranks = dist.get_world_size(group)
    torch.manual_seed(2)
    shape = (case.tokens // ranks, case.width // case.head_size, case.head_size)
    x = torch.randn(*shape, device=device, dtype=torch.bfloat16)
    compiles = device.type == "cuda"
    functions: list[Any] = [parted, encoded, decoded]
    part, encode, decode = (torch.compile(one, dynamic=False) if compiles else one for one in functions)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        SIXTEEN: lambda: exchange(part(x, ranks), group),
        EIGHT: lambda: decode(exchange(encode(x, ranks), group)),
        CODING: lambda: decode(encode(x, ranks)),
    }
    wanted, found = ways[SIXTEEN]().double(), ways[EIGHT]().double()
    numbers = {name: EXCHANGES * _seconds(way, device) for name, way in ways.items()}
    return numbers | {OFF: float((found - wanted).norm() / wanted.norm())}


def _seconds(way: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Of the median call; all processes make as many."""
    for _ in range(WARM_UPS):
        way()
    synchronize(device)
    dist.barrier()
    return summary(time_each(lambda _: way(), [None] * CALLS, device), 0.0).median / 1e3
