"""The command `sedialect`. It reads arguments, calls one room, prints what comes back, and turns errors into one line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import PRESETS, SeDialectConfig
from .errors import InputError, SeDialectError

if TYPE_CHECKING:
    from .sampling import Request

FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, or 2 after a one-line error."""
    parsed = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except SeDialectError as error:
        print(f"sedialect: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nsedialect: interrupted; nothing was written. Run the command again to start over", file=sys.stderr)
    return FAILED


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="sedialect", description="4-bit video diffusion transformers with SemanticDialect.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="16 bit beside 4 bit, with the model that comes with the package")
    demo.add_argument("--prompt", help="what the video shows; the bundled model knows coloured objects that move")
    _sampling_options(demo)
    demo.set_defaults(run=_demo)

    compare = commands.add_parser("compare", help="the same for any diffusers video pipeline")
    compare.add_argument("--model", required=True, help="a pipeline's folder, or its name on the Hugging Face Hub")
    compare.add_argument("--prompt", required=True)
    compare.add_argument("--negative-prompt")
    compare.add_argument("--guidance-scale", type=float)
    for option in ("--height", "--width", "--num-frames"):
        compare.add_argument(option, type=int)
    compare.add_argument("--fps", type=int, default=16)
    compare.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the plain arm")
    _sampling_options(compare)
    compare.set_defaults(run=_compare)

    doctor = commands.add_parser("doctor", help="versions, devices, which path runs and why, and a self-test")
    doctor.set_defaults(run=_doctor)

    bench = commands.add_parser("bench", help="measure").add_subparsers(required=True, metavar="WHAT")
    quality = bench.add_parser("quality", help="how near each precision is to 16 bit, on the bundled model")
    quality.add_argument("--prompts", type=int, default=8, help="how many of the 64 evaluation prompts")
    quality.add_argument("--device", default="auto")
    quality.add_argument("--write", type=Path, help="a document whose marked table is replaced")
    quality.set_defaults(run=_bench_quality)
    return top


def _sampling_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="of the noise, the same for both videos")
    command.add_argument("--steps", type=int, help="sampling steps")
    command.add_argument("--preset", default="default", help=", ".join(PRESETS))
    command.add_argument("--formatbook", help="a built-in book's name or a file")
    command.add_argument("--block-size", type=int, help="16 or 32")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    command.add_argument("--output", type=Path, default=Path("sedialect-demo"), help="folder for videos and numbers")


def _config(parsed: argparse.Namespace) -> SeDialectConfig:
    from .formatbook import Formatbook

    given = {name: getattr(parsed, name) for name in ("formatbook", "block_size") if getattr(parsed, name) is not None}
    config = SeDialectConfig.preset(parsed.preset, **given)
    Formatbook.resolve(config.formatbook)
    return config


def _demo(parsed: argparse.Namespace) -> int:
    from . import demo
    from .sampling import load_pipeline, pick_device

    config = _config(parsed)
    settings = demo.defaults()
    prompt = settings["prompt"] if parsed.prompt is None else parsed.prompt
    request = demo.request(prompt, parsed.seed, parsed.steps)

    def load() -> Any:
        import torch

        pipe = load_pipeline(demo.MODEL, torch.bfloat16, pick_device(parsed.device))
        unknown = demo.unknown_words(request.prompt, pipe.tokenizer)
        if unknown:
            print(f"note: the bundled model does not know: {', '.join(unknown)}", file=sys.stderr)
        return pipe

    return _run_comparison(parsed, load, request, config, settings["fps"])


def _compare(parsed: argparse.Namespace) -> int:
    from .sampling import Request, load_pipeline, pick_device

    config = _config(parsed)
    optional = ("negative_prompt", "guidance_scale", "height", "width", "num_frames")
    request = Request(
        prompt=parsed.prompt,
        seed=parsed.seed,
        steps=30 if parsed.steps is None else parsed.steps,
        **{name: getattr(parsed, name) for name in optional},
    )

    def load() -> Any:
        import torch

        return load_pipeline(parsed.model, getattr(torch, parsed.dtype), pick_device(parsed.device))

    return _run_comparison(parsed, load, request, config, parsed.fps)


def _run_comparison(
    parsed: argparse.Namespace, load: Callable[[], Any], request: "Request", config: SeDialectConfig, fps: int
) -> int:
    from .comparison import check_writable, compare, write_comparison
    from .video import check_codec

    check_codec()
    check_writable(parsed.output)
    print(f"prompt: {request.prompt} (seed {request.seed}, {request.steps} steps)", file=sys.stderr)
    comparison = compare(load(), request, config)
    paths = write_comparison(comparison, parsed.output, fps)
    print(comparison.table())
    print("written:", *paths, sep="\n  ")
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from .doctor import examine

    rows, sound = examine()
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {finding}" for label, finding in rows))
    if not sound:
        raise InputError("the self-test failed: see above which device; report it with this output")
    return 0


def _bench_quality(parsed: argparse.Namespace) -> int:
    from .bench.quality import run_quality, write_between_marks
    from .sampling import pick_device

    table = run_quality(parsed.prompts, pick_device(parsed.device))
    print(table)
    if parsed.write is not None:
        write_between_marks(parsed.write, table)
    return 0
