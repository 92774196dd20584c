"""`sedialect doctor`."""

import argparse
from typing import Any

from ..sedialect_core.errors import InputError


def add_to(commands: Any) -> None:
    """Add the command."""
    doctor = commands.add_parser("doctor", help="show versions, devices and which kernels run and why; run a self-test")
    doctor.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print what was found.

    Raises:
        InputError: the self-test failed.
    """
    from .self_test import examine

    rows, sound = examine()
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {finding}" for label, finding in rows))
    if not sound:
        raise InputError("the self-test failed: see above which device; report it with this output")
    return 0
