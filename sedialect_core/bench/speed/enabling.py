"""What quantizing costs: seconds for all weights of a large model, and memory on the GPU."""

import time
from functools import partial

import torch
from torch import nn

from ...config import SeDialectConfig
from ...integrations.models import quantize_model
from ...linear import SeDialectLinear
from ...plan import make_plan
from ...report import model_bytes
from .block_kinds import make_model
from .models import WholeModel
from .timing import collect, synchronize
from .trials import EAGER, Numbers, Trials

OURS = "w4a4"


def measure_enabling(trials: Trials, models: tuple[WholeModel, ...]) -> None:
    """For each model: all weights encoded where they lie, and the memory of enabling a stack of its blocks."""
    for model in models:
        for size in (16, 32):
            name = f"{OURS}, B={size}"
            trials.run(f"{model.name}: encoding", name, EAGER, partial(encoding, model, size, trials))
        trials.run(f"{model.name}: enabling", OURS, EAGER, partial(enabling, model, trials.device))


def encoding(model: WholeModel, block_size: int, trials: Trials) -> Numbers:
    """Seconds to encode every weight that is quantized, on the device; as many blocks as there is time for."""
    device = trials.device
    part = make_model(model.blocks, device)
    linears = [part.get_submodule(layer.name) for layer in make_plan(part, SeDialectConfig()).quantized]
    _encode(linears[:1], block_size, device)  # what is compiled at the first call is not counted
    spent: list[float] = []
    while len(spent) < model.count and trials.clock.left > 2 * max(spent, default=0):
        spent.append(_encode(linears, block_size, device))
    weights = sum(linear.weight.numel() for linear in linears)  # type: ignore[union-attr, operator]
    return {
        "s": sum(spent) / len(spent) * model.count,
        "blocks": model.count,
        "blocks measured": len(spent),
        "weights": weights * model.count,
    }


def _encode(linears: list[nn.Module], block_size: int, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    for linear in linears:
        assert isinstance(linear, nn.Linear)
        SeDialectLinear.from_linear(linear, block_size=block_size)
    synchronize(device)
    return time.perf_counter() - started


def enabling(model: WholeModel, device: torch.device) -> Numbers:
    """Peak memory on the GPU while a model of one block that lies there is quantized, beside its sizes."""
    collect(device)
    part = make_model(model.blocks, device)
    before = model_bytes(part)
    largest = max(2 * layer.weights for layer in make_plan(part, SeDialectConfig()).quantized)
    base = 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        base = torch.cuda.memory_allocated(device) - before
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    quantize_model(part, SeDialectConfig(precision=OURS))
    synchronize(device)
    seconds = time.perf_counter() - started
    sizes: Numbers = {
        "bytes before": before,
        "bytes after": model_bytes(part),
        "largest layer, bytes": largest,
        "s": seconds,
    }
    if device.type == "cuda":
        sizes["peak bytes"] = torch.cuda.max_memory_allocated(device) - base
    return sizes
