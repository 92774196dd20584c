"""`sedialect plan`: what each preset would do to a model, without its weights and without a GPU."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sedialect_core.config import PRESETS
from ..sedialect_core.errors import InputError
from ..sedialect_core.settings import SETTINGS
from ..sedialect_core.storage.marked import marks, write_marked
from .compare import add_config, config_of, given_settings

if TYPE_CHECKING:
    from ..sedialect_core.config import SeDialectConfig
    from ..sedialect_core.footprint.memory import Estimator, Footprint

DEFAULTS = {entry.name: entry.default for entry in SETTINGS}
TABLE = "memory table"  # its marks in a document
WHOLE = "16 bit"
COUNTED = (
    "Weights are exact. Sampling and decoding are an estimate: what lives at once when the classes are followed through\n"
    "one forward at this size, run eagerly on a GPU without FP8 units, the VAE decoding in tiles\n"
    "(pipe.vae.enable_tiling()).\n"
    "With FP8 units or torch.compile it is less. Of a card 1 GB is kept for the driver, and 0.3 GB for gaps\n"
    "between blocks of the allocator."
)
BY_RULE = "Sampling is a rough bound by the widths of the layers: this class cannot be followed without weights."


def add_to(commands: Any) -> None:
    """Add the command."""
    plan = commands.add_parser("plan", help="layers, bits and memory of each preset, without weights and without a GPU")
    plan.add_argument("model", nargs="?", help="a short name, a pipeline's or transformer's folder, or its name on the Hub")
    add_config(plan)
    plan.set_defaults(preset=None)
    for option in ("height", "width", "num-frames"):
        plan.add_argument(f"--{option}", type=int, help="of the video that memory is counted for; the usual one by default")
    plan.add_argument(
        "--fit",
        metavar="SIZE",
        help="what to quantize and where models lie so that all fits a card, such as 12GB; preset quality if none is named",
    )
    plan.add_argument("--no-compile", action="store_true", help="with --fit: leave out torch.compile")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.add_argument("--table", action="store_true", help="a Markdown table of the public models that are known by name")
    plan.add_argument(
        "--write", type=Path, metavar="FILE", help=f"with --table: put it between {' and '.join(marks(TABLE))}"
    )
    plan.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the plan.

    Raises:
        InputError: the model or the options make no sense.
    """
    if parsed.table != (parsed.model is None):
        raise InputError("name either a MODEL or --table; short names are in `sedialect plan --table`")
    if parsed.write is not None and not parsed.table:
        raise InputError("--write is for the table; add --table in place of a MODEL")
    if parsed.table:
        table = memory_table()
        if parsed.write is None:
            print(table)
        else:
            write_marked(parsed.write, {TABLE: table})
        return 0
    from ..sedialect_core.footprint.memory import Estimator
    from ..sedialect_core.footprint.outline import outline_of

    if parsed.fit is not None:
        return _fit(parsed)
    settings = _settings(parsed)
    estimator = Estimator(outline_of(parsed.model), parsed.height, parsed.width, parsed.num_frames)
    found = [estimator.footprint(label, config) for label, config in settings.items()]
    runs = _products(parsed.products or DEFAULTS["products"])
    print(_json(estimator, found, runs) if parsed.json else _report(estimator, found, runs))
    return 0


def _fit(parsed: argparse.Namespace) -> int:
    """Print what fits a card."""
    from ..sedialect_core.footprint.fitted import fitted
    from ..sedialect_core.footprint.memory import Estimator
    from ..sedialect_core.footprint.outline import outline_of
    from ..sedialect_core.plan.fit import card_of

    card, given = card_of(parsed.fit), given_settings(parsed)
    named = parsed.preset is not None or bool(given)
    parsed.preset = parsed.preset or "quality"
    config, outline = config_of(parsed), outline_of(parsed.model)
    estimator = Estimator(outline, parsed.height, parsed.width, parsed.num_frames)
    choice = fitted(estimator, card, config, block_sizes=not named, compiling=not parsed.no_compile)
    option = choice.option
    if parsed.json:
        data = {
            "model": outline.name,
            "card": card,
            "config": option.config.to_diff_dict(),
            "text_encoder": option.encoder,
            "place": option.place,
            "compiled": option.compiled,
            "vae_tiling": option.tiling,
            "peak_bytes": dict(option.phases),
        }
        print(json.dumps(data, indent=1))
    else:
        more = ", compile=False" if parsed.no_compile else ""
        print(f"{outline.name}: {choice}\n\npipe.enable_sedialect(fit={parsed.fit!r}{more})")
    return 0


