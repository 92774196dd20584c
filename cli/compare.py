"""`sedialect demo` and `sedialect compare`: 16 bit beside quantized."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..sedialect_core.config import PRESETS, SeDialectConfig
from ..sedialect_core.settings import SETTINGS, Choice, Number, Numbers, Option, Setting, Switch

if TYPE_CHECKING:
    from ..sedialect_core.video.sampling import Request


def add_to(commands: Any) -> None:
    """Add both commands."""
    demo = commands.add_parser("demo", help="make one video in 16 bit and in 4 bit with the bundled model, and compare them")
    demo.add_argument("--prompt", help="what the video shows; the bundled model knows coloured objects that move")
    demo.add_argument("--fast", action="store_true", help="4 steps without guidance, by a LoRA that comes with the model")
    _add_sampling(demo)
    demo.set_defaults(run=run_demo)

    compare = commands.add_parser(
        "compare", help="make one video in 16 bit and in 4 bit with any diffusers video pipeline, and compare them"
    )
    compare.add_argument("--model", required=True, help="a pipeline's folder, or its name on the Hugging Face Hub")
    compare.add_argument("--prompt", required=True)
    add_video(compare)
    _add_sampling(compare)
    compare.set_defaults(run=run_compare)


def add_video(command: argparse.ArgumentParser) -> None:
    """What is asked of any pipeline's videos, beside the prompt."""
    command.add_argument("--negative-prompt")
    command.add_argument("--guidance-scale", type=float)
    for option in ("--height", "--width", "--num-frames"):
        command.add_argument(option, type=int)
    command.add_argument("--fps", type=int, default=16)


def add_config(parser: argparse.ArgumentParser, command: str = "") -> None:
    """The options that make a `SeDialectConfig`, and those that only `command` has; read them with `config_of`."""
    parser.add_argument("--preset", default="default", help=f"one of {', '.join(PRESETS)}")
    for entry in SETTINGS:
        if entry.option is not None and entry.option.command in ("", command):
            parser.add_argument(entry.flag, dest=entry.name, default=None, **_argument(entry, entry.option))


def _argument(entry: Setting, option: Option) -> dict[str, Any]:
    """What argparse is told of a setting. Values are checked by the configuration; None leaves them to the preset."""
    values = entry.values
    said = (entry.help[0].lower() + entry.help[1:].removesuffix(".")).replace("%", "%%")  # which argparse would fill in
    if isinstance(values, Switch):
        off = {"action": "store_false", "help": f"turn this off: {said}"}
        return off if entry.default else {"action": "store_true", "help": said}
    bare = "" if option.bare is None else f"; without one: {option.bare}"
    told: dict[str, Any] = {"help": f"{said} ({values.words}{bare})"}
    if option.metavar:
        told["metavar"] = option.metavar
    if option.bare is not None:
        told |= {"nargs": "?", "const": option.bare}
    if isinstance(values, Number):
        told["type"] = int if values.whole else float
    elif isinstance(values, Choice):
        told["type"] = type(values.options[0])
    if isinstance(values, Numbers):
        told |= (
            {"nargs": len(values.parts), "metavar": tuple(map(str.upper, values.parts))} if values.parts else {"nargs": "+"}
        )
    return told


def given_settings(parsed: argparse.Namespace) -> dict[str, Any]:
    """The settings that options were given for; the preset has the others."""
    given = {entry.name: getattr(parsed, entry.name, None) for entry in SETTINGS if entry.option is not None}
    return {name: value for name, value in given.items() if value is not None}


def add_dtype(command: argparse.ArgumentParser, what: str) -> None:
    """The option that names the dtype to compute in; None leaves it to `choose_dtype`."""
    told = f"{what}; by default bfloat16, and float32 on CPUs where a short measurement finds bfloat16 slower"
    command.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help=told)


def config_of(parsed: argparse.Namespace) -> SeDialectConfig:
    """The settings that were asked for, checked.

    Raises:
        SeDialectError: a preset, book or value is unknown.
    """
    from ..sedialect_core.formatbook import Formatbook
    from ..sedialect_core.formatbook.matching import is_auto

    config = SeDialectConfig.preset(parsed.preset, **given_settings(parsed))
    if not is_auto(config.formatbook):  # which only the model at hand can answer
        Formatbook.resolve(config.formatbook)
    return config


def run_demo(parsed: argparse.Namespace) -> int:
    """Compare with the bundled model."""
    config = _started(parsed)
    from ..sedialect_core import demo
    from ..sedialect_core.video.compute_dtype import choose_dtype
    from ..sedialect_core.video.sampling import load_pipeline, pick_device

    settings = demo.defaults()
    prompt = settings["prompt"] if parsed.prompt is None else parsed.prompt
    request = demo.request(prompt, settings["seed"] if parsed.seed is None else parsed.seed, parsed.steps, parsed.fast)

    def load() -> Any:
        device = pick_device(parsed.device)
        pipe = load_pipeline(demo.MODEL, choose_dtype(device, parsed.dtype), device)
        if parsed.fast:
            demo.use_few_steps(pipe)
        unknown = demo.unknown_words(request.prompt, pipe.tokenizer)
        if unknown:
            print(f"note: the bundled model does not know: {', '.join(unknown)}", file=sys.stderr)
        return pipe

    return _run(parsed, load, request, config, settings["fps"])


def run_compare(parsed: argparse.Namespace) -> int:
    """Compare with a pipeline of the user's."""
    config = _started(parsed)
    from ..sedialect_core.video.compute_dtype import choose_dtype
    from ..sedialect_core.video.sampling import Request, load_pipeline, pick_device

    optional = ("negative_prompt", "guidance_scale", "height", "width", "num_frames")
    request = Request(
        prompt=parsed.prompt,
        seed=parsed.seed or 0,
        steps=30 if parsed.steps is None else parsed.steps,
        **{name: getattr(parsed, name) for name in optional},
    )

    def load() -> Any:
        device = pick_device(parsed.device)
        return load_pipeline(parsed.model, choose_dtype(device, parsed.dtype), device)

    return _run(parsed, load, request, config, parsed.fps)


def _started(parsed: argparse.Namespace) -> SeDialectConfig:
    """The settings; importing torch, which reading them needs, takes seconds on a cold disk."""
    from ..sedialect_core.progress import shown_bar

    with shown_bar("starting"):
        return config_of(parsed)


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="seed of the noise; both videos start from the same noise")
    command.add_argument("--steps", type=int, help="sampling steps")
    add_config(command)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add_dtype(command, "of the 16-bit video")
    command.add_argument("--output", default="sedialect-demo", help="folder for videos and numbers")


def _run(parsed: argparse.Namespace, load: Callable[[], Any], request: "Request", config: SeDialectConfig, fps: int) -> int:
    from ..sedialect_core.comparison import compare, write_comparison
    from ..sedialect_core.progress import Console
    from ..sedialect_core.storage.paths import folder_to_write
    from ..sedialect_core.video.mp4 import check_codec, check_rate
    from ..sedialect_core.video.sampling import computed_in, in_words

    check_codec()
    check_rate(fps)
    output = folder_to_write(parsed.output)
    print(f"prompt: {request.prompt} (seed {request.seed}, {request.steps} steps)", file=sys.stderr)
    with Console() as watch:
        watch.on_phase("loading the model")
        pipe = load()
        watch.close()
        print(f"computing in {in_words(computed_in(pipe))}", file=sys.stderr)
        comparison = compare(pipe, request, config, watch=watch)
        watch.on_phase("writing")
        paths = write_comparison(comparison, output, fps)
    print(comparison.table())
    print("written:", *paths, sep="\n  ")
    return 0
