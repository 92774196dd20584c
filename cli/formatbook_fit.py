"""`sedialect formatbook fit`: learn a book for one model, and say what it brings on prompts that it was not fitted to."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sedialect_core.errors import InputError
from .compare import add_dtype

if TYPE_CHECKING:
    from ..sedialect_core.video.sampling import Request

BUNDLED = "bundled"
SYNTHETIC = "synthetic"
STEPS = 20


def add_to(actions: Any) -> None:
    """Add the action to `sedialect formatbook`."""
    fit = actions.add_parser("fit", help="learn a book that suits one model's activations and weights")
    fit.add_argument("--model", required=True, help="a pipeline's folder, its name on the Hub, 'bundled', or 'synthetic'")
    fit.add_argument("--prompts", help="a file, one prompt a line; for the bundled model also a number of prompts")
    fit.add_argument("--output", required=True, help="folder for the book and its measured gain")
    fit.add_argument("--push-to", metavar="REPO", help="upload the book to this Hub repository, too")
    fit.add_argument("--name", help="name of the book")
    fit.add_argument("--start", default="universal-32", help="the book to improve on")
    fit.add_argument("--block-size", type=int, default=16, help="16 or 32")
    fit.add_argument(
        "--held-out", type=int, help="how many of the last prompts are used only to measure; a quarter by default"
    )
    fit.add_argument("--steps", type=int, help="sampling steps")
    fit.add_argument("--every", type=int, default=2, help="learn from every N-th sampling step")
    fit.add_argument("--seed", type=int, default=0, help="seed of the random starts and of the first prompt's noise")
    fit.add_argument("--guidance-scale", type=float)
    for option in ("--height", "--width", "--num-frames"):
        fit.add_argument(option, type=int)
    add_dtype(fit, "that is computed in")
    fit.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    fit.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Fit, save, keep for "auto", and push where asked. What can be wrong is found out before sampling."""
    from ..sedialect_core import demo
    from ..sedialect_core.calibration import fit_formatbook
    from ..sedialect_core.config import SeDialectConfig
    from ..sedialect_core.environment import environment
    from ..sedialect_core.formatbook import Formatbook
    from ..sedialect_core.formatbook.matching import remember
    from ..sedialect_core.progress import shown_bar
    from ..sedialect_core.storage import hub
    from ..sedialect_core.storage.paths import folder_to_write
    from ..sedialect_core.video.compute_dtype import choose_dtype
    from ..sedialect_core.video.sampling import computed_in, load_pipeline, pick_device

    if parsed.push_to is not None:
        hub.check_upload(parsed.push_to)
    if parsed.model == SYNTHETIC:
        return run_synthetic(parsed)
    config, start = SeDialectConfig(block_size=parsed.block_size), Formatbook.resolve(parsed.start)
    requests = requests_of(parsed)
    parsed.output = folder_to_write(parsed.output)
    source = demo.MODEL if parsed.model == BUNDLED else parsed.model
    device = pick_device(parsed.device)
    with shown_bar("loading the model"):
        pipe = load_pipeline(source, choose_dtype(device, parsed.dtype), device)
    book, report = fit_formatbook(
        pipe,
        requests,
        config=config,
        name=parsed.name,
        start=start,
        held_out=parsed.held_out,
        every=parsed.every,
        seed=parsed.seed,
    )
    book.save_pretrained(parsed.output)
    _write_report(parsed.output, {**report.to_dict(), **computed_in(pipe), **environment()})
    kept = remember(book)
    print(report.table())
    print(f"written: {parsed.output}\nkept for formatbook='auto': {', '.join(map(str, kept))}")
    if parsed.push_to is not None:
        print(f"pushed: {book.push_to_hub(parsed.push_to)}")
    return 0


def run_synthetic(parsed: argparse.Namespace) -> int:
    """Learn the built-in `universal-32` again, write it, and print it beside the other built-in books."""
    from ..sedialect_core.calibration.universal import comparison_table, fit_universal
    from ..sedialect_core.formatbook import Formatbook
    from ..sedialect_core.storage.paths import folder_to_write

    parsed.output = folder_to_write(parsed.output)
    book = fit_universal(parsed.seed).book
    book.save_pretrained(parsed.output)
    others = [Formatbook.builtin(name) for name in ("dialectfp4-16", "sedialect-32")]
    print(comparison_table([*others, book]))
    print(f"written: {parsed.output}")
    if parsed.push_to is not None:
        print(f"pushed: {book.push_to_hub(parsed.push_to)}")
    return 0


def requests_of(parsed: argparse.Namespace) -> Sequence["Request"]:
    """What to sample: the lines of a file, or the last so many evaluation prompts of the bundled model.

    Raises:
        InputError: no prompts are given, the file cannot be read or is empty, or a number is given for another model.
    """
    from ..sedialect_core import demo
    from ..sedialect_core.video.sampling import Request

    optional = ("guidance_scale", "height", "width", "num_frames")
    given = {name: getattr(parsed, name) for name in optional if getattr(parsed, name) is not None}
    if parsed.prompts is None:
        raise InputError("--prompts is missing; pass a file, one prompt a line, or with --model bundled a number of prompts")
    if parsed.model != BUNDLED:
        steps = STEPS if parsed.steps is None else parsed.steps
        lines = _lines(parsed.prompts)
        return [Request(text, seed=parsed.seed + i, steps=steps, **given) for i, text in enumerate(lines)]
    if given:
        print(f"note: the bundled model is sampled at its own size; {', '.join(given)} is not used", file=sys.stderr)
    if parsed.prompts.isdigit():
        return [
            demo.request(text, seed, parsed.steps) for text, seed in _last(int(parsed.prompts), demo.evaluation_prompts())
        ]
    return [demo.request(text, parsed.seed + i, parsed.steps) for i, text in enumerate(_lines(parsed.prompts))]


def _last(count: int, prompts: Sequence[tuple[str, int]]) -> Sequence[tuple[str, int]]:
    """The last ones: `bench quality` begins with the first."""
    if not 2 <= count <= len(prompts):
        raise InputError(f"--prompts is {count}; the bundled model comes with {len(prompts)}: choose 2 to {len(prompts)}")
    return prompts[-count:]


def _lines(path: str) -> list[str]:
    from ..sedialect_core.video.work_list import read_lines

    if path.isdigit() and not os.path.exists(path):
        raise InputError(
            f"--prompts is the number {path}; only --model bundled brings prompts: pass a file, one prompt a line"
        )
    found = read_lines(Path(path))
    if len(found) < 2:
        raise InputError(f"{path} holds {len(found)} prompts; give two at least: one to fit to, one to measure on")
    return found


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    from ..sedialect_core.storage.atomic import write_text

    write_text(folder / "fit.json", json.dumps(report, indent=2) + "\n")
