"""What is measured: every arm, in the order of the tables."""

import re
from dataclasses import replace
from typing import Any

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError
from ...sedialect_core.plan.tokens import needs_profile
from ...sedialect_core.settings.table import SALIENCES
from ..peers.formats import DIALECTFP4, FOUR_OVER_SIX, FP8_ROWS, INT4, MXFP4, NVFP4, Peer
from .arms import Arm

BASE = "w4a4 B=16"  # the block format alone, against which the others are held
# What is not said of an arm. All settings are named, for what arms measure must not depend on defaults that follow from it.
PLAIN: dict[str, Any] = {
    "precision": "w4a4",
    "block_size": 16,
    "formatbook": "sedialect-32",
    "candidates": "max",
    "modulation": "w4a16",
    "rotation": 0,
    "equalize": False,
    "salient_ratio": 0.0,
    "salient_by": "norm",
    "salient_layers": "feed_forward",
    "semantic": False,
    "semantic_window": (2, 2, 2),
    "semantic_spacing": (0, 0, 0),
    "semantic_quantile": 0.5,
    "semantic_similarity": 0.995,
    "semantic_sharing": "sub-formatbook",
    "refresh_every": 5,
    "refresh_at": (),
    "protected_steps": (0, 0),
    "attention": "16bit",
    "products": "auto",
}
# What weights meet that are rotated, calibrated, or both.
WAYS: dict[str, dict[str, Any]] = {
    "w4a16": {"precision": "w4a16"},
    "w4a8": {"precision": "w4a8"},
    "w4a4": {},
    "w4a4, 25 % by norm, feed-forward": {"salient_ratio": 0.25},
}
# The presets, spelled out; a test holds them to `SeDialectConfig.preset`.
UNIVERSAL = "universal-32"
DEFAULT: dict[str, Any] = {"formatbook": UNIVERSAL, "salient_ratio": 0.25, "equalize": True}
PRESETS: dict[str, dict[str, Any]] = {
    "default": DEFAULT,
    "compact": {**DEFAULT, "block_size": 32},
    "quality": {**DEFAULT, "precision": "w4a8"},
    "weight-only": {**DEFAULT, "precision": "w4a16"},
}


PLAIN_PRESET: dict[str, Any] = {"equalize": True}


def arms() -> tuple[Arm, ...]:
    """All arms."""
    return (
        Arm("16 bit, other batches", "the noise floor", parts=2, quick=True),
        _peer(FP8_ROWS, quick=True),
        _peer(MXFP4, quick=True),
        _peer(NVFP4, quick=True),
        _peer(FOUR_OVER_SIX, quick=True),
        _peer(INT4, quick=True),
        *map(_peer, DIALECTFP4),
        *_smoothed_peers(),
        *(_plain(precision, block_size) for precision in ("w4a16", "w4a8", "w4a4") for block_size in (16, 32)),
        *_presets(),
        *_selection(),
        *_decomposition(),
        *_semantic(),
        *_protection(),
        *_few_steps(),
        *_equalization(),
        *_rotation(),
        *_calibration(),
        *_attention(),
        *_products(),
    )


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


def _presets() -> tuple[Arm, ...]:
    """As users get them, without and with calibration."""
    plain = (_ours(f"preset {name}", "presets", quick=name == "default", **settings) for name, settings in PRESETS.items())
    calibrated = (
        _ours(f"preset {name}, calibrated", "presets", calibrated=True, **settings) for name, settings in PRESETS.items()
    )
    return (*plain, *calibrated)


def _selection() -> tuple[Arm, ...]:
    group = "books and selection"
    return (
        _ours("universal-32", group, formatbook=UNIVERSAL),
        _ours("universal-32, B=32", group, formatbook=UNIVERSAL, block_size=32),
        _ours("all candidates", group, sampled=False, candidates="all"),
        _ours("all candidates, B=32", group, sampled=False, candidates="all", block_size=32),
        _ours("universal-32, all candidates", group, sampled=False, formatbook=UNIVERSAL, candidates="all"),
        _ours("book dialectfp4-16", group, sampled=False, formatbook="dialectfp4-16"),
        _ours("book dialectfp4-16, B=32", group, sampled=False, formatbook="dialectfp4-16", block_size=32),
    )


