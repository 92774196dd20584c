"""`sedialect quantize`: a model's folder or repository in, a quantized one out."""

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sedialect_core.errors import InputError
from .compare import add_config, config_of

if TYPE_CHECKING:
    from ..sedialect_core.calibration.cache import CalibrationCache
    from ..sedialect_core.checkpoint.conversion import Job
    from ..sedialect_core.checkpoint.source import Source
    from ..sedialect_core.config import SeDialectConfig
    from ..sedialect_core.plan.layers import Plan

STORED = "bfloat16"
SIZES = ("height", "width", "num_frames")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_to(commands: Any) -> None:
    """Add the command."""
    quantize = commands.add_parser("quantize", help="write a 4-bit model that from_pretrained loads")
    quantize.add_argument("model", help="a pipeline's or model's folder, or its name on the Hugging Face Hub")
    quantize.add_argument("--output", required=True, help="folder for the result; it appears only when complete")
    quantize.add_argument(
        "--push-to", metavar="REPO", help="then upload it to this repository, created if it does not exist"
    )
    quantize.add_argument("--component", help="only this part of a pipeline; otherwise every transformer")
    quantize.add_argument("--variant", help="variant of the weights to read, such as fp16")
    add_config(quantize, "quantize")
    quantize.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the layers that are not quantized; default: bfloat16. With --calibrate, what is computed in, too",
    )
    quantize.add_argument("--device", default="auto", help="where weights are encoded: auto, cpu, cuda, cuda:1 …")
    quantize.add_argument(
        "--max-shard-size", default="2GB", help="size of one file; an interrupted run loses at most one file"
    )
    quantize.add_argument("--base-model", help="Hub name of the original model, for the card; default: MODEL")
    quantize.add_argument("--quality-table", type=Path, metavar="FILE", help="Markdown that goes into the card")
    _add_calibration(quantize)
    quantize.set_defaults(run=run)


def _add_calibration(quantize: argparse.ArgumentParser) -> None:
    quantize.add_argument(
        "--calibrate",
        action="store_true",
        help="sample a few prompts in 16 bit first, and round weights for the least output error",
    )
    quantize.add_argument(
        "--prompts", type=Path, metavar="FILE", help="calibration prompts, one per line; default: bundled ones"
    )
    quantize.add_argument(
        "--calibration",
        metavar="DIR",
        help="folder that keeps the calibration, to continue it; default: beside the output. Or 'glance', in place of "
        "--calibrate: sample one prompt in 4 steps, and only equalize channels by what is read there",
    )
    quantize.add_argument(
        "--calibration-memory",
        type=float,
        metavar="GB",
        help="memory for moments at a time; default: half of the free memory",
    )
    quantize.add_argument("--calibration-device", metavar="DEVICE", help="device that sums the moments, such as cpu")
    for option in SIZES:
        quantize.add_argument(f"--{option.replace('_', '-')}", type=int, help="size of the videos sampled for calibration")


def run(parsed: argparse.Namespace) -> int:
    """Quantize, write the card, and push where asked. A run that was stopped goes on where it was."""
    from ..sedialect_core.checkpoint.card import model_card
    from ..sedialect_core.checkpoint.conversion import Job, publish, weights_of
    from ..sedialect_core.checkpoint.source import find_source
    from ..sedialect_core.storage import hub, paths
    from ..sedialect_core.storage.locking import only_one
    from ..sedialect_core.storage.reading import read_text
    from ..sedialect_core.video.sampling import pick_device

    parsed.output = paths.place(parsed.output)
    paths.check_place(parsed.output)
    config = config_of(parsed)
    _check_calibration(parsed)
    if parsed.push_to is not None:
        hub.check_upload(parsed.push_to)
    table = read_text(parsed.quality_table) if parsed.quality_table is not None else None
    size = _bytes(parsed.max_shard_size)
    job = Job(config, parsed.output, parsed.dtype or STORED, pick_device(parsed.device), size)
    source = find_source(parsed.model, parsed.component, parsed.variant)
    with only_one(parsed.output):
        plans = _written(parsed, source, job)
        if plans is None:
            return 2
        base = parsed.base_model or (None if os.path.exists(parsed.model) else parsed.model)
        card = model_card(
            plans,
            base_model=base,
            pipeline=source.pipeline,
            base_card=source.card,
            repository=parsed.push_to,
            quality_table=table,
        )
        publish(job, card)
    for plan in plans.values():
        print(f"{plan.model}: {len(plan.quantized)} of {len(plan.layers)} linears at {plan.weight_bits:.3f} bits a weight")
    print(f"written: {job.output}")
    if parsed.push_to is not None:
        message, replaces = "Quantize with sedialect", weights_of(source.components)
        print(f"pushed: {hub.upload_folder(parsed.push_to, job.output, message=message, replaces=replaces)}")
    return 0


