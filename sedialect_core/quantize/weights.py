"""From planned layers to their codes, with what the layers read in view where a calibration knows it.

Layers that read one input are done together: they share its statistics, their factor, their exponents
(`equalization`), and the choice whether to rotate.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ...kernels import reference
from ...kernels.compensation import DAMPING, REFINING, Factor, factorize
from ...kernels.rotation import rotate_moment
from ...kernels.transform import InputTransform, scale_columns, transform_rows, transform_weight
from ..codec import EncodedTensor, encode, encode_calibrated
from ..errors import ModelError
from ..formatbook import Formatbook
from ..inspection.linears import plain_name
from ..plan.layers import LayerPlan
from . import equalization

JUDGED_ROWS = 256  # of each weight, by which equalizing and rotating are judged
ROTATED_GAIN = 0.99  # a rotation is taken if at most this part of the error is left: less is not worth its time


@dataclass(frozen=True)
class InputStatistics:
    """What a layer read while a 16-bit pipeline ran.

    moment  float32 [K, K]  X^T X, divided by the number of rows; or only its diagonal, float32 [K]
    peak    float32 [K]     the largest magnitude of each channel
    rows    [R, K]          some of the rows, in the dtype that they had
    count                   rows that the moment is of; equal inputs, such as the text in each step, count once
    """

    moment: torch.Tensor
    peak: torch.Tensor
    rows: torch.Tensor
    count: int

    @property
    def rms(self) -> torch.Tensor:
        """Root mean square of each channel, float32 [K]."""
        return (self.moment if self.moment.ndim == 1 else self.moment.diagonal()).sqrt()


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
        """Encode layers that read one input. One weight at a time is asked for, on the device on which it is encoded; more
        than once, where exponents or a rotation are chosen by all of them.

        Raises:
            EncodeError: a weight holds NaN or Inf.
            ModelError: the device has too little memory for the moment.
        """
        if len(group) == 1:
            only = weight_of(group[0])
            weight_of = lambda _: only  # noqa: E731
        known = None if self.calibration is None else self.calibration.get(plain_name(group[0].name))
        reason = None if self.calibration is None else "its inputs were not seen in calibration"
        if known is not None and known.count:
            reason = "its inputs were zero, or not finite, in calibration"
            if bool(known.rms.isfinite().all()) and bool(known.rms.any()):
                chosen = self._by_inputs(group, known, weight_of)
                if known.moment.ndim == 1:
                    yield from (self._plain(layer, weight_of(layer), chosen) for layer in group)
                    return
                view = self._look(group, known, weight_of, chosen.exponents)
                if view is not None:
                    yield from (self._calibrated(layer, weight_of(layer), view, chosen.by) for layer in group)
                    return
        chosen = self._by_weights(group, weight_of)
        for layer in group:
            told = (
                layer if reason is None else replace(layer, reason=f"{layer.reason}; encoded without calibration: {reason}")
            )
            yield self._plain(told, weight_of(layer), chosen)

    def _by_weights(self, group: Sequence[LayerPlan], weight_of: Callable[[LayerPlan], torch.Tensor]) -> "_Chosen":
        found = exponents_by_weights(group, weight_of)
        return _Chosen() if found is None else _Chosen(found, "weights")

    def _by_inputs(
        self, group: Sequence[LayerPlan], known: InputStatistics, weight_of: Callable[[LayerPlan], torch.Tensor]
    ) -> "_Chosen":
        """Exponents by which the layers' outputs keep nearest to 16 bit on the kept rows, if they gain anything."""
        if not any(layer.equalized for layer in group):
            return _Chosen()
        norms = equalization.column_norms(weight_of(layer) for layer in group)
        plain = equalization.by_weights(norms)
        choices = [_Chosen(), *([] if plain is None else [_Chosen(plain, "weights")])]
        choices += [_Chosen(found, "inputs") for found in equalization.by_inputs(known.rms, norms)]
        errors = [0.0] * len(choices)
        for layer in group:
            weight = _judged_rows(weight_of(layer))
            for number, choice in enumerate(choices):
                transform = InputTransform(choice.exponents)
                rows = transform_rows(known.rows.to(weight.device).float(), transform)
                encoded = self._plain(layer, weight, choice).encoded
                errors[number] += self._lost(layer, transform_weight(weight, transform), encoded, rows)
        best = min(range(len(choices)), key=errors.__getitem__)
        return choices[best] if errors[best] < equalization.GAIN * errors[0] else choices[0]

    def _name(self, layer: LayerPlan) -> str:
        return f"{self.where}{layer.name}.weight"

    def _plain(self, layer: LayerPlan, weight: torch.Tensor, chosen: "_Chosen") -> EncodedLayer:
        settings: dict[str, Any] = {"block_size": layer.block_size or 0, "rotation": layer.rotation}
        if chosen.exponents is not None:  # each layer has its own: files refuse tensors that share memory
            settings["equalizer"] = chosen.exponents.to(weight.device, copy=True)
        encoded = encode(weight, formatbook=self.book, name=self._name(layer), **settings)
        return EncodedLayer(replace(layer, equalized=chosen.by), encoded)

    def _calibrated(self, layer: LayerPlan, weight: torch.Tensor, view: "_View", by: str) -> EncodedLayer:
        layer = replace(layer, rotation=view.transform.rotation, equalized=by, calibrated=True)
        encoded = self._encode(weight, view, layer, REFINING)
        own = None if encoded.equalizer is None else encoded.equalizer.clone()
        return EncodedLayer(layer, replace(encoded, equalizer=own))

    def _encode(self, weight: torch.Tensor, view: "_View", layer: LayerPlan, passes: int) -> EncodedTensor:
        """The codes of some rows of a layer's weight."""
        found = encode_calibrated(
            weight,
            view.moment,
            view.factor,
            formatbook=self.book,
            block_size=layer.block_size or 0,
            transform=view.transform,
            name=self._name(layer),
            passes=passes,
        )
        return found.encoded

    def _look(
        self,
        group: Sequence[LayerPlan],
        statistics: InputStatistics,
        weight_of: Callable[[LayerPlan], torch.Tensor],
        exponents: torch.Tensor | None,
    ) -> "_View | None":
        """The view of the equalized input in which the layers' outputs keep nearest to 16 bit; None where its moment is of
        no use."""
        device = weight_of(group[0]).device
        exponents = None if exponents is None else exponents.to(device)
        size = group[0].block_size or 0
        wanted = [InputTransform(exponents, rotation) for rotation in sorted({0, *(p.rotation for p in group)})]
        try:
            views = [_View.of(statistics, transform, size, device) for transform in wanted]
        except torch.OutOfMemoryError:
            raise ModelError(
                f"{group[0].name}: too little GPU memory to factor the moment of {group[0].in_features} inputs; load "
                'the model again and quantize on the CPU: pipe.to("cpu") before enable_sedialect(), or --device cpu'
            ) from None
        found = [view for view in views if view is not None]
        if len(found) < 2:
            return found[0] if found else None
        plain, rotated = (sum(self._error(layer, weight_of(layer), view) for layer in group) for view in found)
        return found[1] if rotated < ROTATED_GAIN * plain else found[0]

    def _error(self, layer: LayerPlan, weight: torch.Tensor, view: "_View") -> float:
        """What some of a layer's outputs lose, by the calibrated weight."""
        weight = _judged_rows(weight)
        encoded = self._encode(weight, view, layer, 0)
        return self._lost(layer, transform_weight(weight, view.transform), encoded, view.rows)

    def _lost(self, layer: LayerPlan, weight: torch.Tensor, encoded: EncodedTensor, rows: torch.Tensor) -> float:
        """Relative squared error of outputs, activations encoded as they will be; weight and rows come transformed."""
        tables = self.book.tables(weight.device)
        read = rows
        if layer.precision == "w4a4":
            operand, scale = reference.quantize_rows(read, tables, layer.block_size or 0, self.candidates)
            read = operand * scale.unsqueeze(1)
        elif layer.precision == "w4a8":
            operand, scale = reference.e4m3_rows(read)
            read = operand * scale.unsqueeze(1)
        wanted = functional.linear(rows, weight)
        lost = functional.linear(read, encoded.coded_values()) - wanted
        return float(lost.double().square().sum() / wanted.double().square().sum().clamp_min(1e-30))


