"""What is measured, as data: one line an arm. The runner knows nothing of them but how to put them into a pipeline."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import nn

from ...calibration.cache import CalibrationCache
from ...config import SALIENCES, SeDialectConfig
from ...errors import InputError
from ...integrations.pipelines import SeDialectMixin, denoisers
from ...plan import make_plan
from ...quantize import set_submodule
from ..compensated_peers import compensated_weight
from ..peers import DIALECTFP4, FP8_ROWS, INT4, MXFP4, NVFP4, Peer, PeerLinear

BASE = "w4a4 B=16"  # against which the others are held
# The block format alone: what the arms add to it is what they measure, whatever the defaults of the configuration are.
PLAIN: dict[str, Any] = {"formatbook": "sedialect-32", "salient_ratio": 0.0, "semantic": False, "protected_steps": (0, 0)}


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
    quick: bool = False

    def key(self) -> dict[str, Any]:
        """What its results depend on, as JSON."""
        config = None if self.config is None else self.config.to_dict()
        peer = None if self.peer is None else [self.peer.name, asdict(self.peer.bits)]
        return {
            "name": self.name,
            "config": config,
            "peer": peer,
            "enable": dict(self.enable),
            "parts": self.parts,
            "calibrated": self.calibrated,
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


def arms() -> tuple[Arm, ...]:
    """All arms, in the order of the tables."""
    return (
        Arm("16 bit, other batches", "the noise floor", parts=2, quick=True),
        _peer(FP8_ROWS, quick=True),
        _peer(MXFP4, quick=True),
        _peer(NVFP4, quick=True),
        _peer(INT4, quick=True),
        *map(_peer, DIALECTFP4),
        *(_plain(precision, block_size) for precision in ("w4a16", "w4a8", "w4a4") for block_size in (16, 32)),
        *_selection(),
        *_decomposition(),
        *_semantic(),
        *_protection(),
        *_rotation(),
        *_calibration(),
        *_together(),
    )


def _selection() -> tuple[Arm, ...]:
    group = "books and selection"
    return (
        _ours("universal-32", group, quick=True, formatbook="universal-32"),
        _ours("universal-32, B=32", group, formatbook="universal-32", block_size=32),
        _ours("universal-32, w4a16", group, sampled=False, formatbook="universal-32", precision="w4a16"),
        _ours("all candidates", group, sampled=False, candidates="all"),
        _ours("all candidates, B=32", group, sampled=False, candidates="all", block_size=32),
        _ours("universal-32, all candidates", group, sampled=False, formatbook="universal-32", candidates="all"),
        _ours("book dialectfp4-16", group, sampled=False, formatbook="dialectfp4-16"),
        _ours("book dialectfp4-16, B=32", group, sampled=False, formatbook="dialectfp4-16", block_size=32),
    )


def _decomposition() -> tuple[Arm, ...]:
    """Who chooses, at one ratio; then how many, where and by what."""
    group = "decomposition"
    quarter = (
        _ours(f"25 % of tokens by {by}", group, salient_ratio=0.25, salient_by=by, salient_layers="all") for by in SALIENCES
    )
    ratios = (
        _ours(
            f"{100 * ratio:g} % by {by}, {layers}", group, sampled, salient_ratio=ratio, salient_by=by, salient_layers=layers
        )
        for ratio in (0.05, 0.1, 0.25, 1.0)
        for by, layers, sampled in (("norm", "feed_forward", True), ("norm", "all", False), ("attention", "all", False))
        if (ratio, layers) != (0.25, "all")
    )
    return (*quarter, *ratios)


def _semantic() -> tuple[Arm, ...]:
    group = "semantic assignment"
    windows = ((1, 2, 2), (2, 2, 2), (3, 4, 4))
    return (
        *(_ours(f"window {_times(window)}", group, semantic=True, semantic_window=window) for window in windows),
        *(
            _ours(f"cosine from {cosine}", group, sampled=False, semantic=True, semantic_similarity=cosine)
            for cosine in (0.9, 0.95, 0.999)
        ),
        *(
            _ours(f"refreshed every {steps} steps", group, sampled=False, semantic=True, refresh_every=steps)
            for steps in (1, 2, 10)
        ),
    )


def _protection() -> tuple[Arm, ...]:
    ends = ((1, 1), (2, 2), (4, 0), (0, 4), (4, 4))
    return tuple(_ours(f"first {a} and last {b} steps in w4a8", "protected steps", protected_steps=(a, b)) for a, b in ends)


def _rotation() -> tuple[Arm, ...]:
    return tuple(_ours(f"rotated by {size}", "rotation", sampled=size == 64, rotation=size) for size in (16, 64, 128))


def _calibration() -> tuple[Arm, ...]:
    """Weights that know their activations, ours and the peers', at each precision."""
    group, decomposed = "calibrated weights", {"salient_ratio": 0.25}
    settings: dict[str, dict[str, Any]] = {
        "w4a16": {"precision": "w4a16"},
        "w4a8": {"precision": "w4a8"},
        "w4a4": {},
        "w4a4, 25 % by norm": decomposed,
    }
    ours = (
        _ours(f"{name}, calibrated{rotated}", group, calibrated=True, rotation=size, **chosen)
        for name, chosen in settings.items()
        for rotated, size in (("", 0), (", rotated by 64", 64))
    )
    peers = (Arm(f"{peer.name}, calibrated", group, peer=peer, calibrated=True) for peer in (NVFP4, INT4))
    return (*ours, *peers)


