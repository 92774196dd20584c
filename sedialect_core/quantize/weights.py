"""From planned layers to their codes, with what the layers read in view where a calibration knows it.

Layers that read one input are done together: they share its statistics, their factor, and the choice whether to rotate.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ...kernels import reference
from ...kernels.compensation import DAMPING, REFINING, Factor, factorize
from ...kernels.rotation import rotate_moment, rotate_rows
from ..codec import EncodedTensor, encode, encode_compensated
from ..errors import ModelError
from ..formatbook import Formatbook
from ..plan.layers import LayerPlan

JUDGED_ROWS = 256  # of each weight, by which rotating is judged
ROTATED_GAIN = 0.99  # a rotation is taken if at most this part of the error is left: less is not worth its time


@dataclass(frozen=True)
class InputStatistics:
    """What a layer read while a 16-bit pipeline ran.

    moment  float32 [K, K]  X^T X, divided by the number of rows
    peak    float32 [K]     the largest magnitude of each channel
    rows    [R, K]          some of the rows, in the dtype that they had
    count                   rows that the moment is of; equal inputs, such as the text in each step, count once
    """

    moment: torch.Tensor
    peak: torch.Tensor
    rows: torch.Tensor
    count: int


Calibration = Mapping[str, InputStatistics]
"""Statistics by the name of a layer; those that read one input have the same."""


class EncodedLayer(NamedTuple):
    """A layer's weight as it will be stored, and its plan, which says now how that was made."""

    plan: LayerPlan
    encoded: EncodedTensor


@dataclass(frozen=True)
class WeightEncoder:
    """What all layers of a model have in common.

    Args:
        candidates: which dialects an activation block chooses from, as the layer will.
        calibration: None for plain encoding.
        where: what errors put before a layer's name.
    """

    book: Formatbook
    candidates: str = "max"
    calibration: Calibration | None = None
    where: str = ""

    def encode(self, group: Sequence[LayerPlan], weight_of: Callable[[LayerPlan], torch.Tensor]) -> Iterator[EncodedLayer]:
        """Encode layers that read one input. One weight at a time is asked for, on the device on which it is encoded.

        Raises:
            EncodeError: a weight holds NaN or Inf.
            ModelError: the device has too little memory for the moment.
        """
        if self.calibration is None:
            yield from (self._plain(layer, weight_of(layer)) for layer in group)
            return
        statistics = self.calibration.get(plain_name(group[0].name))
        reason = "its inputs were not seen in calibration"
        if statistics is not None and statistics.count:
            try:
                view = self._look(group, statistics, weight_of)
            except torch.OutOfMemoryError:
                raise ModelError(
                    f"{group[0].name}: too little GPU memory to factor the moment of {group[0].in_features} inputs; load "
                    'the model again and quantize on the CPU: pipe.to("cpu") before enable_sedialect(), or --device cpu'
                ) from None
            if view is not None:
                yield from (self._compensated(layer, weight_of(layer), view) for layer in group)
                return
            reason = "its inputs were zero, or not finite, in calibration"
        for layer in group:
            yield self._plain(
                replace(layer, reason=f"{layer.reason}; encoded without calibration: {reason}"), weight_of(layer)
            )

    def _name(self, layer: LayerPlan) -> str:
        return f"{self.where}{layer.name}.weight"

    def _plain(self, layer: LayerPlan, weight: torch.Tensor) -> EncodedLayer:
        settings: dict[str, Any] = {"block_size": layer.block_size or 0, "rotation": layer.rotation}
        return EncodedLayer(layer, encode(weight, formatbook=self.book, name=self._name(layer), **settings))

    def _compensated(self, layer: LayerPlan, weight: torch.Tensor, view: "_View") -> EncodedLayer:
        layer = replace(layer, rotation=view.rotation, compensated=True)
        return EncodedLayer(layer, self._encode(weight, view, layer, REFINING))

    def _encode(self, weight: torch.Tensor, view: "_View", layer: LayerPlan, passes: int) -> EncodedTensor:
        """The codes of some rows of a layer's weight."""
        found = encode_compensated(
            weight,
            view.moment,
            view.factor,
            formatbook=self.book,
            block_size=layer.block_size or 0,
            rotation=view.rotation,
            name=self._name(layer),
            passes=passes,
        )
        return found.encoded

    def _look(
        self, group: Sequence[LayerPlan], statistics: InputStatistics, weight_of: Callable[[LayerPlan], torch.Tensor]
    ) -> "_View | None":
        """The view of the input in which the layers' outputs keep nearest to 16 bit; None where its moment is of no use."""
        device = weight_of(group[0]).device
        size = group[0].block_size or 0
        views = [_View.of(statistics, rotation, size, device) for rotation in sorted({0, *(p.rotation for p in group)})]
        found = [view for view in views if view is not None]
        if len(found) < 2:
            return found[0] if found else None
        plain, rotated = (sum(self._error(layer, weight_of(layer), view) for layer in group) for view in found)
        return found[1] if rotated < ROTATED_GAIN * plain else found[0]

    def _error(self, layer: LayerPlan, weight: torch.Tensor, view: "_View") -> float:
        """Relative squared error of some of a layer's outputs, activations encoded as they will be, on the kept rows."""
        weight = weight[:: max(1, len(weight) // JUDGED_ROWS)].float()
        encoded, weight = self._encode(weight, view, layer, 0), rotate_rows(weight, view.rotation)
        tables = self.book.tables(weight.device)
        read = view.rows
        if layer.precision == "w4a4":
            operand, scale = reference.quantize_rows(read, tables, layer.block_size or 0, self.candidates)
            read = operand * scale.unsqueeze(1)
        elif layer.precision == "w4a8":
            operand, scale = reference.e4m3_rows(read)
            read = operand * scale.unsqueeze(1)
        wanted = functional.linear(view.rows, weight)
        lost = functional.linear(read, encoded.coded_values()) - wanted
        return float(lost.double().square().sum() / wanted.double().square().sum().clamp_min(1e-30))


class _View(NamedTuple):
    """An input's statistics as its layers see it: rotated, or as it is."""

    rotation: int
    moment: torch.Tensor
    factor: Factor
    rows: torch.Tensor

    @classmethod
    def of(cls, statistics: InputStatistics, rotation: int, block_size: int, device: torch.device) -> "_View | None":
        moment, rows = statistics.moment.to(device), rotate_rows(statistics.rows.to(device).float(), rotation)
        if rotation:
            moment = rotate_moment(moment, rotation)
        factor = factorize(moment, block_size, DAMPING * max(1.0, len(moment) / max(1, statistics.count)))
        return None if factor is None else cls(rotation, moment, factor, rows)


def groups_of(layers: Iterable[LayerPlan]) -> list[tuple[LayerPlan, ...]]:
    """Layers by the input that they read, in the order of each input's first layer."""
    groups: dict[str, list[LayerPlan]] = {}
    for layer in layers:
        groups.setdefault(layer.shared_input or f"only {layer.name}", []).append(layer)
    return [tuple(group) for group in groups.values()]


def plain_name(name: str) -> str:
    """A layer's own name where peft has wrapped it."""
    return name.replace(".base_layer", "")
