"""What is measured, as data: one line an arm. The runner knows nothing of them but how to put them into a pipeline."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import nn

from ...config import SeDialectConfig
from ...errors import InputError
from ...integrations.pipelines import SeDialectMixin, denoisers
from ...plan import make_plan
from ...quantize import set_submodule
from ..peers import DIALECTFP4, FP8_ROWS, INT4, MXFP4, NVFP4, Peer, PeerLinear

BASE = "w4a4 B=16"  # the default preset, against which the others are held


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
    quick: bool = False

    def key(self) -> dict[str, Any]:
        """What its results depend on, as JSON."""
        config = None if self.config is None else self.config.to_dict()
        peer = None if self.peer is None else [self.peer.name, asdict(self.peer.bits)]
        return {"name": self.name, "config": config, "peer": peer, "enable": dict(self.enable), "parts": self.parts}

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
        _ours("all candidates", "selection", candidates="all"),
        _ours("all candidates, B=32", "selection", candidates="all", block_size=32),
        _ours("book dialectfp4-16", "selection", formatbook="dialectfp4-16"),
        _ours("book dialectfp4-16, B=32", "selection", formatbook="dialectfp4-16", block_size=32),
        _ours("rotated by 16", "rotation", rotation=16, sampled=False),
        _ours("rotated by 64", "rotation", rotation=64),
        _ours("rotated by 64, B=32", "rotation", rotation=64, block_size=32),
        _ours("rotated by 128", "rotation", rotation=128, sampled=False),
    )


def _peer(peer: Peer, quick: bool = False) -> Arm:
    return Arm(peer.name, "peers", peer=peer, quick=quick)


def _plain(precision: str, block_size: int) -> Arm:
    config = SeDialectConfig(precision=precision, block_size=block_size)
    return Arm(f"{precision} B={block_size}", "sedialect-32", config, quick=precision != "w4a8" and block_size == 16)


def _ours(name: str, group: str, sampled: bool = True, **settings: Any) -> Arm:
    """w4a4 in blocks of 16, but for these settings."""
    return Arm(name, group, SeDialectConfig(**settings), sampled=sampled)


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
def installed(pipe: Any, arm: Arm) -> Iterator[EffectiveBits]:
    """The pipeline with an arm in it, and the arm's effective bits; afterwards the pipeline is as it was."""
    if arm.config is not None:
        SeDialectMixin.enable_sedialect(pipe, arm.config, keep_original=True, progress=False, **arm.enable)
        reports = SeDialectMixin.sedialect_report(pipe).models
        try:
            yield EffectiveBits(*(sum(bits) / len(reports) for bits in zip(*map(_bits, reports), strict=True)))
        finally:
            SeDialectMixin.disable_sedialect(pipe)
    elif arm.peer is not None:
        replaced = _install_peer(denoisers(pipe), arm.peer)
        try:
            yield _peer_bits(replaced, arm.peer)
        finally:
            for one in replaced:
                set_submodule(one.model, one.name, one.linear)
    else:
        yield EffectiveBits(16, 16)


def _bits(report: Any) -> tuple[float, float]:
    return report.weight_bits, report.activation_bits


def _install_peer(models: Mapping[str, nn.Module], peer: Peer) -> list[_Replaced]:
    """Put the peer in the very layers that ours quantizes; where ours leaves the activations alone, so does the peer."""
    replaced = []
    for model in models.values():
        for layer in make_plan(model, SeDialectConfig()).quantized:
            linear = model.get_submodule(layer.name)
            assert isinstance(linear, nn.Linear)
            both = layer.precision != "w4a16"
            replaced.append(_Replaced(model, layer.name, linear, both))
            set_submodule(model, layer.name, PeerLinear(linear, peer, weights_only=not both))
    return replaced


def _peer_bits(replaced: list[_Replaced], peer: Peer) -> EffectiveBits:
    weights = [(one.linear.in_features, one.linear.weight.numel()) for one in replaced]
    inputs = [(one.linear.in_features, one.linear.in_features) for one in replaced if one.both]
    means = (sum(peer.bits.per_element(k) * n for k, n in sizes) / sum(n for _, n in sizes) for sizes in (weights, inputs))
    return EffectiveBits(*means)
