"""`sedialect formatbook …`: look at books, and bring them to and from the Hugging Face Hub."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..sedialect_core.errors import InputError
from . import formatbook_fit as fitting


def add_to(commands: Any) -> None:
    """Add the command and what it does with books."""
    books = commands.add_parser("formatbook", help="show, fit, push or pull a set of 4-bit number formats")
    books = books.add_subparsers(required=True, metavar="WHAT")
    show = books.add_parser("show", help="each dialect of a book and how often it is chosen")
    show.add_argument("book", nargs="?", default="universal-32", help="built-in name, file, folder or Hub repository")
    show.add_argument("--model", help="count which dialects this model's weights choose: a folder, or a name on the Hub")
    show.add_argument("--block-size", type=int, default=16, help="16 or 32")
    show.add_argument("--png", type=Path, help="also write a chart to this file")
    show.set_defaults(run=run_show)

    push = books.add_parser("push", help="upload a book; log in with HF_TOKEN or `hf auth login`")
    push.add_argument("book", help="file or folder")
    push.add_argument("repository", help="owner/name; created if it does not exist")
    push.add_argument("--private", action="store_true", help="make a newly created repository private")
    push.add_argument("--revision", help="branch; created if it does not exist")
    push.add_argument("--message", default="Upload formatbook", help="commit message")
    push.set_defaults(run=run_push)

    pull = books.add_parser("pull", help="download a book")
    pull.add_argument("repository", help="owner/name")
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.add_argument("--output", help="file (.json) or folder; default: NAME.json in the current folder")
    pull.set_defaults(run=run_pull)
    fitting.add_to(books)


def run_show(parsed: argparse.Namespace) -> int:
    """Print the table, and draw the picture where asked."""
    from ..sedialect_core.charts.dialects import ASCII_MARKS, MARKS, Use, draw, printable, table
    from ..sedialect_core.charts.use import use_by_gaussian_blocks, use_by_model
    from ..sedialect_core.formatbook import Formatbook

    book = Formatbook.resolve(parsed.book)
    if parsed.model is None:
        use = Use(use_by_gaussian_blocks(book, parsed.block_size), f"Gaussian blocks of {parsed.block_size}")
    else:
        name = printable(Path(parsed.model).name if os.path.exists(parsed.model) else parsed.model)
        use = Use(use_by_model(book, parsed.model, parsed.block_size), f"weights of {name}")
    print(table(book, use, MARKS if _can_print(MARKS) else ASCII_MARKS))
    if parsed.png is not None:
        print(f"written: {draw(book, use, parsed.png)}")
    return 0


def run_push(parsed: argparse.Namespace) -> int:
    """Upload, and print the address."""
    from ..sedialect_core.formatbook import Formatbook

    book = Formatbook.resolve(parsed.book)
    address = book.push_to_hub(
        parsed.repository, private=parsed.private, revision=parsed.revision, commit_message=parsed.message
    )
    print(f"pushed: {address}")
    return 0


def run_pull(parsed: argparse.Namespace) -> int:
    """Download, and print where it lies.

    Raises:
        InputError: no place was given, and the usual one is taken.
    """
    from ..sedialect_core.formatbook import Formatbook
    from ..sedialect_core.storage.paths import check_place, place

    output = place(parsed.output if parsed.output is not None else f"{parsed.repository.rpartition('/')[2]}.json")
    if parsed.output is None and output.exists():
        raise InputError(f"{output.name} exists already; pass --output {output.name} to replace it, or another place")
    check_place(output.parent if output.suffix == ".json" else output)
    book = Formatbook.from_pretrained(parsed.repository, revision=parsed.revision)
    written = book.save(output) if output.suffix == ".json" else book.save_pretrained(output)
    print(f"pulled: {written} ({len(book.dialects)} dialects, digest {book.digest})")
    return 0


def _can_print(marks: tuple[str, ...]) -> bool:
    try:
        "".join(marks).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
