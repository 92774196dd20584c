"""`sedialect bench …`: the numbers of the docs, measured again."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bench_scale as measuring_scale
from . import bench_speed as measuring_speed
from .compare import add_dtype

if TYPE_CHECKING:
    from ..bench.quality import Arm, Job, Result

QUICK_PAIRS, QUICK_STEPS = 8, 5


def add_to(commands: Any) -> None:
    """Add the command and what it measures."""
    bench = commands.add_parser("bench", help="measure quality, speed, memory and costs").add_subparsers(
        required=True, metavar="WHAT"
    )
    _add_quality(bench)
    pairs = bench.add_parser("pairs", help="compare pairs of arms from the results of `bench quality`")
    pairs.add_argument("results", type=Path, help="quality.json, as `bench quality` writes it")
    pairs.add_argument(
        "arms",
        nargs="+",
        metavar="ARM",
        help="names of arms: the first is compared with the second, the third with the fourth, …",
    )
    pairs.set_defaults(run=run_pairs)
    fusing = bench.add_parser("fusing", help="how much of a fused LoRA survives 4-bit rounding")
    fusing.set_defaults(run=run_fusing)
    compensating = bench.add_parser("compensating", help="time, memory and error of encoding one weight with calibration")
    compensating.add_argument("--rows", type=int, default=5120, help="number of outputs of the layer")
    compensating.add_argument("--width", type=int, default=5120, help="number of inputs of the layer")
    compensating.add_argument("--tokens", type=int, default=32768, help="number of calibration rows")
    compensating.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    compensating.set_defaults(run=run_compensating)
    calibrating = bench.add_parser("calibrating", help="time and memory of calibrating one block of a 14B model")
    calibrating.add_argument("--quick", action="store_true", help="a tiny block: only tests the command")
    calibrating.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    calibrating.set_defaults(run=run_calibrating)
    sharing = bench.add_parser("sharing", help="error of neighbouring tokens that share formats")
    sharing.add_argument("--prompts", type=int, default=2, help="how many of the 64 evaluation prompts")
    sharing.set_defaults(run=run_sharing)
    ordering = bench.add_parser("ordering", help="error left when channels are sorted by size, beside a scale per channel")
    ordering.add_argument("--steps", type=int, help="sampling steps")
    ordering.add_argument("--size", type=int, help="height and width")
    ordering.add_argument("--num-frames", type=int)
    ordering.add_argument("--every-block", type=int, default=1, help="look at every N-th block")
    ordering.set_defaults(run=run_ordering)
    profiling = bench.add_parser("profiling", help="time that profiling attention and forming groups adds to a step")
    profiling.add_argument("--quick", action="store_true", help="a tiny block: only tests the command")
    profiling.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    profiling.set_defaults(run=run_profiling)
    loading = bench.add_parser("loading", help="memory needed to load a pre-quantized model")
    loading.add_argument("--gigabytes", type=float, default=1.0, help="size of the random model that is written and loaded")
    loading.set_defaults(run=run_loading)
    measuring_speed.add_to(bench)
    measuring_scale.add_to(bench)


def run_pairs(parsed: argparse.Namespace) -> int:
    """Print the table of paired differences."""
    from ..bench.quality import held_against
    from ..sedialect_core.errors import InputError

    if len(parsed.arms) % 2:
        raise InputError(f"{len(parsed.arms)} names of arms were given; give them two by two, each arm and its opponent")
    print(held_against(parsed.results, list(zip(parsed.arms[::2], parsed.arms[1::2], strict=True))))
    return 0


def run_fusing(parsed: argparse.Namespace) -> int:
    """Print the table of docs/compatibility.md."""
    from ..bench.studies.fused_loras import measure_fusing

    print(measure_fusing())
    return 0


def run_compensating(parsed: argparse.Namespace) -> int:
    """Print the table, with the machine."""
    from ..bench.costs.compensating import measure_compensating
    from ..sedialect_core.environment import environment, machine_line
    from ..sedialect_core.video.sampling import pick_device

    print(measure_compensating(parsed.rows, parsed.width, parsed.tokens, pick_device(parsed.device)))
    print("", machine_line(environment(), ["torch"]), sep="\n")
    return 0


def run_calibrating(parsed: argparse.Namespace) -> int:
    """Print the table of docs/calibration.md, with the machine."""
    import torch

    from ..bench.costs.calibrating import measure_calibrating, render
    from ..sedialect_core.environment import environment
    from ..sedialect_core.video.sampling import pick_device

    stages = measure_calibrating(torch.device(pick_device(parsed.device)), parsed.quick)
    print(render(stages, environment(), parsed.quick))
    return 0


def run_sharing(parsed: argparse.Namespace) -> int:
    """Print the tables of docs/semantics.md."""
    from ..bench.studies.shared_formats import render, study
    from ..sedialect_core.environment import environment
    from ..sedialect_core.errors import InputError

    if not 1 <= parsed.prompts <= 64:
        raise InputError(f"--prompts is {parsed.prompts}; choose 1 to 64")
    print(render(study(parsed.prompts), parsed.prompts, environment()))
    return 0


def run_ordering(parsed: argparse.Namespace) -> int:
    """Print the tables."""
    from dataclasses import replace

    from ..bench.ordering import PLANTED, render, study
    from ..sedialect_core import demo
    from ..sedialect_core.environment import environment
    from ..sedialect_core.errors import InputError

    if parsed.every_block < 1:
        raise InputError(f"--every-block is {parsed.every_block}; it must be at least 1")
    given = {"steps": parsed.steps, "height": parsed.size, "width": parsed.size, "num_frames": parsed.num_frames}
    request = demo.request(*demo.evaluation_prompts()[0])
    request = replace(request, **{name: value for name, value in given.items() if value is not None})
    print(render({size: study(request, size, parsed.every_block) for size in PLANTED}, environment()))
    return 0


def run_profiling(parsed: argparse.Namespace) -> int:
    """Print the table of docs/semantics.md, with the machine."""
    import torch

    from ..bench.costs.profiling import measure_profiling, render
    from ..sedialect_core.environment import environment
    from ..sedialect_core.video.sampling import pick_device

    print(render(measure_profiling(torch.device(pick_device(parsed.device)), parsed.quick), environment()))
    return 0


def run_loading(parsed: argparse.Namespace) -> int:
    """Print sizes and their ratio."""
    from ..bench.costs.loading import describe, measure_loading
    from ..sedialect_core.environment import environment

    print(describe(measure_loading(parsed.gigabytes), environment()))
    return 0


def _add_quality(bench: Any) -> None:
    quality = bench.add_parser("quality", help="how near to 16 bit each precision, setting and other format stays")
    quality.add_argument("--quick", action="store_true", help="8 pairs, few arms, velocity at 5 steps: minutes on a CPU")
    quality.add_argument(
        "--arms", metavar="PATTERN", help="measure only arms whose name or group matches this regular expression"
    )
    quality.add_argument("--list", action="store_true", help="print the arms and stop")
    quality.add_argument("--base", help="the arm that others are compared with; default: w4a4 B=16, the plain preset")
    quality.add_argument("--pairs", type=int, help="number of prompt and seed pairs; default: 64")
    quality.add_argument("--metrics", help="all, video, or a list such as velocity,psnr,cvvdp; velocity alone with --quick")
    quality.add_argument("--forced-steps", type=int, help="number of steps at which velocity is measured; default: all")
    quality.add_argument("--batch", type=int, help="videos at a time; 16 on a GPU, 4 on a CPU")
    quality.add_argument("--device", default="auto")
    add_dtype(quality, "of the pipeline")
    quality.add_argument("--model", help="a diffusers pipeline's folder or name on the Hub; default: the bundled model")
    quality.add_argument("--prompts", type=Path, help="with --model: JSON as demo/prompts.json is, or one prompt a line")
    quality.add_argument("--steps", type=int, help="sampling steps")
    quality.add_argument("--negative-prompt")
    quality.add_argument("--guidance-scale", type=float)
    for option in ("--height", "--width", "--num-frames"):
        quality.add_argument(option, type=int)
    quality.add_argument(
        "--planted",
        type=int,
        nargs="+",
        default=[1],
        metavar="SIZE",
        help="plant outlier channels so many times larger, without changing the 16-bit function; several: one run each",
    )
    quality.add_argument("--fast", action="store_true", help="the bundled model in 4 steps without guidance, by its LoRA")
    quality.add_argument("--lora", help="a LoRA's file, folder or name on the Hub, fused into the 16-bit model first")
    quality.add_argument("--fps", type=int, default=16)
    quality.add_argument(
        "--output", default="sedialect-quality", help="folder for results; an interrupted run continues there"
    )
    quality.add_argument(
        "--write", type=Path, help="a document whose tables between marks are replaced, such as docs/results/quality.md"
    )
    quality.set_defaults(run=run_quality)


def run_quality(parsed: argparse.Namespace) -> int:
    """Measure what has no results yet; print the tables, and write them where asked."""
    from ..bench import quality
    from ..sedialect_core.storage.marked import check_marked, write_marked
    from ..sedialect_core.storage.paths import folder_to_write, place

    base = parsed.base or quality.BASE
    if parsed.list:
        print("\n".join(f"{arm.group}: {arm.name}{' (quick)' if arm.quick else ''}" for arm in quality.arms()))
        return 0
    arms = quality.choose(parsed.arms, base, parsed.quick)
    jobs = _jobs_of(parsed)
    output, failed = folder_to_write(parsed.output), dict[str, str]()
    document = parsed.write and place(parsed.write)
    if document is not None:
        check_marked(document, [quality.PART])
    by_job = {job: _measured(job, arms, base, output, failed) for job in jobs}
    if len(jobs) == 1:
        table = quality.markdown(jobs[0], by_job[jobs[0]], base)
        paths = quality.write_results(jobs[0], by_job[jobs[0]], base, output)
    else:
        table = quality.variants_markdown(by_job, base)
        paths = quality.write_variants(by_job, base, output)
    print(table)
    print("written:", *paths, sep="\n  ")
    if document is not None:
        write_marked(document, {quality.PART: table})
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _measured(job: "Job", arms: Sequence["Arm"], base: str, output: Path, failed: dict[str, str]) -> "list[Result]":
    """The results of a job; arms that fail are added to `failed` under their names and the job's outliers."""
    from ..bench import quality
    from ..sedialect_core.errors import InputError

    broken: dict[str, str] = {}
    results = quality.run(job, arms, output, failed=broken)
    if base in broken:
        raise InputError(f"{base}, which the others are held against, failed: {broken[base]}")
    planted = "" if job.planted == 1 else f", outliers x{job.planted}"
    failed.update({f"{name}{planted}": reason for name, reason in broken.items()})
    return results


