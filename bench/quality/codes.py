"""Do tokens that nearly repeat get the same codes? Looked at while an arm is led along the 16-bit trajectory.

Groups are tokens at one place of neighbouring latent frames. What an arm's semantic assignment groups is its own affair: all
arms are asked about the same pairs of tokens.
"""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ...kernels import ops
from ...kernels.guidance import UNGUIDED
from ...kernels.transform import transform_rows
from ...sedialect_core.inspection import TokenLayout, layout_of
from ...sedialect_core.linear import ACTIVATION_BITS, SeDialectLinear
from ...sedialect_core.video.metrics import difference_error, same_code_rate
from ..peers.formats import PeerLinear

MEASURES = {"same_code": same_code_rate, "difference_error": difference_error}


class CodeWatch:
    """Same-code rate and difference error of every quantized layer that reads video tokens, at chosen steps."""

    def __init__(self, models: Mapping[str, nn.Module], pairs: int, metrics: Sequence[str]) -> None:
        self.models = models if "same_code" in metrics else {}
        self.pairs = pairs
        self.steps: frozenset[int] = frozenset()
        self.now = -1
        self.found: dict[str, list[torch.Tensor]] = {name: [] for name in MEASURES}
        self.handles: list[Any] = []
        self.last: torch.Tensor | None = None
        self.layout = TokenLayout("unknown", (1, 1, 1))

    def at_step(self, step: int) -> None:
        """A call at this step begins."""
        self.now, self.last = step, None

    def __enter__(self) -> "CodeWatch":
        for model in self.models.values():
            layout = layout_of(model)
            self.handles.append(model.register_forward_pre_hook(self._reader(layout), with_kwargs=True))
            for layer in model.modules():
                if isinstance(layer, SeDialectLinear | PeerLinear):
                    self.handles.append(layer.register_forward_pre_hook(self._look))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self.handles:
            handle.remove()

    def values(self) -> list[dict[str, float | list[float]]]:
        """Means over layers and steps for each pair of prompt and seed; nothing where nothing was looked at."""
        means = {name: torch.cat(parts).nanmean(0).tolist() for name, parts in self.found.items() if parts}
        return [{name: column[pair] for name, column in means.items()} for pair in range(self.pairs)]

    def _reader(self, layout: TokenLayout) -> Any:
        def read(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.layout = layout.for_inputs(kwargs)

        return read

    def _look(self, layer: SeDialectLinear | PeerLinear, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0]
        grid = self.layout.grid
        if self.now not in self.steps or grid is None or x is self.last:
            return
        if x.ndim != 3 or x.shape[1] != math.prod(grid) or len(x) % self.pairs:
            return
        self.last = x  # layers that read the same input are looked at once
        coded = coded_input(layer, x)
        if coded is None:
            return
        groups = _places(self.layout, x.device)
        for name, measure in MEASURES.items():  # where guidance doubles the batch, both branches are of one pair
            self.found[name].append(measure(*coded, groups).view(-1, self.pairs))


def coded_input(layer: SeDialectLinear | PeerLinear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The input [B, N, K] as a layer's codes stand for it, and what they decode to, both float32; None where it has none."""
    if isinstance(layer, PeerLinear):
        return x.float(), layer.activation(x.float())
    if layer.precision == "w4a16":
        return None
    rows = x.reshape(-1, x.shape[-1])
    guidance = UNGUIDED if layer.guide is None else layer.guide(x, layer.transform)
    operand, scale = ops.encode(
        rows,
        layer.formatbook.tables(x.device).operands,
        layer.block_size,
        ACTIVATION_BITS[layer.precision],
        layer.candidates,
        guidance,
        layer.transform,
    )
    decoded = operand.float() * scale.unsqueeze(1)
    quantized = decoded[: len(rows)]
    if guidance.salient is not None:
        quantized = quantized.index_add(0, guidance.salient, decoded[len(rows) :])
    values = transform_rows(rows.float(), layer.transform)
    return values.view(x.shape), quantized.view(x.shape)


def _places(layout: TokenLayout, device: torch.device) -> torch.Tensor:
    """The place in its frame of every video token, int64 [T*H*W]: a group is one place over time."""
    assert layout.grid is not None
    frames, height, width = layout.grid
    t, h, w = (torch.arange(size, device=device) for size in (frames, height, width))
    index = layout.token_index(t.view(-1, 1, 1), h.view(1, -1, 1), w.view(1, 1, -1))
    place = (h.view(1, -1, 1) * width + w.view(1, 1, -1)).expand(frames, height, width)
    groups = torch.empty(frames * height * width, dtype=torch.int64, device=device)
    groups[index.expand_as(place).flatten()] = place.flatten()
    return groups