def exponents_by_weights(group: Sequence[LayerPlan], weight_of: Callable[[LayerPlan], torch.Tensor]) -> torch.Tensor | None:
    """Exponents, int8 [K], by the columns of the weights [N, K] of layers that read one input; None where the plan wants
    none, or all are 0."""
    if not any(layer.equalized for layer in group):
        return None
    return equalization.by_weights(equalization.column_norms(weight_of(layer) for layer in group))


def _judged_rows(weight: torch.Tensor) -> torch.Tensor:
    return weight[:: max(1, len(weight) // JUDGED_ROWS)].float()


class _Chosen(NamedTuple):
    """Exponents of an input, int8 [K], and by which statistics: "weights" or "inputs"; None and "" for none."""

    exponents: torch.Tensor | None = None
    by: str = ""


class _View(NamedTuple):
    """An input's statistics as its layers see it: equalized, rotated, or as it is."""

    transform: InputTransform
    moment: torch.Tensor
    factor: Factor
    rows: torch.Tensor

    @classmethod
    def of(
        cls, statistics: InputStatistics, transform: InputTransform, block_size: int, device: torch.device
    ) -> "_View | None":
        moment, rows = statistics.moment.to(device), transform_rows(statistics.rows.to(device).float(), transform)
        if transform.equalizer is not None:
            moment = scale_columns(scale_columns(moment, transform.equalizer, -1).T, transform.equalizer, -1).contiguous()
        if transform.rotation:
            moment = rotate_moment(moment, transform.rotation)
        factor = factorize(moment, block_size, DAMPING * max(1.0, len(moment) / max(1, statistics.count)))
        return None if factor is None else cls(transform, moment, factor, rows)


def groups_of(layers: Iterable[LayerPlan]) -> list[tuple[LayerPlan, ...]]:
    """Layers by the input that they read, in the order of each input's first layer."""
    groups: dict[str, list[LayerPlan]] = {}
    for layer in layers:
        groups.setdefault(layer.shared_input or f"only {layer.name}", []).append(layer)
    return [tuple(group) for group in groups.values()]
