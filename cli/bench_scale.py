"""`sedialect bench scale`: the tables of docs/scale.md, measured again on any number of GPUs."""

import argparse
from pathlib import Path
from typing import Any

MARK = "bench scale: "  # before the names of its tables, in the marks of a document


def add_to(bench: Any) -> None:
    """Add the command to those of `sedialect bench`."""
    scale = bench.add_parser("scale", help="one video over several GPUs: speed, and distance from one GPU")
    scale.add_argument("--gpus", type=int, default=0, metavar="N", help="how many, with a process each (all)")
    scale.add_argument("--arms", nargs="+", metavar="ARM", help="BF16, presets, or 'PRESET, attention 8bit'")
    scale.add_argument("--model", default="wan", choices=("wan", "hunyuan"), help="as wide as Wan-14B (wan) or HunyuanVideo")
    scale.add_argument(
        "--layers",
        type=int,
        default=0,
        help="how many (wan: 8, of Wan-14B's 40; hunyuan: 3, of HunyuanVideo's 60)",
    )
    scale.add_argument("--tokens", type=int, default=0, help="of the video (wan: 32760, or 75600; hunyuan: 118800)")
    scale.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    scale.add_argument("--no-ring", action="store_true", help="leave out Ring")
    scale.add_argument("--seconds", type=float, default=360, help="begin nothing new after so many seconds (360)")
    scale.add_argument("--quick", action="store_true", help="a tiny model: only for equality, also on CPUs")
    scale.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    scale.add_argument("--output", default="sedialect-scale", help="results and tables")
    scale.add_argument(
        "--results",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="measure nothing; show the results in these folders",
    )
    scale.add_argument(
        "--forecast", type=float, metavar="SECONDS", help="measure nothing; the plan on paper for such a step on one GPU"
    )
    scale.add_argument("--write", type=Path, help="a document whose tables between marks are replaced")
    scale.set_defaults(run=run_scale)


def run_scale(parsed: argparse.Namespace) -> int:
    """Measure, or read what was measured; print the tables, and write them where asked."""
    from ..bench.scale.results import PAGE, read, render, render_wire
    from ..sedialect_core.storage import paths
    from ..sedialect_core.storage.atomic import write_text
    from ..sedialect_core.storage.marked import write_marked
    from ..sedialect_core.video.workers import launched

    if parsed.forecast is not None:
        return _forecast(parsed)
    place = launched("")
    parsed.output = paths.place(parsed.output)
    if place is None:
        paths.check_place(parsed.output)
    if parsed.results is None:
        _measure(parsed)
        if place is not None and place.rank:
            return 0
    runs = read(parsed.results or [parsed.output])
    tables = {f"{MARK}{run.name}": render(run) for run in runs}
    if wire := render_wire(runs):
        tables[f"{MARK}wire"] = wire
    page = "\n\n".join(tables.values())
    print(page)
    print("written:", write_text(parsed.output / PAGE, f"{page}\n"), sep="\n  ")
    if parsed.write is not None:
        write_marked(parsed.write, tables)
    return 0


def _forecast(parsed: argparse.Namespace) -> int:
    from ..bench.scale.cases import case_of
    from ..bench.scale.forecast import render_forecast
    from ..sedialect_core.errors import InputError
    from ..sedialect_core.storage.marked import write_marked

    if parsed.forecast <= 0:
        raise InputError(f"--forecast is {parsed.forecast}; it must be above 0")
    case = case_of(parsed.model, parsed.layers, parsed.tokens)
    table = f"{case.shape}, {parsed.forecast:g} s a step on one GPU:\n\n{render_forecast(case, parsed.forecast)}"
    print(table)
    if parsed.write is not None:
        write_marked(parsed.write, {f"{MARK}forecast": table})
    return 0


def _measure(parsed: argparse.Namespace) -> None:
    import torch

    from ..bench.scale.cases import DEFAULT_ARMS, case_of, check
    from ..bench.scale.results import name_of
    from ..bench.scale.worker import Wanted, arms_of, measure
    from ..sedialect_core.errors import InputError
    from ..sedialect_core.storage.marked import check_marked
    from ..sedialect_core.video.workers import launched, run_processes

    device = parsed.device if parsed.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    place = launched(device)
    most = torch.cuda.device_count() if device == "cuda" else 2
    processes = place.processes if place is not None else parsed.gpus or most
    if place is None and device == "cuda" and processes > most:
        raise InputError(f"--gpus is {processes}, and this machine has {most}; start torchrun on each machine for more")
    case = case_of(parsed.model, parsed.layers, parsed.tokens, parsed.quick)
    arms = arms_of(parsed.arms, DEFAULT_ARMS)
    check(case, processes, arms)
    if parsed.write is not None:
        check_marked(parsed.write, [f"{MARK}{name_of(case, processes)}"])
    wanted = Wanted(case, arms, not parsed.no_compile, not parsed.no_ring, parsed.seconds, parsed.output)
    if place is not None:
        measure(place, wanted)
    else:
        run_processes(measure, processes, device, wanted)