def _decomposition() -> tuple[Arm, ...]:
    """Who chooses, at three ratios; where; and all tokens, for which nobody need choose."""
    group = "decomposition"
    everywhere = (
        _ours(
            f"{100 * ratio:g} % by {by}",
            group,
            sampled=ratio == 0.25,
            salient_ratio=ratio,
            salient_by=by,
            salient_layers="all",
        )
        for ratio in (0.05, 0.1, 0.25)
        for by in SALIENCES
    )
    feed_forward = (
        _ours(f"{100 * ratio:g} % by norm, feed-forward", group, salient_ratio=ratio)
        for ratio in (0.05, 0.1, 0.25, 0.5, 1.0)
    )
    by_error = (
        _ours(f"{100 * ratio:g} % by error, feed-forward", group, sampled=False, salient_ratio=ratio, salient_by="error")
        for ratio in (0.1, 0.25)
    )
    return (*everywhere, _ours("100 %", group, salient_ratio=1.0, salient_layers="all"), *feed_forward, *by_error)


def _semantic() -> tuple[Arm, ...]:
    group = "semantic assignment"
    windows = ((1, 2, 2), (2, 2, 2), (3, 4, 4))
    return (
        *(_ours(f"window {_times(window)}", group, semantic=True, semantic_window=window) for window in windows),
        *(
            _ours(f"a dialect shared, cosine from {cosine}", group, **_dialects(), semantic_similarity=cosine)
            for cosine in (0.995, 0.999)
        ),
        _ours("a dialect shared, window 3 x 4 x 4", group, **_dialects(), semantic_window=(3, 4, 4)),
        *(
            _ours(f"cosine from {cosine}", group, sampled=False, semantic=True, semantic_similarity=cosine)
            for cosine in (0.9, 0.95, 0.999)
        ),
        *(
            _ours(f"refreshed every {steps} steps", group, sampled=False, semantic=True, refresh_every=steps)
            for steps in (1, 2, 10)
        ),
        _ours("refreshed at 0, 1/4, 1/2, 3/4", group, sampled=False, semantic=True, refresh_at=(0.0, 0.25, 0.5, 0.75)),
    )


def _equalization() -> tuple[Arm, ...]:
    """What a scale a channel brings: presets without one, and with one that a glance at one prompt chooses."""
    names = ("default", "quality", "weight-only")
    none = (_ours(f"preset {name}, not equalized", "equalization", **{**PRESETS[name], "equalize": False}) for name in names)
    glanced = (replace(_ours(f"preset {name}, glance", "equalization", **PRESETS[name]), glanced=True) for name in names)
    return (*none, *glanced)


def _products() -> tuple[Arm, ...]:
    """Every preset on each kind of matrix units; on a CPU those of FP8 are computed in float32."""
    group, chosen = "matrix products", {"plain": PLAIN_PRESET, **PRESETS}
    return (
        *(
            _ours(f"preset {name}, {units} products", group, **settings, products=units)
            for name, settings in chosen.items()
            for units in ("fp8", "int8", "16bit")
            if settings.get("precision") != "w4a16"
        ),
        _ours("preset quality, calibrated, int8 products", group, calibrated=True, products="int8", **PRESETS["quality"]),
    )


def _dialects() -> dict[str, Any]:
    return {"semantic": True, "semantic_sharing": "dialect"}


def _smoothed_peers() -> tuple[Arm, ...]:
    """Formats of 4 bits with a scale a channel between activations and weights, as SmoothQuant has it (arXiv 2211.10438)."""
    formats = (MXFP4, NVFP4, FOUR_OVER_SIX, INT4, *(peer for peer in DIALECTFP4 if peer.name.endswith("table")))
    return tuple(Arm(f"{peer.name}, smoothed", "smoothed peers", peer=peer, smoothed=True) for peer in formats)


