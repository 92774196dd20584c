"""What of a pipeline is quantized, and where its models lie, so that it fits a card: options from the best one on, and the
first that fits. Pure data and models on the device meta; nothing is touched."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..config import SeDialectConfig
from ..errors import ConfigError, ModelError, shown
from .layers import Plan
from .report import model_bytes
from .rules import make_plan
from .working_memory import Shape, decoding_bytes, encoding_bytes, repeated_blocks, sampling_bytes

GIB = 2**30
RESERVED = 10**9  # of a card: the driver's context and kernels
# Further, what lies in gaps between blocks of the allocator. Of pipelines with 4 GB of activations, held to 12 GB
# (docs/home.md), one that left 0.09 GB ran out of memory, and one that left 0.31 did not.
GAPS = 3 * 10**8
ALL, TURNS, STREAMED = "all", "turns", "streamed"
PLACES = {
    ALL: "everything lies on the GPU",
    TURNS: "models take turns on the GPU (enable_model_cpu_offload)",
    STREAMED: "blocks are brought one by one (group offloading), which is slower",
}
COMPILING = (
    "the blocks are compiled in the first step of a run, which takes a minute or so more; the later steps are faster, and "
    "compile=False leaves it out"
)
AHEAD = 2  # blocks on the GPU when they are brought one by one: the next one comes meanwhile
SMALLEST = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:gb|gib|g)?\s*", re.IGNORECASE)
TRANSFORMER, TEXT, VAE = "transformer", "text encoder", "VAE"


def card_of(fit: str | float) -> float:
    """GB of a card, as it is sold, from "12GB" or a number.

    Raises:
        ConfigError: it says no size.
    """
    found = SMALLEST.fullmatch(str(fit))
    if isinstance(fit, bool) or found is None or not 1 <= float(found[1]) <= 1024:
        raise ConfigError(f"fit is {shown(fit)}; say the memory of a card, such as '12GB'")
    return float(found[1])


def room_of(card: float) -> int:
    """Bytes of a card of so many GB, as it is sold, which is GiB, that models may take."""
    return int(card * GIB) - RESERVED - GAPS


def card_for(needs: int) -> int:
    """The smallest card of whole GB that has room for so many bytes."""
    return math.ceil((needs + RESERVED + GAPS) / GIB)


@dataclass(frozen=True)
class Option:
    """One way to run a pipeline, and peak bytes on the GPU of what follows each other.

    config    of the transformers
    encoder   whether the text encoders are quantized, too
    compiled  whether the transformers' blocks are
    """

    config: SeDialectConfig
    encoder: bool
    place: str
    tiling: bool
    phases: Mapping[str, int]
    compiled: bool = False

    @property
    def needs(self) -> int:
        """The largest of the peaks."""
        return max(self.phases.values())

    def __str__(self) -> str:
        said = [f"{self.config.precision} in blocks of {self.config.block_size}"]
        said += ["text encoder in 4 bit"] if self.encoder else []
        said += ["blocks compiled"] if self.compiled else []
        said += [PLACES[self.place], *(["the VAE decodes in tiles"] if self.tiling else [])]
        return ", ".join(said)


@dataclass(frozen=True)
class Choice:
    """The option that was taken, and what did not fit before it."""

    card: float
    option: Option
    video: Shape
    passed: tuple[Option, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """What was chosen and why."""
        frames, height, width = self.video
        peaks = ", ".join(f"{phase} {count / 1e9:.1f}" for phase, count in self.option.phases.items())
        lines = [
            f"fit {self.card:g} GB, {width}x{height}, {frames} frames: {self.option}",
            f"  takes, GB: {peaks}; the card has {room_of(self.card) / 1e9:.1f} for it",
        ]
        lines += [f"  too large, {each.needs / 1e9:.1f} GB: {each}" for each in self.passed]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


class Fitter:
    """The options of one pipeline at one size of video.

    Args:
        models: on the device meta, by component, as they are loaded; forwards are followed through them.
        roles: "transformer", "text encoder", "VAE" or others, by component.
        latent: frames, rows and columns of the latents.
        video: the same of the video.
        stored: bytes of transformers that are quantized already, and stay as they are.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        roles: Mapping[str, str],
        latent: Shape,
        video: Shape,
        stored: Mapping[str, int] | None = None,
    ) -> None:
        self.models, self.roles, self.latent, self.video = models, roles, latent, video
        self.stored = stored or {}
        self._known: dict[Any, Any] = {}

    def choose(
        self,
        card: float,
        config: SeDialectConfig,
        *,
        encoder: bool | None = None,
        block_sizes: bool = True,
        compiling: bool = True,
    ) -> Choice:
        """The first option that fits: everything on the GPU before offloading, fewer bits only where they are needed.

        Args:
            encoder: whether text encoders are quantized; None leaves it open.
            block_sizes: whether blocks of 32 may be taken in place of 16.
            compiling: whether transformers' blocks may be compiled, where their classes name them.

        Raises:
            ModelError: none does; the message says what the smallest needs.
        """
        passed: list[Option] = []
        for option in self._options(config, encoder, block_sizes, compiling):
            if option.needs <= room_of(card):
                notes = (*self._notes(), *([COMPILING] if option.compiled else []))
                return Choice(card, option, self.video, tuple(_telling(passed)), notes)
            passed.append(option)
        least = min(passed, key=lambda option: option.needs)
        frames, height, width = self.video
        peaks = ", ".join(f"{phase} {count / 1e9:.1f}" for phase, count in least.phases.items())
        room = room_of(card) / 1e9
        raise ModelError(
            f"nothing fits {card:g} GB at {width}x{height}, {frames} frames: a card leaves {room:.1f} GB, and the "
            f"smallest way takes {least.needs / 1e9:.1f} ({least}: {peaks}); a card of "
            f"{card_for(least.needs)} GB would do, or a smaller or shorter video"
        )

    def _options(
        self, config: SeDialectConfig, encoder: bool | None, block_sizes: bool, compiling: bool
    ) -> Iterator[Option]:
        texts = any(role == TEXT for role in self.roles.values())
        encoders = [False, True] if encoder is None and texts else [bool(encoder)]
        ways = [(config, ALL), (config, TURNS), (config, STREAMED)]
        if block_sizes and config.block_size == 16 and not config.attention_alone:
            ways.insert(2, (config.override(block_size=32), TURNS))
        for settings, place in ways:
            for quantized in encoders:
                for compiled in (False, True) if compiling and place != STREAMED and self._compiles else (False,):
                    for tiling in (False, True):
                        yield self.option(settings, quantized, place, tiling, compiled=compiled)

    @property
    def _compiles(self) -> bool:
        """Whether what compiling saves is known: all transformers name their blocks, and can be followed."""
        return all(repeated_blocks(self.models[name]) and self._followed(name, None)[1] for name in self._of(TRANSFORMER))

    def option(self, config: SeDialectConfig, encoder: bool, place: str, tiling: bool, *, compiled: bool = False) -> Option:
        """One way to run it, whether it fits or not."""
        plans = {name: self._plan(name, config) for name in self._of(TRANSFORMER)}
        texts = {name: self._plan(name, config) if encoder else None for name in self._of(TEXT)}
        weights = {name: self._bytes(name, (plans | texts).get(name)) for name in self.models}
        sampling = max(self._followed(name, plan, compiled)[0] for name, plan in plans.items())
        encoding = max((self._encoding(name) for name in texts), default=0)
        decoding = self._decoding(tiling)
        if place == ALL:
            total = sum(weights.values())
            phases = {"encoding": total + encoding, "steps": total + sampling, "decoding": total + decoding}
        else:
            held = (lambda name: weights[name]) if place == TURNS else (lambda name: self._streamed(name, weights[name]))
            others = sum(weights[name] for name in self._of(VAE)) if place == STREAMED else 0
            phases = {
                "encoding": others + max((held(name) for name in texts), default=0) + encoding,
                "steps": others + max(held(name) for name in plans) + sampling,
                "decoding": sum(weights[name] for name in self._of(VAE)) + decoding,
            }
        return Option(config, encoder, place, tiling, phases, compiled)

    def _of(self, role: str) -> list[str]:
        return [name for name, value in self.roles.items() if value == role and name in self.models]

    def _plan(self, name: str, config: SeDialectConfig) -> Plan | None:
        if name in self.stored and config.attention_alone:
            return None
        # Of what is quantized already it says what the forward takes, as if it were by these settings. Which layers have
        # outlier channels, their weights say: exponents are left out, which take 8 bits a column.
        return self._once(("plan", name, config), lambda: make_plan(self.models[name], config.override(equalize=False)))

    def _bytes(self, name: str, plan: Plan | None) -> int:
        if name in self.stored:
            return self.stored[name]
        return model_bytes(self.models[name]) - saved_bytes(plan, self.models[name])

    def _followed(self, name: str, plan: Plan | None, compiled: bool = False) -> tuple[int, bool]:
        """As `sampling_bytes` has it."""
        settings = None if plan is None else tuple((layer.precision, layer.salient) for layer in plan.layers)
        key = ("sampling", name, settings, plan and plan.config.salient_ratio, compiled)
        found: tuple[int, bool] = self._once(
            key, lambda: sampling_bytes(self.models[name], plan, self.latent, compiled=compiled)
        )
        return found

    def _encoding(self, name: str) -> int:
        return int(self._once(("encoding", name), lambda: encoding_bytes(self.models[name])))

    def _decoding(self, tiling: bool) -> int:
        found = [
            self._once(("decoding", name, tiling), lambda name=name: self._decoded(name, tiling)) for name in self._of(VAE)
        ]
        return max((count for count in found if count is not None), default=0)

    def _decoded(self, name: str, tiling: bool) -> int | None:
        return decoding_bytes(self.models[name], self.latent, self.video, tiling=tiling)

    def _streamed(self, name: str, weights: int) -> int:
        """Bytes of a model that lie on the GPU while its blocks are brought one by one."""
        model = self.models[name]
        if self.roles[name] == TEXT:  # leaf by leaf
            leaves = [model_bytes(part) for part in model.modules() if not list(part.children())]
            return AHEAD * max(leaves)
        blocks = [model_bytes(block) for part in model.children() if isinstance(part, nn.ModuleList) for block in part]
        if not blocks:
            return weights
        whole = model_bytes(model)
        return int(weights * (whole - sum(blocks) + AHEAD * max(blocks)) / whole)

    def _notes(self) -> Iterator[str]:
        if any(
            self._once(("decoding", name, True), lambda name=name: self._decoded(name, True)) is None
            for name in self._of(VAE)
        ):
            yield "the VAE's memory beside its weights is not counted: it cannot be followed without weights"

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def saved_bytes(plan: Plan | None, model: nn.Module) -> int:
    """By how many bytes the layers that a plan quantizes become smaller."""
    saved = 0.0
    for layer in plan.quantized if plan is not None else ():
        weight = model.get_submodule(layer.name).weight
        assert isinstance(weight, torch.Tensor)
        saved += weight.numel() * weight.element_size() - layer.weight_bits(16) * layer.weights / 8
    return round(saved)


def _telling(passed: list[Option]) -> Iterator[Option]:
    """Of the options that did not fit, the smallest of each place and of each number of bits, compiled or not."""
    least: dict[tuple[Any, ...], Option] = {}
    for option in passed:
        key = (option.place, option.encoder, option.config.block_size, option.compiled)
        if key not in least or option.needs < least[key].needs:
            least[key] = option
    yield from least.values()
