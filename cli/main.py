"""The command `sedialect`: it finds the command, and turns errors into one line and exit code 2."""

import argparse
import sys
from collections.abc import Callable, Sequence

from ..sedialect_core.errors import SeDialectError
from . import app as serving
from . import bench as measuring
from . import compare as comparing
from . import doctor as examining
from . import formatbook as formatbooks
from . import generate as generating
from . import plan as planning
from . import quantize as quantizing
from . import verify as verifying

FAILED = 2
COMMANDS = (comparing, generating, planning, quantizing, measuring, formatbooks, verifying, serving, examining)


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
    for room in COMMANDS:
        room.add_to(commands)
    return top
