"""`sedialect demo` and `sedialect compare`: 16 bit beside quantized."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PRESETS, SALIENCES, SHARINGS, SeDialectConfig

if TYPE_CHECKING:
    from ..sampling import Request

OPTIONS = (
    "formatbook",
    "block_size",
    "equalize",
    "salient_ratio",
    "salient_by",
    "semantic",
    "semantic_sharing",
    "protected_steps",
)


def add_to(commands: Any) -> None:
    """Add both commands."""
    demo = commands.add_parser("demo", help="16 bit beside 4 bit, with the model that comes with the package")
    demo.add_argument("--prompt", help="what the video shows; the bundled model knows coloured objects that move")
    _add_sampling(demo)
    demo.set_defaults(run=run_demo)

    compare = commands.add_parser("compare", help="the same for any diffusers video pipeline")
    compare.add_argument("--model", required=True, help="a pipeline's folder, or its name on the Hugging Face Hub")
    compare.add_argument("--prompt", required=True)
    compare.add_argument("--negative-prompt")
    compare.add_argument("--guidance-scale", type=float)
    for option in ("--height", "--width", "--num-frames"):
        compare.add_argument(option, type=int)
    compare.add_argument("--fps", type=int, default=16)
    compare.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the plain arm")
    _add_sampling(compare)
    compare.set_defaults(run=run_compare)


def add_config(command: argparse.ArgumentParser) -> None:
    """The options that make a `SeDialectConfig`; read them with `config_of`."""
    command.add_argument("--preset", default="default", help=", ".join(PRESETS))
    command.add_argument("--formatbook", help="a built-in book's name, a file, a folder or a Hub repository")
    command.add_argument("--block-size", type=int, help="16 or 32")
    command.add_argument("--salient-ratio", type=float, help="part of the video tokens that get a second term, 0 to 1")
    command.add_argument("--salient-by", help=", ".join(SALIENCES))
    command.add_argument(
        "--no-equalize", dest="equalize", action="store_false", default=None, help="leave outlier channels as they are"
    )
    command.add_argument("--semantic", action="store_true", default=None, help="like tokens share formats")
    command.add_argument("--semantic-sharing", help=", ".join(SHARINGS))
    command.add_argument(
        "--protected-steps", type=int, nargs=2, metavar=("FIRST", "LAST"), help="steps that run with 8-bit activations"
    )


def config_of(parsed: argparse.Namespace) -> SeDialectConfig:
    """The settings that were asked for, checked.

    Raises:
        SeDialectError: a preset, book or value is unknown.
    """
    from ..formatbook import Formatbook
    from ..formatbook.matching import is_auto

    given = {name: getattr(parsed, name) for name in OPTIONS if getattr(parsed, name) is not None}
    config = SeDialectConfig.preset(parsed.preset, **given)
    if not is_auto(config.formatbook):  # which only the model at hand can answer
        Formatbook.resolve(config.formatbook)
    return config


def run_demo(parsed: argparse.Namespace) -> int:
    """Compare with the bundled model."""
    from .. import demo
    from ..sampling import load_pipeline, pick_device

    config = config_of(parsed)
    settings = demo.defaults()
    prompt = settings["prompt"] if parsed.prompt is None else parsed.prompt
    request = demo.request(prompt, settings["seed"] if parsed.seed is None else parsed.seed, parsed.steps)

    def load() -> Any:
        import torch

        pipe = load_pipeline(demo.MODEL, torch.bfloat16, pick_device(parsed.device))
        unknown = demo.unknown_words(request.prompt, pipe.tokenizer)
        if unknown:
            print(f"note: the bundled model does not know: {', '.join(unknown)}", file=sys.stderr)
        return pipe

    return _run(parsed, load, request, config, settings["fps"])


def run_compare(parsed: argparse.Namespace) -> int:
    """Compare with a pipeline of the user's."""
    from ..sampling import Request, load_pipeline, pick_device

    config = config_of(parsed)
    optional = ("negative_prompt", "guidance_scale", "height", "width", "num_frames")
    request = Request(
        prompt=parsed.prompt,
        seed=parsed.seed or 0,
        steps=30 if parsed.steps is None else parsed.steps,
        **{name: getattr(parsed, name) for name in optional},
    )

    def load() -> Any:
        import torch

        return load_pipeline(parsed.model, getattr(torch, parsed.dtype), pick_device(parsed.device))

    return _run(parsed, load, request, config, parsed.fps)


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="of the noise, the same for both videos")
    command.add_argument("--steps", type=int, help="sampling steps")
    add_config(command)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    command.add_argument("--output", type=Path, default=Path("sedialect-demo"), help="folder for videos and numbers")


def _run(parsed: argparse.Namespace, load: Callable[[], Any], request: "Request", config: SeDialectConfig, fps: int) -> int:
    from ..comparison import check_writable, compare, write_comparison
    from ..video import check_codec

    check_codec()
    check_writable(parsed.output)
    print(f"prompt: {request.prompt} (seed {request.seed}, {request.steps} steps)", file=sys.stderr)
    comparison = compare(load(), request, config)
    paths = write_comparison(comparison, parsed.output, fps)
    print(comparison.table())
    print("written:", *paths, sep="\n  ")
    return 0