def _few_steps() -> tuple[Arm, ...]:
    """What helps where there are only a few steps: the first one, which decides most, in more bits."""
    return tuple(
        _ours(f"preset {name}, first {a} and last {b} steps in w4a8", "few steps", **PRESETS[name], protected_steps=(a, b))
        for name in ("default", "compact")
        for a, b in ((1, 0), (0, 1), (1, 1))
    )


def _protection() -> tuple[Arm, ...]:
    group, ends = "protected steps", ((1, 0), (1, 1), (2, 2), (4, 0), (0, 4), (4, 4))
    return tuple(_ours(f"first {a} and last {b} steps in w4a8", group, protected_steps=(a, b)) for a, b in ends)


def _rotation() -> tuple[Arm, ...]:
    group, others = "rotation", {name: chosen for name, chosen in WAYS.items() if chosen}
    return (
        *(_ours(f"rotated by {size}", group, sampled=size == 64, rotation=size) for size in (16, 64, 128)),
        *(_ours(f"{name}, rotated by 64", group, sampled=False, rotation=64, **chosen) for name, chosen in others.items()),
    )


def _calibration() -> tuple[Arm, ...]:
    """Weights that know their activations, ours and the peers', at each precision; last, the nearest that 4 bits come."""
    group = "calibrated weights"
    ours = (
        _ours(f"{name}, calibrated{rotated}", group, calibrated=True, rotation=size, **chosen)
        for name, chosen in WAYS.items()
        for rotated, size in (("", 0), (", rotated by 64", 64))
    )
    formats = (NVFP4, FOUR_OVER_SIX, INT4)
    peers = (Arm(f"{peer.name}, calibrated", group, peer=peer, calibrated=True) for peer in formats)
    all_terms: dict[str, Any] = {"formatbook": UNIVERSAL, "salient_ratio": 1.0, "salient_layers": "all"}
    return (
        *ours,
        *peers,
        _ours("universal-32, w4a4, calibrated", group, calibrated=True, formatbook=UNIVERSAL),
        _ours("universal-32, w4a4, calibrated, rotated by 64", group, calibrated=True, formatbook=UNIVERSAL, rotation=64),
        _ours("universal-32, w4a4, 100 %, calibrated", group, calibrated=True, **all_terms),
    )


def _attention() -> tuple[Arm, ...]:
    """What attention in fewer bits adds: to 16 bit, and to presets."""
    bases: dict[str, dict[str, Any]] = {"16 bit": {"precision": "16bit"}}
    for name in ("quality", "default"):
        bases[f"preset {name}"] = PRESETS[name]
        bases[f"preset {name}, calibrated"] = {**PRESETS[name], "calibrated": True}
    ways = {"attention in 8 bit": "8bit", "FlashAttention-3": "fp8"}
    return tuple(
        _ours(f"{base}, {way}", "attention", **settings, attention=kind)
        for base, settings in bases.items()
        for way, kind in ways.items()
    )


def _times(window: tuple[int, int, int]) -> str:
    return " x ".join(map(str, window))


def _peer(peer: Peer, quick: bool = False) -> Arm:
    return Arm(peer.name, "peers", peer=peer, quick=quick)


def _plain(precision: str, block_size: int) -> Arm:
    config = SeDialectConfig(**{**PLAIN, "precision": precision, "block_size": block_size})
    return Arm(f"{precision} B={block_size}", "sedialect-32", config, quick=precision != "w4a8" and block_size == 16)


def _ours(
    name: str, group: str, sampled: bool = True, *, quick: bool = False, calibrated: bool = False, **settings: Any
) -> Arm:
    """w4a4 in blocks of 16 with `sedialect-32` and nothing else, but for these settings."""
    config = SeDialectConfig(**{**PLAIN, **settings})
    remembers = needs_profile(config) or any(config.protected_steps)
    return Arm(name, group, config, sampled=sampled, every_step=remembers, quick=quick, calibrated=calibrated)
