"""What the order of channels is worth: channels of like size in one block (PermuQuant, arXiv 2605.09503), beside
equalization.

For layers of the bundled model, the error of what they give when inputs and weights are rounded to 4 bits: as they are,
with a power of two a channel between them, with channels sorted by size, and with both. Sorting costs nothing where it
can be folded into the rows of the layer before: behind the feed-forward's activation. The other layers say what it
would be worth there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..sedialect_core import demo
from ..sedialect_core.calibration.capture import watching
from ..sedialect_core.codec import encode
from ..sedialect_core.config import SeDialectConfig
from ..sedialect_core.environment import machine_line
from ..sedialect_core.formatbook import Formatbook
from ..sedialect_core.inspection.denoisers import denoisers
from ..sedialect_core.plan.layers import LayerPlan
from ..sedialect_core.plan.rules import make_plan
from ..sedialect_core.video.sampling import Request, generate, load_pipeline
from .outliers import plant_pipeline
from .smoothing import linear_of, measuring_sizes, smoothing_of, targets_in

WAYS = ("as they are", "equalized", "sorted", "equalized, sorted")
ROWS = 256  # of one layer's input, spread over the calls
EVERY_CALL = 8
PLANTED = (1, 32)


@dataclass(frozen=True)
class Layer:
    """A layer, rows that it read [ROWS, K], and the power of two a channel that equalizes it [K]."""

    plan: LayerPlan
    weight: torch.Tensor
    rows: torch.Tensor
    scale: torch.Tensor

    @property
    def kind(self) -> str:
        """Its name inside its block."""
        return self.plan.name.removeprefix(f"{self.plan.block}.")


def errors(layer: Layer, book: Formatbook, block_size: int = 16) -> dict[str, float]:
    """Relative L2 error of rows @ weight.T when both are rounded, by WAYS.

    Channels are sorted by the size of the input, after equalization where there is one.
    """
    wanted = layer.rows @ layer.weight.T
    found = {}
    for way in WAYS:
        scale = layer.scale if "equalized" in way else torch.ones_like(layer.scale)
        rows, weight = layer.rows / scale, layer.weight * scale
        if "sorted" in way:
            order = channel_order(rows)
            rows, weight = rows[:, order], weight[:, order]
        coded = encode(rows, formatbook=book, block_size=block_size, role="activation").dequantize(torch.float32)
        codes = encode(weight, formatbook=book, block_size=block_size, role="weight").dequantize(torch.float32)
        found[way] = float((coded @ codes.T - wanted).norm() / wanted.norm())
    return found


def channel_order(rows: torch.Tensor) -> torch.Tensor:
    """Channels from small to large, [K], by root mean square.

    Once a layer is equalized its inputs and its weight's columns have one order.
    """
    return rows.square().mean(0).argsort()


def study(request: Request, planted: int, every_block: int = 1) -> dict[str, list[dict[str, float]]]:
    """The errors of all layers with 4-bit inputs in every so many blocks of the bundled model, by kind of layer."""
    pipe = load_pipeline(demo.MODEL, torch.float32, "cpu")
    models = denoisers(pipe)
    plant_pipeline(models, planted)
    (component,) = models
    layers = [layer for layer in make_plan(models[component], SeDialectConfig()).quantized if _chosen(layer, every_block)]
    book, found = Formatbook.builtin(), dict[str, list[dict[str, float]]]()
    for layer in _watched(pipe, models[component], component, layers, request):
        found.setdefault(layer.kind, []).append(errors(layer, book))
    return found


def render(found: dict[int, dict[str, list[dict[str, float]]]], where: dict[str, Any]) -> str:
    """A Markdown table for each size of planted outliers, one line a kind of layer and one of all, with the machine."""
    heads = ["layer", *WAYS, "sorting gains", "beyond equalization"]
    parts = []
    for planted, kinds in found.items():
        everything = [errors for layers in kinds.values() for errors in layers]
        lines = [_line(kind, layers) for kind, layers in (*kinds.items(), ("all", everything))]
        rows = [heads, ["---"] * len(heads), *lines]
        title = "No outliers planted" if planted == 1 else f"Outlier channels x{planted} planted"
        parts.append(f"{title}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join([*parts, machine_line(where)])


def _line(kind: str, layers: Sequence[dict[str, float]]) -> list[str]:
    means = {way: sum(errors[way] for errors in layers) / len(layers) for way in WAYS}
    plain, equalized, ordered, both = (means[way] for way in WAYS)
    return [kind, *(f"{means[way]:.4f}" for way in WAYS), f"{1 - ordered / plain:+.1%}", f"{1 - both / equalized:+.1%}"]


def _chosen(layer: LayerPlan, every_block: int) -> bool:
    number = int((layer.block or "0").rsplit(".", 1)[-1])
    return layer.precision == "w4a4" and number % every_block == 0


def _watched(pipe: Any, model: nn.Module, component: str, layers: Sequence[LayerPlan], request: Request) -> list[Layer]:
    """The layers with what they read while the pipeline runs once."""
    parts: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    calls = dict.fromkeys(parts, 0)

    def keep(target: str, rows: torch.Tensor) -> None:
        name = target.removeprefix(f"{component}.")
        calls[name] += 1
        if calls[name] % EVERY_CALL == 1:
            parts[name].append(rows.float()[:: max(1, len(rows) // (ROWS // 4))])

    models, planned = {component: model}, {component: layers}
    kept = watching(models, targets_in(models, planned), 1, keep, rows=None)
    with kept, measuring_sizes(models, planned) as sizes:
        generate(pipe, request, "Watching what layers read", output_type="latent")
    scales = smoothing_of(model, layers, sizes[component])
    found = []
    for layer in layers:
        weight = linear_of(model, layer.name).weight
        rows = torch.cat(parts[layer.name])
        found.append(Layer(layer, weight.detach().float(), rows[:: max(1, len(rows) // ROWS)], scales[layer.name]))
    return found