def _together() -> tuple[Arm, ...]:
    """What pays, put together."""
    group = "together"
    both: dict[str, Any] = {"formatbook": "universal-32", "salient_ratio": 0.25}
    return (
        _ours("universal-32, 25 % by norm", group, **both),
        _ours("universal-32, 25 % by norm, protected 2+2", group, protected_steps=(2, 2), **both),
        _ours("universal-32, calibrated", group, calibrated=True, formatbook="universal-32"),
        _ours("universal-32, calibrated, rotated by 64", group, calibrated=True, rotation=64, formatbook="universal-32"),
        _ours("universal-32, calibrated, 25 % by norm", group, calibrated=True, **both),
        _ours(
            "universal-32, calibrated, 25 % by norm, protected 2+2", group, calibrated=True, protected_steps=(2, 2), **both
        ),
        _ours("universal-32, calibrated, w4a8", group, calibrated=True, formatbook="universal-32", precision="w4a8"),
        _ours(
            "universal-32, calibrated, rotated by 64, w4a8",
            group,
            calibrated=True,
            rotation=64,
            formatbook="universal-32",
            precision="w4a8",
        ),
    )


def _times(window: tuple[int, int, int]) -> str:
    return " x ".join(map(str, window))


def _peer(peer: Peer, quick: bool = False) -> Arm:
    return Arm(peer.name, "peers", peer=peer, quick=quick)


def _plain(precision: str, block_size: int) -> Arm:
    config = SeDialectConfig(precision=precision, block_size=block_size, **PLAIN)
    return Arm(f"{precision} B={block_size}", "sedialect-32", config, quick=precision != "w4a8" and block_size == 16)


def _ours(
    name: str, group: str, sampled: bool = True, *, quick: bool = False, calibrated: bool = False, **settings: Any
) -> Arm:
    """w4a4 in blocks of 16 with `sedialect-32` and nothing else, but for these settings."""
    config = SeDialectConfig(**{**PLAIN, **settings})
    remembers = config.semantic or (config.salient_ratio > 0 and "attention" in config.salient_by)
    remembers = remembers or config.protected_steps != (0, 0)
    return Arm(name, group, config, sampled=sampled, every_step=remembers, quick=quick, calibrated=calibrated)


def choose(pattern: str | None, base: str, quick: bool) -> tuple[Arm, ...]:
    """The arms whose name or group the regular expression finds, or the quick ones; the base is always among them.

    Raises:
        InputError: the pattern is no regular expression or finds no arm, or no arm is called like the base.
    """
    known = arms()
    if base not in {arm.name for arm in known}:
        raise InputError(f"no arm {base!r} to compare with; there are {', '.join(arm.name for arm in known)}")
    try:
        find = re.compile(pattern or "", re.IGNORECASE)
    except re.error as error:
        raise InputError(f"--arms {pattern!r} is no regular expression: {error}") from None
    found = [
        arm for arm in known if (arm.quick or not quick or pattern) and (find.search(arm.name) or find.search(arm.group))
    ]
    if not found:
        raise InputError(f"--arms {pattern!r} finds none of {', '.join(arm.name for arm in known)}")
    return tuple(arm for arm in known if arm in found or arm.name == base)


@contextmanager
def installed(pipe: Any, arm: Arm, calibration: CalibrationCache | None = None) -> Iterator[EffectiveBits]:
    """The pipeline with an arm in it, and the arm's effective bits; afterwards the pipeline is as it was.

    Args:
        calibration: of this pipeline, for the arms that are calibrated.
    """
    used = calibration if arm.calibrated else None
    if arm.config is not None:
        SeDialectMixin.enable_sedialect(pipe, arm.config, calibration=used, keep_original=True, progress=False, **arm.enable)
        reports = SeDialectMixin.sedialect_report(pipe).models
        try:
            yield EffectiveBits(*(sum(bits) / len(reports) for bits in zip(*map(_bits, reports), strict=True)))
        finally:
            SeDialectMixin.disable_sedialect(pipe)
    elif arm.peer is not None:
        replaced = _install_peer(denoisers(pipe), arm.peer, used)
        try:
            yield _peer_bits(replaced, arm.peer)
        finally:
            for one in replaced:
                set_submodule(one.model, one.name, one.linear)
    else:
        yield EffectiveBits(16, 16)


def _bits(report: Any) -> tuple[float, float]:
    return report.weight_bits, report.activation_bits


def _install_peer(models: Mapping[str, nn.Module], peer: Peer, calibration: CalibrationCache | None) -> list[_Replaced]:
    """Put the peer in the very layers that ours quantizes; where ours leaves the activations alone, so does the peer."""
    replaced = []
    for component, model in models.items():
        statistics = {} if calibration is None else calibration.component(component)
        for layer in make_plan(model, SeDialectConfig()).quantized:
            linear = model.get_submodule(layer.name)
            assert isinstance(linear, nn.Linear)
            both = layer.precision != "w4a16"
            replaced.append(_Replaced(model, layer.name, linear, both))
            weight = None
            if layer.name in statistics:
                weight = compensated_weight(linear.weight.detach(), statistics[layer.name], peer)
            set_submodule(model, layer.name, PeerLinear(linear, peer, weight=weight, weights_only=not both))
    return replaced


def _peer_bits(replaced: list[_Replaced], peer: Peer) -> EffectiveBits:
    weights = [(one.linear.in_features, one.linear.weight.numel()) for one in replaced]
    inputs = [(one.linear.in_features, one.linear.in_features) for one in replaced if one.both]
    means = (sum(peer.bits.per_element(k) * n for k, n in sizes) / sum(n for _, n in sizes) for sizes in (weights, inputs))
    return EffectiveBits(*means)
