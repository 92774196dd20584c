"""What a pipeline weighs before and after, by its classes alone, and which cards it fits: exact bytes of weights, and an
estimate of what sampling and decoding take beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..config import SeDialectConfig
from ..errors import InputError, ModelError, shown
from ..inspection import family_of, layout_of
from ..plan.fit import room_of, saved_bytes
from ..plan.layers import Plan
from ..plan.report import model_bytes
from ..plan.rules import make_plan
from ..plan.working_memory import Shape, decoding_bytes, sampling_bytes, usual
from .outline import Outline, Part

CARDS = (8, 12, 16, 24, 48, 80)  # GB as they are sold, which is GiB
FITS, FITS_CPU, TOO_LARGE = "yes", "prompt on CPU", "no"


@dataclass(frozen=True)
class Size:
    """The video that memory is counted for, and its latents: frames, rows, columns."""

    height: int
    width: int
    num_frames: int
    latent: Shape

    @property
    def video(self) -> Shape:
        """Frames, rows and columns of the video."""
        return self.num_frames, self.height, self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frames"


@dataclass(frozen=True)
class Footprint:
    """Bytes of each part, and what is planned for the transformers; no plans: everything in 16 bit."""

    label: str
    parts: Mapping[str, int]
    roles: Mapping[str, str]
    plans: Mapping[str, Plan]
    sampling: int
    followed: bool
    """Whether the forward was followed; else `sampling` is a rule's bound."""
    decoding: int | None
    """None: the pipeline has no VAE, or it cannot be followed."""

    @property
    def working(self) -> int:
        """Beside the weights: the larger of sampling and decoding, which follow each other."""
        return max(self.sampling, self.decoding or 0)

    def weights(self, *roles: str) -> int:
        """Bytes of the parts with these roles, or of all."""
        return sum(count for name, count in self.parts.items() if not roles or self.roles[name] in roles)

    @property
    def everything(self) -> int:
        """Peak with every part on the card."""
        return self.weights() + self.working

    @property
    def without_text(self) -> int:
        """Peak where the text encoder has left the card before sampling begins."""
        return self.everything - self.weights("text encoder")

    def fits(self, card: int) -> tuple[str, str]:
        """Whether a card of so many GB suffices with everything on it, and with the text encoder offloaded: "yes", "no", or
        "prompt on CPU" where the text encoder alone is too large for the card, and the rest fits."""
        room = room_of(card)
        alone = FITS if self.weights("text encoder") <= room else FITS_CPU
        return (
            FITS if self.everything <= room else TOO_LARGE,
            alone if self.without_text <= room else TOO_LARGE,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; bytes and bits."""
        plans = {
            name: {
                "class": plan.model,
                "family": plan.family,
                "layers_4_bit": len(plan.quantized),
                "layers_16_bit": len(plan.left_alone),
                "weight_bits": plan.weight_bits,
                "activation_bits": plan.activation_bits,
            }
            for name, plan in self.plans.items()
        }
        return {
            "preset": self.label,
            "transformers": plans,
            "bytes": dict(self.parts),
            "estimate_bytes": {"sampling": self.sampling, "decoding": self.decoding, "by_rule": not self.followed},
            "peak_bytes": {"everything": self.everything, "text_encoder_offloaded": self.without_text},
            "fits": {
                str(card): dict(zip(("everything", "text_encoder_offloaded"), self.fits(card), strict=True))
                for card in CARDS
            },
        }


class Estimator:
    """Footprints of one outline at one size; forwards are followed once for all settings that hold the same."""

    def __init__(
        self, outline: Outline, height: int | None = None, width: int | None = None, num_frames: int | None = None
    ) -> None:
        """Sizes that are not given are the usual ones.

        Raises:
            InputError: a size is not a multiple of what a latent and a patch cover.
        """
        self.outline = outline
        self.transformers = outline.of("transformer")
        self.size = _size(outline, {"height": height, "width": width, "num_frames": num_frames})
        self._sampling: dict[Any, tuple[int, bool]] = {}

    @cached_property
    def decoding(self) -> int | None:
        """What the VAE takes, as `decoding_bytes` has it."""
        found = [decoding_bytes(part.model, self.size.latent, self.size.video) for part in self.outline.of("VAE")]
        return None if not found or None in found else max(count for count in found if count is not None)

    @cached_property
    def before(self) -> Mapping[str, int]:
        """Bytes of each part as from_pretrained loads it."""
        return {part.name: model_bytes(part.model) for part in self.outline.parts}

    def notes(self) -> list[str]:
        """What limits the numbers."""
        unknown = [part for part in self.transformers if family_of(part.model).name == "generic"]
        said = [f"{part.class_name} is of no known family: its layers are planned by generic rules" for part in unknown]
        if self.outline.of("VAE") and self.decoding is None:
            said.append("the VAE's memory beside its weights is not counted: it cannot be followed without weights")
        if not self.outline.of("text encoder"):
            said.append("no text encoder is there to be counted")
        return said

    def footprint(self, label: str, config: SeDialectConfig | None) -> Footprint:
        """What these settings make of it; None: all in 16 bit.

        Raises:
            InputError: the settings leave every layer in 16 bit, or ask for what the model cannot do.
        """
        before = self.before
        plans = {} if config is None else {part.name: _planned(part, config) for part in self.transformers}
        saved = {name: saved_bytes(plan, self._model(name)) for name, plan in plans.items()}
        found = [self._sampled(part, plans.get(part.name)) for part in self.transformers]
        return Footprint(
            label,
            {name: count - saved.get(name, 0) for name, count in before.items()},
            {part.name: part.role for part in self.outline.parts},
            plans,
            max(count for count, _ in found),
            all(followed for _, followed in found),
            self.decoding,
        )

    def _model(self, name: str) -> Any:
        return next(part.model for part in self.outline.parts if part.name == name)

    def _sampled(self, part: Part, plan: Plan | None) -> tuple[int, bool]:
        shape = tuple(tuple(tensor.shape) for tensor in part.model.parameters())
        layers = None if plan is None else tuple((layer.precision, layer.salient) for layer in plan.layers)
        key = (part.class_name, hash(shape), layers, None if plan is None else plan.config.salient_ratio)
        if key not in self._sampling:
            self._sampling[key] = sampling_bytes(part.model, plan, self.size.latent)
        return self._sampling[key]


def _planned(part: Part, config: SeDialectConfig) -> Plan:
    try:
        # Which layers have outlier channels, their weights say: exponents are left out, which take 8 bits a column.
        return make_plan(part.model, config.override(equalize=False))
    except ModelError as error:
        raise InputError(f"{part.name}: {error}") from None


def _size(outline: Outline, given: Mapping[str, int | None]) -> Size:
    transformer = outline.of("transformer")[0]
    known = usual(transformer.class_name)
    height, width, frames = (
        value if (value := given[name]) is not None else outline.video.get(name, getattr(known, name)) for name in given
    )
    space, time = _compression(outline, (known.space, known.time))
    patch = layout_of(transformer.model).patch
    if min(*patch, space, time) < 1:
        raise InputError(
            f"{outline.name}: config.json has patches of {shown(list(patch))} and latents of {space} pixels and {time} "
            "frames; download it again"
        )
    _, rows, columns = patch
    for name, value, step in (("--height", height, space * rows), ("--width", width, space * columns)):
        if value < 1 or value % step:
            raise InputError(f"{name} is {value}; it must be a multiple of {step} for {transformer.class_name}")
    if frames < 1:
        raise InputError(f"--num-frames is {frames}; it must be at least 1")
    return Size(height, width, frames, ((frames - 1) // time + 1, height // space, width // space))


def _compression(outline: Outline, known: tuple[int, int]) -> tuple[int, int]:
    """Pixels and frames that one latent covers, as the VAE says, else what is usual for the transformer."""
    for part in outline.of("VAE"):
        model: Any = part.model
        config = model.config
        spaces = [config.get(name) for name in ("spatial_compression_ratio", "scale_factor_spatial")]
        times = [config.get(name) for name in ("temporal_compression_ratio", "scale_factor_temporal")]
        if not any(spaces):
            spaces.append(model.__dict__.get("spatial_compression_ratio"))  # LTX and Mochi work it out
        if not any(times):
            times.append(model.__dict__.get("temporal_compression_ratio"))
        if not any(spaces) and "block_out_channels" in config:
            spaces.append(2 ** (len(config["block_out_channels"]) - 1))
        return next(filter(None, [*spaces, known[0]])), next(filter(None, [*times, known[1]]))
    return known
