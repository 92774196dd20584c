"""A plan: what will be done to which layer, and why. Pure data, made before anything is touched."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...kernels.capabilities import EXACT
from ..codec import ROW_SCALE_BITS, effective_bits
from ..config import SeDialectConfig
from ..inspection import TokenLayout


@dataclass(frozen=True)
class LayerPlan:
    """One linear layer: its precision, or None where it stays as it is, and the reason."""

    name: str
    role: str
    in_features: int
    out_features: int
    precision: str | None
    block_size: int | None
    reason: str
    block: str | None = None
    """The transformer block it lies in."""
    stream: str = "other"
    """Whose tokens its rows are, as `LinearSite` has it."""
    shared_input: str | None = None
    """The same for layers that read equal inputs."""
    rotation: int = 0
    """Size of the Hadamard blocks by which weight and inputs are rotated; 0: they are not."""
    equalized: str = ""
    """By which statistics the exponents of its input's channels were chosen: "weights" or "inputs"; "": there are none."""
    calibrated: bool = False
    """Whether the weight was encoded with the layer's inputs in view."""
    salient: str = ""
    """How the tokens are chosen that get a second term: `salient_by`; "text" where all rows are text; "": there are none."""
    grouped: bool = False
    """Whether tokens that belong together share a sub-formatbook."""
    linear: bool = False
    """Whether its attention has no softmax, as `LinearSite` has it."""
    integer_loss: float = 0.0
    """What INT8 units would add to the squared error of its code, as a part of that, where it is too much for them; infinite
    where that is unknown, for the weight is not in memory."""

    @property
    def pattern(self) -> str:
        """The name with stars for numbers: layers that do the same in every block have the same."""
        return starred(self.name)

    @property
    def explanation(self) -> str:
        """The reason, with what was done to the weight besides encoding it."""
        done = [f"equalized by {self.equalized}"] if self.equalized else []
        done += [f"rotated by {self.rotation}"] if self.rotation else []
        done += ["calibrated"] if self.calibrated else []
        return "; ".join([self.reason, *done, *([self._rounded] if self.integer_loss else [])])

    @property
    def _rounded(self) -> str:
        if math.isinf(self.integer_loss):
            return "never on INT8 units: what they would round is unknown, for the weight is not in memory"
        return f"never on INT8 units: they would add {self.integer_loss:.0%} to its error"

    @property
    def outcome(self) -> dict[str, Any]:
        """What encoding may change in a plan."""
        names = ("rotation", "equalized", "calibrated", "reason")
        return {name: getattr(self, name) for name in names}

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        return self.in_features * self.out_features

    def weight_bits(self, original_bits: int) -> float:
        """Effective bits a weight: codes, meta, row scale, equalizer; `original_bits` where the layer is left alone."""
        if self.block_size is None:
            return original_bits
        return effective_bits("weight", self.block_size, self.in_features, self.out_features if self.equalized else None)

    def terms(self, salient_ratio: float) -> float:
        """How many terms a row of its input has, on average."""
        return {"": 1.0, "text": 2.0}.get(self.salient, 1 + salient_ratio)

    def activation_bits(self, salient_ratio: float) -> float:
        """Effective bits of the layer's input; in 8 bit, too, a row has a scale. Tokens with a second term count twice;
        where video and text are joined, the text, which has one too, is not counted."""
        if self.precision == "w4a4" and self.block_size is not None:
            return self.terms(salient_ratio) * effective_bits("activation", self.block_size, self.in_features)
        return 8 + ROW_SCALE_BITS / self.in_features if self.precision == "w4a8" else 16.0


@dataclass(frozen=True)
class AttentionPlan:
    """One module that attends: how its calls run, "8bit", "fp8" or "16bit", and why."""

    name: str
    block: str
    runs: str
    reason: str
    keys: str = ""
    """The linear that makes its keys."""

    @property
    def pattern(self) -> str:
        """As of `LayerPlan`."""
        return starred(self.name)


def starred(name: str) -> str:
    """The name with stars for numbers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


@dataclass(frozen=True)
class Plan:
    """All linear layers of a model, in model order, the settings they were decided by, and what else there is to say.

    attentions  the modules that attend, where they are asked to run in fewer bits; else there are none
    """

    model: str
    family: str
    config: SeDialectConfig
    layers: tuple[LayerPlan, ...]
    token_layout: TokenLayout
    notes: tuple[str, ...] = ()
    attentions: tuple[AttentionPlan, ...] = ()

    @property
    def quantized(self) -> tuple[LayerPlan, ...]:
        """The layers that are rewritten."""
        return tuple(layer for layer in self.layers if layer.precision is not None)

    def products_of(self, layer: LayerPlan) -> str:
        """Which units multiply a layer, as of `capabilities.units_for`."""
        if not layer.integer_loss:
            return self.config.products
        return {"auto": EXACT, "int8": "16bit"}.get(self.config.products, self.config.products)

    @property
    def left_alone(self) -> tuple[LayerPlan, ...]:
        """The layers that stay as they are; each has its reason."""
        return tuple(layer for layer in self.layers if layer.precision is None)

    def __str__(self) -> str:
        """Layers that share everything but the block's number stand in one line."""
        lines = [f"{self.model} ({self.family}): {len(self.quantized)} of {len(self.layers)} linear layers in 4 bit"]
        for count, name, shape, precision, reason in self.groups():
            lines.append(f"  {count:4d} x {name:<44} {shape:>16}  {precision:<7} {reason}")
        for (name, runs, reason), count in self.attention_groups().items():
            lines.append(f"  {count:4d} x {name:<44} {'attention':>16}  {runs.replace('16bit', '16 bit'):<7} {reason}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def groups(self) -> list[tuple[int, str, str, str, str]]:
        """Layers that share everything but the block's number: count, name, shape, precision, reason."""
        counts: dict[tuple[str, str, str, str], int] = {}
        for layer in self.layers:
            shape = f"{layer.in_features} -> {layer.out_features}"
            key = (layer.pattern, shape, layer.precision or "16 bit", layer.explanation)
            counts[key] = counts.get(key, 0) + 1
        return [(count, *key) for key, count in counts.items()]

    def attention_groups(self) -> dict[tuple[str, str, str], int]:
        """How many attentions share everything but the block's number: name, how they run and why."""
        return Counter((one.pattern, one.runs, one.reason) for one in self.attentions)

    @property
    def weight_bits(self) -> float:
        """Effective bits a weight, over the quantized layers."""
        return _mean([(layer.weight_bits(16), layer.weights) for layer in self.quantized])

    @property
    def activation_bits(self) -> float:
        """Effective bits of what the quantized layers read; modulation, which sees one row a sample, aside."""
        layers = [layer for layer in self.quantized if layer.role != "modulation"] or list(self.quantized)
        return _mean([(layer.activation_bits(self.config.salient_ratio), layer.in_features) for layer in layers])


def _mean(pairs: list[tuple[float, int]]) -> float:
    """Mean of the first entries, weighted by the second; 16 of none: bits of what is left alone."""
    if not pairs:
        return 16.0
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