def _jobs_of(parsed: argparse.Namespace) -> "list[Job]":
    """One job for each size of planted outliers."""
    from dataclasses import replace

    from ..sedialect_core.errors import InputError

    job = _job_of(parsed)
    for size in parsed.planted:
        if size < 1 or size & (size - 1):
            raise InputError(f"--planted is {size}; outliers are planted exactly in powers of two, as 8, 32 or 128")
    return [replace(job, planted=size) for size in dict.fromkeys(parsed.planted)]


def _job_of(parsed: argparse.Namespace) -> "Job":
    from ..bench import quality
    from ..sedialect_core.errors import InputError
    from ..sedialect_core.video.sampling import Request, pick_device

    device = pick_device(parsed.device)
    settings: dict[str, Any] = {
        "metrics": parsed.metrics or ("velocity" if parsed.quick else "all"),
        "forced_steps": parsed.forced_steps or (QUICK_STEPS if parsed.quick else None),
        "batch": (16 if device.startswith("cuda") else 4) if parsed.batch is None else parsed.batch,
        "device": device,
        "dtype": parsed.dtype,
        "lora": parsed.lora,
        "fast": parsed.fast,
    }
    pairs = (QUICK_PAIRS if parsed.quick else 64) if parsed.pairs is None else parsed.pairs
    names = ("height", "width", "num_frames", "guidance_scale", "negative_prompt", "steps")
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    if parsed.model is None:
        if parsed.prompts is not None:
            raise InputError("--prompts needs --model: the bundled model has its own evaluation prompts")
        return quality.bundled_job(pairs, given, **settings)
    if parsed.fast:
        raise InputError("--fast is about the bundled model; with --model, give --lora, --steps and --guidance-scale")
    if parsed.prompts is None:
        raise InputError("--model needs --prompts, a file with a prompt a line")
    requests = quality.requests_of(pairs, quality.read_prompts(parsed.prompts), Request(prompt="-", **given))
    return quality.job_of(parsed.model, requests, fps=parsed.fps, **settings)
