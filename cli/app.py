"""`sedialect app`: the page with 16 bit beside quantized."""

import argparse
from typing import Any

from .compare import add_dtype

BOUNDS = {
    "max_steps": "sampling steps",
    "max_frames": "frames",
    "max_side": "pixels of width and height",
    "max_pixels": "pixels of all frames together",
    "seconds": "that one run may take",
    "waiting": "visitors that may wait in line",
}


def add_to(commands: Any) -> None:
    """Add the command."""
    app = commands.add_parser("app", help="open a page in the browser: generate, compare, look inside")
    app.add_argument(
        "--model", help="a pipeline's folder, or its name on the Hugging Face Hub; the bundled model if not given"
    )
    app.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    app.add_argument("--port", type=int, default=7860)
    app.add_argument("--share", action="store_true", help="a public address through Gradio's servers")
    app.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which a proxy serves the page; a page bound to this machine alone is refused under other names",
    )
    app.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add_dtype(app, "of the 16-bit video")
    app.add_argument(
        "--calibration", metavar="DIR", help="calibration of this model from quantize --calibrate; visitors may use it"
    )
    app.add_argument("--fps", type=int, help="frames a second of the videos")
    bounds = app.add_argument_group("limits for visitors")
    for option, text in BOUNDS.items():
        bounds.add_argument(f"--{option.replace('_', '-')}", type=int, help=text)
    app.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from ..web.app import Settings, launch

    changes = tuple((name, getattr(parsed, name)) for name in ("fps", *BOUNDS) if getattr(parsed, name) is not None)
    where = parsed.host, parsed.port, parsed.share, parsed.device, parsed.dtype
    launch(Settings(parsed.model, *where, parsed.calibration, tuple(parsed.allowed_host), changes))
    return 0
