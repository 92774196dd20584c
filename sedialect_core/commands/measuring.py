"""`sedialect bench …`: the numbers of the docs, measured again."""

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the command and what it measures."""
    bench = commands.add_parser("bench", help="measure").add_subparsers(required=True, metavar="WHAT")
    quality = bench.add_parser("quality", help="how near each precision is to 16 bit, on the bundled model")
    quality.add_argument("--prompts", type=int, default=8, help="how many of the 64 evaluation prompts")
    quality.add_argument("--device", default="auto")
    quality.add_argument("--write", type=Path, help="a document whose marked table is replaced")
    quality.set_defaults(run=run_quality)
    fusing = bench.add_parser("fusing", help="what 4-bit rounding leaves of a LoRA that is fused")
    fusing.set_defaults(run=run_fusing)
    loading = bench.add_parser("loading", help="what loading a pre-quantized model takes in memory")
    loading.add_argument("--gigabytes", type=float, default=1.0, help="size of the random model that is written and loaded")
    loading.set_defaults(run=run_loading)


def run_fusing(parsed: argparse.Namespace) -> int:
    """Print the table of docs/compatibility.md."""
    from ..bench.fusing import measure_fusing

    print(measure_fusing())
    return 0


def run_loading(parsed: argparse.Namespace) -> int:
    """Print sizes and their ratio."""
    from ..bench.loading import describe, measure_loading
    from ..comparison import environment

    print(describe(measure_loading(parsed.gigabytes), environment()))
    return 0


def run_quality(parsed: argparse.Namespace) -> int:
    """Print the table, and write it where asked."""
    from ..bench.quality import measure_quality, write_between_marks
    from ..sampling import pick_device

    table = measure_quality(parsed.prompts, pick_device(parsed.device))
    print(table)
    if parsed.write is not None:
        write_between_marks(parsed.write, table)
    return 0