def memory_table() -> str:
    """Memory of the models known by name, 16 bit beside the default preset, as Markdown."""
    from ..sedialect_core.config import SeDialectConfig
    from ..sedialect_core.footprint.memory import Estimator
    from ..sedialect_core.footprint.outline import known_models, outline_of

    head = ("model", "video", "transformer, 16 bit", "in 4 bit", "text encoder", "VAE", "sampling, decoding", "peak, 4 bit")
    rows: list[tuple[str, ...]] = [
        (*head, "text encoder offloaded", "smallest card: 16 bit", "4 bit", "4 bit, offloaded"),
        ("---",) * 12,
    ]
    for name in known_models():
        estimator = Estimator(outline_of(name))
        whole, small = estimator.footprint(WHOLE, None), estimator.footprint("default", SeDialectConfig())
        rows.append(
            (
                f"{estimator.outline.name} (`{name}`)",
                str(estimator.size),
                *(f"{count / 1e9:.1f}" for count in (whole.weights("transformer"), small.weights("transformer"))),
                *(f"{small.weights(role) / 1e9:.1f}" for role in ("text encoder", "VAE")),
                f"{small.sampling / 1e9:.1f}, {(small.decoding or 0) / 1e9:.1f}",
                *(f"{count / 1e9:.1f}" for count in (small.everything, small.without_text)),
                *(_smallest(whole, 0), _smallest(small, 0), _smallest(small, 1)),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n\n" + _table_notes()


def _table_notes() -> str:
    return (
        "Everything in GB (10^9 bytes), printed by `sedialect plan --table`; another size or preset: `sedialect plan NAME "
        f"--width … --height … --num-frames … --preset …`. {' '.join(COUNTED.split())} \\* The text encoder alone is too "
        "large for that card: encode the prompt on the CPU."
    )


def _smallest(footprint: "Footprint", way: int) -> str:
    from ..sedialect_core.footprint.memory import CARDS, FITS_CPU, TOO_LARGE

    for card in CARDS:
        if (verdict := footprint.fits(card)[way]) != TOO_LARGE:
            return f"{card} \\*" if verdict == FITS_CPU else str(card)
    return f"over {CARDS[-1]}"


def _settings(parsed: argparse.Namespace) -> dict[str, "SeDialectConfig | None"]:
    """16 bit to compare with, and the settings asked for: each preset, or the one that is named, with the options given."""
    settings: dict[str, SeDialectConfig | None] = {WHOLE: None}
    own = [f"{name} {value}" for name, value in given_settings(parsed).items()]
    for preset in PRESETS if parsed.preset is None else [parsed.preset]:
        parsed.preset = preset
        settings[" + ".join([preset, *own])] = config_of(parsed)
    return settings


def _products(products: str) -> list[tuple[str, ...]]:
    """Device, precision, and what would multiply there and why, on this machine."""
    import torch

    from ..kernels.dispatch import implementation
    from ..sedialect_core.quantize.units import compare_units

    devices = [*(f"cuda:{number}" for number in range(torch.cuda.device_count())), "cpu"]
    found: list[tuple[str, ...]] = []
    for device in devices:
        if device != "cpu":
            compare_units(device, products)
        ways: dict[str, list[str]] = {}
        for precision in ("w4a4", "w4a8", "w4a16"):
            name, reason = implementation(device, precision, products=products)
            ways.setdefault(f"{name}: {reason}", []).append(precision)
        found += [(device, ", ".join(precisions), way) for way, precisions in ways.items()]
    return found


def _advice() -> str | None:
    import torch

    from ..sedialect_core.plan.report import quality_advice

    found = (quality_advice(f"cuda:{number}") for number in range(torch.cuda.device_count()))
    return next((advice for advice in found if advice), None)


def _json(estimator: "Estimator", found: list["Footprint"], runs: list[tuple[str, ...]]) -> str:
    size = estimator.size
    data = {
        "model": estimator.outline.name,
        "components": {part.name: {"class": part.class_name, "role": part.role} for part in estimator.outline.parts},
        "video": {"height": size.height, "width": size.width, "num_frames": size.num_frames},
        "presets": [footprint.to_dict() for footprint in found],
        "products": [dict(zip(("device", "precisions", "runs"), row, strict=True)) for row in runs],
        "notes": estimator.notes(),
        "advice": _advice(),
    }
    return json.dumps(data, indent=1)


def _report(estimator: "Estimator", found: list["Footprint"], runs: list[tuple[str, ...]]) -> str:
    from ..sedialect_core.footprint.memory import CARDS

    lines = [f"{estimator.outline.name}, {estimator.size}", ""]
    names = [part.name for part in estimator.outline.parts]
    lines += _aligned(
        [
            ("GB", *names, "sampling", "decoding", "peak", "text encoder offloaded"),
            *((each.label, *(_gigabytes(each.parts[name]) for name in names), *_peaks(each)) for each in found),
        ]
    )
    lines += ["", *_aligned([("", "4 bit", "16 bit", "bits a weight", "an activation"), *_layers(found)])]
    if attention := _attention(found):
        lines += ["", *_aligned([("attention", "runs in", "modules", "why"), *attention])]
    lines += ["", "fits a card of, GB: everything on it / text encoder offloaded"]
    lines += _aligned(
        [
            ("", *map(str, CARDS)),
            *((each.label, *(" / ".join(dict.fromkeys(each.fits(card))) for card in CARDS)) for each in found),
        ]
    )
    lines += ["", COUNTED, *([] if all(each.followed for each in found) else [BY_RULE]), *estimator.notes()]
    lines += ["", "on this machine", *_aligned(runs)]
    advice = _advice()
    return "\n".join([*lines, *(["", advice] if advice else [])])


def _peaks(footprint: "Footprint") -> tuple[str, ...]:
    decoding = "-" if footprint.decoding is None else _gigabytes(footprint.decoding)
    return _gigabytes(footprint.sampling), decoding, _gigabytes(footprint.everything), _gigabytes(footprint.without_text)


def _layers(found: list["Footprint"]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for footprint in found:
        for name, plan in footprint.plans.items():
            counts = (str(len(plan.quantized)), str(len(plan.left_alone)))
            rows.append((f"{footprint.label}: {name}", *counts, f"{plan.weight_bits:.3f}", f"{plan.activation_bits:.3f}"))
    return rows


def _attention(found: list["Footprint"]) -> list[tuple[str, ...]]:
    """Where attention is asked to run in fewer bits: how each kind of module does, and why."""
    rows: list[tuple[str, ...]] = []
    for footprint in found:
        for name, plan in footprint.plans.items():
            for (pattern, runs, reason), count in plan.attention_groups().items():
                rows.append((f"{footprint.label}: {name}", runs, f"{count} x {pattern}", reason))
    return rows


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}" if count >= 1e7 else f"{count / 1e9:.4f}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
