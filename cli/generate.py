"""`sedialect generate`: the videos of a list of prompts, on as many GPUs as there are."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare import add_config, add_dtype, add_video, config_of

if TYPE_CHECKING:
    from ..sedialect_core.generation.worker import VideoBatch


def add_to(commands: Any) -> None:
    """Add the command."""
    generate = commands.add_parser("generate", help="make the videos of a list of prompts, with a worker on each GPU")
    generate.add_argument("model", help="a pipeline's folder, or its name on the Hub; 16 bit, or quantized already")
    generate.add_argument("--prompts", type=Path, required=True, help="a prompt a line, or JSON as demo/prompts.json")
    generate.add_argument("--output", required=True, help="folder for the videos, their records and the manifest")
    generate.add_argument("--samples", type=int, default=1, help="videos of each prompt")
    generate.add_argument("--gpus", type=int, default=0, metavar="N", help="workers on this machine (a worker a GPU)")
    generate.add_argument("--status", action="store_true", help="make nothing; tell how far all workers are")
    generate.add_argument("--16bit", dest="unquantized", action="store_true", help="leave a 16-bit model as it is")
    generate.add_argument("--steps", type=int, default=30, help="sampling steps")
    add_video(generate)
    add_config(generate)
    add_dtype(generate, "to compute in")
    generate.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    generate.set_defaults(run=run_generate)


def run_generate(parsed: argparse.Namespace) -> int:
    """Make this process's share, or start the workers that do; or tell how far they are."""
    import torch

    from ..sedialect_core.errors import InputError
    from ..sedialect_core.generation.finished import progress
    from ..sedialect_core.generation.worker import run_worker
    from ..sedialect_core.storage import paths
    from ..sedialect_core.video.mp4 import check_codec
    from ..sedialect_core.video.workers import Place, launched, run_processes

    parsed.output = paths.place(parsed.output)
    batch = _batch(parsed)
    if parsed.status:
        print(json.dumps(progress(parsed.output, batch.items())))
        return 0
    check_codec()
    device = parsed.device if parsed.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    place = launched(device)
    if place is None:
        paths.check_place(parsed.output)
        most = torch.cuda.device_count() if device == "cuda" else 1
        workers = parsed.gpus or most
        if device == "cuda" and not most:
            raise InputError("--device is cuda, and this machine has no CUDA GPU; use --device cpu")
        if workers < 1 or (device == "cuda" and workers > most):
            raise InputError(f"--gpus is {workers}, and this machine has {most}")
        if workers > 1:
            run_processes(run_worker, workers, device, batch, together=False)
            return 0
    run_worker(place or Place(device=device), batch)
    return 0


def _batch(parsed: argparse.Namespace) -> "VideoBatch":
    from ..sedialect_core.generation.worker import VideoBatch, prompts_of
    from ..sedialect_core.video.sampling import Request
    from ..sedialect_core.video.work_list import read_prompts

    names = ("steps", "negative_prompt", "guidance_scale", "height", "width", "num_frames")
    request = Request(prompt="-", **{name: getattr(parsed, name) for name in names})
    config = None if parsed.unquantized else config_of(parsed)
    prompts = prompts_of(read_prompts(parsed.prompts))
    return VideoBatch(parsed.model, prompts, parsed.output, config, parsed.samples, request, parsed.fps, parsed.dtype)
