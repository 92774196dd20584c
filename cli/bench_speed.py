"""`sedialect bench speed`: the tables of docs/results/speed.md, measured again."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..bench.speed.run import Choice

PARTS = {
    "kernels": "encoding, decoding and products alone, beside what the GPU can do; by layer",
    "attention": "attention kernels alone, with their errors against float64; by model",
    "layers": "linear layers with every arm; by model",
    "blocks": "transformer blocks of diffusers with every arm",
    "pieces": "every kernel that a compiled block runs, with its share of the time",
    "models": "step time and peak memory of a whole transformer",
    "enabling": "encoding all weights of a model",
}
PICTURE, PAGE = "speed.png", "speed.md"
MEMORY_TABLE, MEMORY_PICTURE = "bench speed: memory", "memory.png"  # the name of its marks in a document


def add_to(bench: Any) -> None:
    """Add the command to those of `sedialect bench`."""
    speed = bench.add_parser(
        "speed", help="speed of kernels, layers, blocks and models, beside every other library installed"
    )
    for part, what in PARTS.items():
        speed.add_argument(
            f"--{part}", nargs="*", metavar="NAME", help=f"{what}. Without names, all; without parts, all parts"
        )
    speed.add_argument(
        "--memory",
        nargs="*",
        type=int,
        metavar="GB",
        help="whole pipelines with the process held to the memory of cards of so many GB (8 12 16 24); alone",
    )
    speed.add_argument(
        "--arms", nargs="+", metavar="ARM", help="measure only these beside BF16; with --memory, only these ways"
    )
    speed.add_argument("--quick", action="store_true", help="tiny shapes, in a minute on a CPU: only tests the command")
    speed.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    speed.add_argument("--seconds", type=float, default=280, help="start no new row after so many seconds (280)")
    speed.add_argument("--device", default="auto")
    speed.add_argument("--output", default="sedialect-speed", help="results, tables and picture")
    speed.add_argument(
        "--results", nargs="+", type=Path, metavar="DIR", help="measure nothing; show the results in these folders"
    )
    speed.add_argument(
        "--write", type=Path, help="a document whose tables between marks are replaced, such as docs/results/speed.md"
    )
    speed.set_defaults(run=run_speed)


def run_speed(parsed: argparse.Namespace) -> int:
    """Measure, or read what was measured; print the tables, and write them where asked."""
    from ..sedialect_core.storage import paths

    parsed.output, document = paths.folder_to_write(parsed.output), parsed.write and paths.place(parsed.write)
    if parsed.memory is not None:
        return _run_memory(parsed, document)
    from ..bench.speed.plot import draw
    from ..bench.speed.rendering import place, render
    from ..bench.speed.results import read_parts
    from ..bench.speed.summary import WHERE, summary
    from ..sedialect_core.storage.atomic import write_text
    from ..sedialect_core.storage.marked import check_marked, write_marked

    if document is not None:
        check_marked(document, [place(name) for name in _names(parsed)] if parsed.results is None else [])
    if parsed.results is None:
        _measure(parsed)
    parts = read_parts(parsed.results or [parsed.output])
    sections = render(parts)
    if draw(parts, parsed.output / PICTURE):
        sections = {"picture": f"![Milliseconds of each arm]({PICTURE})"} | sections
    page = "\n\n".join(f"## {name}\n\n{section}" for name, section in sections.items())
    print(page)
    print("written:", write_text(parsed.output / PAGE, f"{page}\n"), sep="\n  ")
    line = summary(parts["layers"]) if "layers" in parts else None
    if line is not None:
        print(f"\nNo table of ours is of this GPU. Please send us this line ({WHERE}):\n\n{line}")
    if document is not None:
        draw(parts, document.parent / PICTURE)
        write_marked(document, {place(name): section for name, section in sections.items()})
    return 0


def _run_memory(parsed: argparse.Namespace, document: Path | None) -> int:
    import torch

    from ..bench.speed.held import CARDS, PART, measure_held
    from ..bench.speed.held_report import draw_held, held_table
    from ..bench.speed.results import read_alike
    from ..bench.speed.ways import choose_ways
    from ..sedialect_core.environment import environment
    from ..sedialect_core.errors import InputError
    from ..sedialect_core.storage.marked import check_marked, write_marked
    from ..sedialect_core.video.sampling import pick_device

    cards = parsed.memory or list(CARDS)
    if min(cards) < 2:
        raise InputError(f"--memory is {min(cards)}; the smallest card that can be held to has 2 GB")
    if document is not None:
        check_marked(document, [MEMORY_TABLE])
    if parsed.results is None:
        device = torch.device(pick_device(parsed.device))
        ways = choose_ways(parsed.arms)
        part = measure_held(cards, ways, parsed.quick, parsed.seconds, device, parsed.output, environment())
    else:
        part = read_alike(parsed.results, PART)
    table = held_table(part)
    print(table)
    drawn = draw_held(part, parsed.output / MEMORY_PICTURE)
    if document is not None:
        write_marked(document, {MEMORY_TABLE: table})
        if drawn:
            draw_held(part, document.parent / MEMORY_PICTURE)
    return 0


def _measure(parsed: argparse.Namespace) -> None:
    import torch

    from ..bench.speed.run import measure_speed
    from ..sedialect_core.environment import environment
    from ..sedialect_core.video.sampling import pick_device

    measure_speed(_choice(parsed), torch.device(pick_device(parsed.device)), parsed.output, environment())


def _choice(parsed: argparse.Namespace) -> "Choice":
    from ..bench.speed.run import Choice

    return Choice(_names(parsed), parsed.arms, parsed.quick, not parsed.no_compile, parsed.seconds)


def _names(parsed: argparse.Namespace) -> dict[str, Sequence[str] | None]:
    """The parts that were asked for, all of them if none was, each with its names."""
    given = {part: getattr(parsed, part) for part in PARTS}
    return {part: chosen or None for part, chosen in given.items() if chosen is not None} or dict.fromkeys(PARTS)
