"""The built-in book `universal-32`: shapes fitted to what layers read and weigh in general, not to one model.

The blocks are drawn from five distributions, for blocks of 16 and of 32, each counting alike: Gaussian; Laplace; Student's t
with 4 degrees of freedom; GELU of a Gaussian, as the second half of a feed-forward reads it; and a Gaussian with a scale for
each channel, as a norm's weight leaves it. All are encoded as activations and as weights.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional

from ..codec import encode
from ..codec.encoded import Role
from ..formatbook import Formatbook
from ..formatbook.blocks import BlockSample
from ..formatbook.fitting import Fitted, fit_book
from .capture import add_activation, add_weight

NAME = "universal-32"
DESCRIPTION = "8 maxima x 4 shapes fitted to Gaussian, Laplace, Student-t, GELU and channel-scaled blocks of 16 and 32."
BLOCK_SIZES = (16, 32)
ROWS, WIDTH = 256, 1024  # of each distribution
BLOCKS_OF_A_MAXIMUM = 1 << 13  # kept of each distribution and block size
CHANNEL_SPREAD = 0.7  # standard deviation of the logarithm of a channel's scale

Draw = Callable[[torch.Generator, int, int], torch.Tensor]


def _gaussian(random: torch.Generator, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=random)


def _laplace(random: torch.Generator, rows: int, width: int) -> torch.Tensor:
    sign = torch.randint(0, 2, (rows, width), generator=random) * 2 - 1
    return sign * torch.empty(rows, width).exponential_(generator=random)


def _student(random: torch.Generator, rows: int, width: int) -> torch.Tensor:
    chi_squared = torch.randn(4, rows, width, generator=random).square().sum(0)
    return _gaussian(random, rows, width) / (chi_squared / 4).sqrt()


def _gelu(random: torch.Generator, rows: int, width: int) -> torch.Tensor:
    return functional.gelu(1.5 * _gaussian(random, rows, width), approximate="tanh")


def _channels(random: torch.Generator, rows: int, width: int) -> torch.Tensor:
    return _gaussian(random, rows, width) * (CHANNEL_SPREAD * torch.randn(1, width, generator=random)).exp()


SOURCES: dict[str, Draw] = {
    "Gaussian": _gaussian,
    "Laplace": _laplace,
    "Student t": _student,
    "GELU": _gelu,
    "channel scales": _channels,
}


def fit_universal(seed: int = 0, on_maximum: Callable[[int], None] = lambda maximum: None) -> Fitted:
    """The book that the package ships as `universal-32`, learnt again; half a minute on a CPU."""
    return fit_book(
        list(_samples(seed)),
        Formatbook.builtin("sedialect-32"),
        name=NAME,
        description=DESCRIPTION,
        seed=seed,
        on_maximum=on_maximum,
    )


def _samples(seed: int) -> Iterator[BlockSample]:
    """One sample a distribution, block size and role."""
    random = torch.Generator().manual_seed(seed)
    tables = Formatbook.builtin("sedialect-32").tables()
    for draw in SOURCES.values():
        x = draw(random, ROWS, WIDTH)
        for block_size in BLOCK_SIZES:
            for add in (add_activation, add_weight):
                sample = BlockSample(BLOCKS_OF_A_MAXIMUM, seed)
                add(sample, x, tables, block_size)
                yield sample


def comparison_table(books: Sequence[Formatbook], seed: int = 12345) -> str:
    """Relative squared errors of blocks that nobody was fitted to, as markdown: a row for each role, block size and book."""
    roles: tuple[Role, ...] = ("activation", "weight")
    lines = [f"| | B | book | {' | '.join(SOURCES)} |", f"|---|---|---|{'---|' * len(SOURCES)}"]
    for role in roles:
        for block_size in BLOCK_SIZES:
            for book in books:
                random = torch.Generator().manual_seed(seed)
                errors = [_error(draw(random, 64, WIDTH), book, block_size, role) for draw in SOURCES.values()]
                cells = " | ".join(f"{1e3 * error:.2f}" for error in errors)
                lines.append(f"| {role}s | {block_size} | `{book.name}` | {cells} |")
    return "\n".join(lines)


def _error(x: torch.Tensor, book: Formatbook, block_size: int, role: Role) -> float:
    decoded = encode(x, formatbook=book, block_size=block_size, role=role).dequantize(torch.float32)
    return float((decoded - x).square().sum() / x.square().sum())
