"""What quantizing costs: seconds for all weights of a large model, and memory on the GPU."""

import time
from functools import partial

import torch
from torch import nn

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.integrations.models import quantize_model
from ...sedialect_core.linear import SeDialectLinear
from ...sedialect_core.plan.report import model_bytes
from ...sedialect_core.plan.rules import make_plan
from .block_kinds import Blocks, make_model
from .models import WholeModel
from .timing import collect, peak_memory, timed
from .trials import EAGER, Numbers, Trials

OURS = "w4a4"


def measure_enabling(trials: Trials, models: tuple[WholeModel, ...]) -> None:
    """For each model: all weights encoded where they lie, and the memory of enabling a stack of its blocks."""
    for model in models:
        for kind, lies_on in ((model.blocks, trials.device), (model.small, torch.device("cpu"))):
            case = f"{kind.name}, one block: enabling where it lies on the {lies_on.type}"
            trials.run(case, OURS, EAGER, partial(enabling, kind, lies_on, trials.device))
        for size in (16, 32):
            name = f"{OURS}, B={size}"
            trials.run(f"{model.name}: encoding", name, EAGER, partial(encoding, model, size, trials))


def encoding(model: WholeModel, block_size: int, trials: Trials) -> Numbers:
    """Seconds to encode every weight that is quantized, on the device; of a quarter of the time, as many blocks as fit."""
    device = trials.device
    part = make_model(model.blocks, device)
    layers = make_plan(part, SeDialectConfig()).quantized
    linears = [part.get_submodule(layer.name) for layer in layers]
    _encode(linears[:1], block_size, device)  # what is compiled at the first call is not counted
    spent = [_encode(linears, block_size, device)]
    while len(spent) < model.count and sum(spent) < trials.clock.seconds / 4:
        spent.append(_encode(linears, block_size, device))
    return {
        "s": sum(spent) / len(spent) * model.count,
        "blocks": model.count,
        "blocks measured": len(spent),
        "weights": sum(layer.weights for layer in layers) * model.count,
    }


def _encode(linears: list[nn.Module], block_size: int, device: torch.device) -> float:
    def encode() -> None:
        for linear in linears:
            assert isinstance(linear, nn.Linear)
            SeDialectLinear.from_linear(linear, block_size=block_size)

    return timed(encode, device)[1]


def enabling(kind: Blocks, lies_on: torch.device, device: torch.device) -> Numbers:
    """Peak memory on the GPU while a model of one block becomes a quantized one on the GPU, beside its sizes."""
    collect(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # quantizing looks whether there is room on the GPU
    model = make_model(kind, lies_on)
    before = model_bytes(model)
    largest = max(2 * layer.weights for layer in make_plan(model, SeDialectConfig()).quantized)
    started = time.perf_counter()

    def enable() -> None:
        quantize_model(model, SeDialectConfig(precision=OURS))
        model.to(device)

    memory = peak_memory(enable, device)
    seconds = time.perf_counter() - started
    sizes: Numbers = {"bytes before": before, "bytes after": model_bytes(model), "largest layer, bytes": largest}
    there = before if lies_on == device else 0  # on the GPU already
    return sizes | {"s": seconds} | ({"peak bytes": memory["peak bytes beyond"] + there} if memory else {})
