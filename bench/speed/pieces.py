"""What a compiled block spends its time on: every kernel that the GPU runs, by torch's profiler.

Linear layers and attention are what sedialect makes faster. The rest is norms, modulation, activations and copies, which
torch.compile fuses into kernels of its own.
"""

from functools import partial

import torch

from .arms import Arm
from .block_kinds import Blocks
from .blocks import build_block
from .timing import WARM_UPS, collect, synchronize
from .trials import COMPILED, Numbers, Trials, compiled

CALLS = 5  # profiled calls of a block
# The first kind of which a part stands in a kernel's name. On CPUs, where only the bench is tried, names are operators'.
KINDS = {
    "quantizing queries, keys, values": ("statistics_kernel", "query_kernel", "key_value_kernel"),
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "encoding": ("encode_kernel", "e4m3_kernel"),
    "decoding": ("decode_kernel",),
    "second terms": ("add_kernel",),
    "product": ("gemm", "nvjet", "cutlass", "int8_kernel", "aten::mm", "aten::addmm", "scaled_mm", "triton_tem"),
}
OTHER = "other"


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in kernel for part in parts)), OTHER)


def measure_pieces(trials: Trials, kinds: tuple[Blocks, ...], arms: tuple[Arm, ...], to_compile: set[str]) -> None:
    """A row for each kind of block and arm: milliseconds of a call by the kernel's name."""
    for kind in kinds:
        for arm in arms:
            if arm.name in to_compile and not arm.tunes_itself:
                trials.run(kind.name, arm.name, COMPILED, partial(pieces, kind, arm, trials.device))
                collect(trials.device)


def pieces(kind: Blocks, arm: Arm, device: torch.device) -> Numbers:
    """Milliseconds that each kernel of one call of the arm's compiled block takes."""
    block, _ = build_block(kind, arm, device)
    run, inputs = compiled(block, device), kind.inputs(device, 1)
    for _ in range(WARM_UPS):
        run(*inputs)
    synchronize(device)
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        for _ in range(CALLS):
            run(*inputs)
        synchronize(device)
    events = profile.key_averages()
    spent = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    return {name: microseconds / 1e3 / CALLS for name, microseconds in spent.items() if microseconds > 0}
