"""An arm: one way to run the transformers, as data; and how it is put into a pipeline."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import nn

from ...sedialect_core.calibration.cache import CalibrationCache
from ...sedialect_core.calibration.prompts import GLANCE
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.inspection.denoisers import denoisers
from ...sedialect_core.integrations.pipelines import disable_sedialect, enable_sedialect, sedialect_report
from ...sedialect_core.plan.rules import make_plan
from ...sedialect_core.quantize.apply import set_submodule
from ..peers.calibrated import calibrated_weight
from ..peers.formats import Peer, PeerLinear
from ..smoothing import Sizes, smoothing_of


@dataclass(frozen=True)
class Arm:
    """One way to run the transformers: as they are, with a configuration of ours, or with a peer on the same layers."""

    name: str
    group: str
    config: SeDialectConfig | None = None
    peer: Peer | None = None
    enable: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of `enable_sedialect`."""
    parts: int = 1
    """Into how many batches a batch is cut: with 2, what other arithmetic in the same precision brings about."""
    sampled: bool = True
    """Whether it is worth whole videos; the others have only their velocity error measured, whatever is asked for."""
    every_step: bool = False
    """Whether it must run at every step, also where its velocity is not looked at: it remembers what it saw."""
    calibrated: bool = False
    """Whether weights are encoded with their inputs in view, by one calibration on the bundled prompts for all arms."""
    glanced: bool = False
    """Whether layers are equalized by a glance at one prompt."""
    smoothed: bool = False
    """Whether a peer's inputs are divided, and its weights multiplied, channel by channel by powers of two."""
    quick: bool = False

    def key(self) -> dict[str, Any]:
        """What its results depend on, as JSON."""
        config = None if self.config is None else asdict(self.config)
        peer = None if self.peer is None else [self.peer.name, asdict(self.peer.bits)]
        return {
            "name": self.name,
            "config": config,
            "peer": peer,
            "enable": dict(self.enable),
            "parts": self.parts,
            "calibrated": self.calibrated,
            "glanced": self.glanced,
            "smoothed": self.smoothed,
        }

    def digest(self) -> str:
        """Of the key."""
        return hashlib.sha256(json.dumps(self.key(), sort_keys=True, default=str).encode()).hexdigest()[:8]


class EffectiveBits(NamedTuple):
    """Bits a number in the quantized layers, everything shared counted in."""

    weight: float
    activation: float


class _Replaced(NamedTuple):
    """A layer that a peer stands in for, and whether its activations are rounded, too."""

    model: nn.Module
    name: str
    linear: nn.Linear
    both: bool
    smoothed: bool


@contextmanager
def installed(
    pipe: Any, arm: Arm, calibration: CalibrationCache | None = None, sizes: Mapping[str, Sizes] | None = None
) -> Iterator[EffectiveBits]:
    """The pipeline with an arm in it, and the arm's effective bits; afterwards the pipeline is as it was.

    Args:
        calibration: of this pipeline, for the arms that are calibrated.
        sizes: of the inputs of this pipeline's layers, for the arms that are smoothed.
    """
    used = calibration if arm.calibrated else None
    if arm.config is not None:
        learnt = GLANCE if arm.glanced else used
        enable_sedialect(pipe, arm.config, calibration=learnt, keep_original=True, progress=False, **arm.enable)
        reports = sedialect_report(pipe).models
        try:
            yield EffectiveBits(*(sum(bits) / len(reports) for bits in zip(*map(_bits, reports), strict=True)))
        finally:
            disable_sedialect(pipe)
    elif arm.peer is not None:
        replaced = _install_peer(denoisers(pipe), arm.peer, used, sizes if arm.smoothed else None)
        try:
            yield _peer_bits(replaced, arm.peer)
        finally:
            for one in replaced:
                set_submodule(one.model, one.name, one.linear)
    else:
        yield EffectiveBits(16, 16)


def _bits(report: Any) -> tuple[float, float]:
    return report.weight_bits, report.activation_bits


def _install_peer(
    models: Mapping[str, nn.Module], peer: Peer, calibration: CalibrationCache | None, sizes: Mapping[str, Sizes] | None
) -> list[_Replaced]:
    """Put the peer in the very layers that ours quantizes; where ours leaves the activations alone, so does the peer."""
    replaced = []
    for component, model in models.items():
        statistics = {} if calibration is None else calibration.component(component)
        layers = make_plan(model, SeDialectConfig()).quantized
        smoothing = {} if sizes is None else smoothing_of(model, layers, sizes[component])
        for layer in layers:
            linear = model.get_submodule(layer.name)
            assert isinstance(linear, nn.Linear)
            both = layer.precision != "w4a16"
            scale = smoothing.get(layer.name)
            replaced.append(_Replaced(model, layer.name, linear, both, scale is not None))
            weight = None
            if layer.name in statistics:
                weight = calibrated_weight(linear.weight.detach(), statistics[layer.name], peer)
            set_submodule(model, layer.name, PeerLinear(linear, peer, weight=weight, weights_only=not both, smoothing=scale))
    return replaced


def _peer_bits(replaced: list[_Replaced], peer: Peer) -> EffectiveBits:
    """Where inputs are smoothed, the 8 bits of each channel's exponent are counted among those of the weight."""
    weights = [(one.linear.in_features, one.linear.weight.numel()) for one in replaced]
    inputs = [(one.linear.in_features, one.linear.in_features) for one in replaced if one.both]
    means = [sum(peer.bits.per_element(k) * n for k, n in sizes) / sum(n for _, n in sizes) for sizes in (weights, inputs)]
    exponents = sum(8 * one.linear.in_features for one in replaced if one.smoothed) / sum(n for _, n in weights)
    return EffectiveBits(means[0] + exponents, means[1])