def _glances(parsed: argparse.Namespace) -> bool:
    """Whether a glance is all that is asked for."""
    return str(parsed.calibration) == "glance"


def _written(parsed: argparse.Namespace, source: "Source", job: "Job") -> "dict[str, Plan] | None":
    """Calibrate where that is asked for, and write the models; None where the user has interrupted it."""
    from ..sedialect_core.checkpoint.conversion import convert

    place = job.staging
    try:
        if parsed.calibrate or _glances(parsed):
            place = _calibration_folder(parsed)
            cache = _calibrate(parsed, job.config)
            place = job.staging
            calibrations = {part.name: cache.component(part.name) for part in source.components}
            job = replace(job, calibrations=calibrations, calibrated_on=cache.describe())
        return convert(source.components, job)
    except KeyboardInterrupt:
        print(f"\nsedialect: interrupted; run the command again and it goes on from {place}", file=sys.stderr)
        return None


def _check_calibration(parsed: argparse.Namespace) -> None:
    options = ("prompts", "calibration", "calibration_memory", "calibration_device", *SIZES)
    given = [name for name in options if getattr(parsed, name) is not None]
    if _glances(parsed):
        if parsed.calibrate:
            raise InputError("--calibrate and --calibration glance are two ways to look at inputs; leave one of them out")
        given = [name for name in given if name in ("prompts", "calibration_memory")]
        if given:
            raise InputError(
                f"--{given[0].replace('_', '-')} is not for --calibration glance, which samples one bundled prompt and "
                "keeps no moments; leave it out, or use --calibrate"
            )
    elif given and not parsed.calibrate:
        raise InputError(f"--{given[0].replace('_', '-')} is for calibrating; add --calibrate")


def _calibrate(parsed: argparse.Namespace, config: "SeDialectConfig") -> "CalibrationCache":
    """Sample the 16-bit pipeline, or go on with what an earlier run has kept."""
    from ..sedialect_core.calibration.cache import INDEX
    from ..sedialect_core.calibration.moments import calibrate
    from ..sedialect_core.calibration.prompts import GLANCE, SELF
    from ..sedialect_core.progress import shown_bar
    from ..sedialect_core.storage.locking import only_one
    from ..sedialect_core.storage.paths import folder_to_write
    from ..sedialect_core.video.compute_dtype import choose_dtype
    from ..sedialect_core.video.sampling import load_pipeline, pick_device
    from ..sedialect_core.video.work_list import read_lines

    folder = folder_to_write(_calibration_folder(parsed))
    if (folder / INDEX).is_file():
        with only_one(folder / INDEX):
            pass  # another process is found out before the model is loaded
    bundled = GLANCE if _glances(parsed) else SELF
    prompts = read_lines(parsed.prompts) if parsed.prompts is not None else bundled
    device = pick_device(parsed.device)
    choice = choose_dtype(device, parsed.dtype)
    with shown_bar("loading the model"):
        pipe = load_pipeline(parsed.model, choice, device)
    print(f"calibrating in {choice}", file=sys.stderr)
    return calibrate(
        pipe,
        prompts,
        config=config,
        size={name: getattr(parsed, name) for name in SIZES if getattr(parsed, name) is not None},
        folder=folder,
        memory=parsed.calibration_memory,
        device=parsed.calibration_device,
    )


def _calibration_folder(parsed: argparse.Namespace) -> Path:
    if parsed.calibration is not None and not _glances(parsed):
        return Path(parsed.calibration)
    beside: Path = parsed.output
    return beside.with_name(f"{beside.name}.{'glance' if _glances(parsed) else 'calibration'}")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]B)?", text)
    if found is None or int(found[1]) == 0:
        raise InputError(f"--max-shard-size is {text!r}; write a number of bytes, or one with KB, MB or GB, such as 2GB")
    return int(found[1]) * UNITS[found[2] or ""]
