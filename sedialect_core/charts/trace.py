"""What every layer chose at every step of a run: recorded beside it, for people to look at.

Recording encodes every input a second time, so a traced run is slower than it need be: never time one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...kernels.transform import transform_rows
from ..codec import encode
from ..inspection import TokenLayout, layout_of
from ..inspection.timesteps import TimestepClock
from ..linear import SeDialectLinear

DIALECT = 31  # the bits of a meta entry that hold the dialect
CELLS = 8_000_000  # of all maps of one kind together; larger grids are thinned out to that

Map = npt.NDArray[np.float16]  # [T, H, W], one number a token
Grid = tuple[int, int, int]


@dataclass
class LayerStep:
    """One layer in one step: how many blocks chose each dialect, and maps over the video's tokens by what they show.

    `error` is |Q(x) - x| / |x| of each token, the weights left aside. Where attention is looked at, `saliency` is what each
    token receives of it, `group` the number of its group or -1, and `shapes` the set of shapes that its group took most, as
    bits.
    """

    counts: list[int]
    maps: dict[str, Map] = field(default_factory=dict)


@dataclass
class Trace:
    """All layers, by component and name, and their steps in order.

    weights  how many blocks of each layer's weight are in each dialect
    grid     frames, rows and columns of video tokens; None where the model does not tell
    """

    dialects: int
    weights: dict[str, list[int]] = field(default_factory=dict)
    steps: dict[str, list[LayerStep]] = field(default_factory=dict)
    grid: Grid | None = None


@contextmanager
def tracing(models: Mapping[str, nn.Module], steps: int) -> Iterator[Trace]:
    """Record every 4-bit input of quantized models while the block runs; of several samples the last, of several forwards of
    one step the first: with guidance, the one with the prompt.

    Args:
        steps: of the run, to know how much there will be to keep.
    """
    layers = {
        f"{component}.{name}": module
        for component, model in models.items()
        for name, module in model.named_modules()
        if isinstance(module, SeDialectLinear)
    }
    first = next(iter(layers.values()))
    trace = Trace(len(first.formatbook.dialects))
    handles = []
    try:
        for component, model in models.items():
            clock = _Clock(layout_of(model), trace)
            handles.append(model.register_forward_pre_hook(clock, with_kwargs=True))
            for name, layer in layers.items():
                if name.startswith(f"{component}."):
                    trace.weights[name] = _count(layer.weight_meta, trace.dialects)
                    if layer.precision == "w4a4":
                        recorder = _Recorder(trace, name, clock, CELLS // (steps * len(layers)))
                        handles.append(layer.register_forward_pre_hook(recorder))
        yield trace
    finally:
        for handle in handles:
            handle.remove()


class _Clock:
    """A transformer's forward pre-hook: which step it is, which forward of it, and on what grid."""

    def __init__(self, layout: TokenLayout, trace: Trace) -> None:
        self.layout, self.trace = layout, trace
        self.steps, self.first_forward = TimestepClock(), True

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.first_forward = self.steps.advance(kwargs.get("timestep"))
        if self.first_forward:
            known = self.layout.for_inputs(kwargs)
            self.layout, self.trace.grid = known, known.grid


class _Recorder:
    """A layer's forward pre-hook."""

    def __init__(self, trace: Trace, name: str, clock: _Clock, cells: int) -> None:
        self.clock, self.cells = clock, max(64, cells)
        self.kept = trace.steps.setdefault(name, [])
        self.dialects = trace.dialects

    def __call__(self, layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if not self.clock.first_forward:
            return
        assert isinstance(layer, SeDialectLinear)
        x = args[0].detach()
        rows = x.reshape(-1, *x.shape[-2:])[-1].float() if x.ndim > 1 else x.view(1, -1).float()
        rows = transform_rows(rows, layer.transform)
        settings: dict[str, Any] = {
            "formatbook": layer.formatbook,
            "block_size": layer.block_size,
            "candidates": layer.candidates,
        }
        encoded = encode(rows, role="activation", **settings)
        step = LayerStep(_count(encoded.meta, self.dialects))
        places = self._places(len(rows))
        if places is not None:
            error = (encoded.dequantize() - rows).norm(dim=1) / rows.norm(dim=1).clamp_min(1e-30)
            step.maps["error"] = _map(error, places)
            step.maps.update({name: _map(values, places) for name, values in evidence(layer, len(rows)).items()})
        self.kept.append(step)

    def _places(self, length: int) -> torch.Tensor | None:
        """Rows of the tokens of the maps, [T, H, W]; None where the rows are not the video's tokens alone."""
        grid = self.clock.layout.grid
        if grid is None or length != self.clock.layout.video_tokens:
            return None
        frames, height, width = grid
        thinning = max(1, int(np.ceil(np.sqrt(frames * height * width / self.cells))))
        axes = [torch.arange(frames), torch.arange(0, height, thinning), torch.arange(0, width, thinning)]
        t, h, w = torch.meshgrid(*axes, indexing="ij")
        return self.clock.layout.token_index(t, h, w)


def evidence(layer: SeDialectLinear, tokens: int) -> dict[str, torch.Tensor]:
    """What the layer's guide knows of its video tokens, as one number a token: `saliency`, `group`, `shapes`."""
    attention, found = getattr(layer.guide, "attention", None), dict[str, torch.Tensor]()
    if attention is None:
        return found
    block, groups = attention.block, attention.groups
    if block.received.shape[-1] == tokens:
        found["saliency"] = block.received[0, -1]
    if groups is not None and groups.group.shape[-1] == tokens:
        group = groups.group[0, -1].long()
        found["group"] = group
        most = groups.choice[0].long().mode(dim=1).values
        found["shapes"] = torch.where(group < 0, -1, most[group.clamp_min(0)])
    return found


def _count(meta: torch.Tensor, dialects: int) -> list[int]:
    return torch.bincount((meta.to(torch.int64) & DIALECT).flatten(), minlength=dialects).tolist()


def _map(values: torch.Tensor, places: torch.Tensor) -> Map:
    return values.float().cpu()[places].numpy().astype(np.float16)
