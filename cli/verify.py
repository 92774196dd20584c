"""`sedialect verify`: whether a quantized model's files are what was written."""

import argparse
from typing import Any

from ..sedialect_core.errors import InputError


def add_to(commands: Any) -> None:
    """Add the command."""
    verify = commands.add_parser("verify", help="compare a quantized model with its digests, without loading it")
    verify.add_argument("model", metavar="DIR_OR_REPO", help="a folder, a file, or a repository on the Hugging Face Hub")
    verify.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print a line for each model.

    Raises:
        InputError: there is none, or one is damaged.
    """
    from ..sedialect_core.checkpoint.verification import verify

    found = verify(parsed.model)
    for one in found:
        counts = f"{one.layers} layers, {one.tensors} tensors, {one.bytes / 1e9:.3f} GB"
        print(f"{'damaged' if one.wrong else 'sound'}: {one.where} ({counts})")
    for error in (one.wrong for one in found if one.wrong):
        raise InputError(error)
    return 0
