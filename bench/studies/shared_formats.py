"""What tokens gain and lose by sharing formats: the study behind the defaults of `semantic` (docs/semantics.md).

For pairs of neighbouring tokens of the bundled model, as its layers read them: each one's own error, and the error of their
difference, when both choose freely and at three strengths of sharing. What sharing is meant to keep is the difference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...kernels import reference
from ...kernels.sharing import book_errors, shape_errors
from ...kernels.tables import Q_VALUES, DialectTables
from ...sedialect_core import demo
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.environment import machine_line
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.inspection.denoisers import denoisers
from ...sedialect_core.plan.rules import make_plan
from ...sedialect_core.semantics.steps import StepCounter
from ...sedialect_core.video.sampling import generate, load_pipeline

STRENGTHS = ("none", "none, of all 32", "sub-formatbook", "dialect", "dialect and exponent")
COSINES = (-1.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # lower edges of the bins
STEPS = (0, 5, 10, 15, 19)
PAIRS = 64  # looked at of each input
EVERY_BLOCK = 4
BLOCK_SIZE = 16
NEIGHBOURS = {"next frame": (1, 0, 0), "below": (0, 1, 0), "right": (0, 0, 1)}


@dataclass
class Tally:
    """Sums over the pairs of one bin: their number, energy, energy of the difference, and both errors at each strength."""

    pairs: int = 0
    energy: float = 0.0
    difference: float = 0.0
    own: list[float] = field(default_factory=lambda: [0.0] * len(STRENGTHS))
    between: list[float] = field(default_factory=lambda: [0.0] * len(STRENGTHS))


@dataclass
class Study:
    """All pairs by their cosine, and how many pairs of each kind of neighbour and step have it."""

    bins: list[Tally] = field(default_factory=lambda: [Tally() for _ in COSINES])
    counts: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def add(self, kind: str, step: int, a: torch.Tensor, b: torch.Tensor, book: Formatbook) -> None:
        """Note pairs of tokens a, b, float32 [n, K] each."""
        cosine = torch.cosine_similarity(a, b, dim=1)
        place = torch.bucketize(cosine, torch.tensor(COSINES[1:]), right=True)
        counts = self.counts.setdefault((kind, step), [0] * len(COSINES))
        encoded = [shared_values(a, b, strength, book) for strength in STRENGTHS]
        for number in place.unique().tolist():
            tally, some = self.bins[number], place == number
            tally.pairs += int(some.sum())
            counts[number] += int(some.sum())
            tally.energy += _energy(a[some]) + _energy(b[some])
            tally.difference += _energy(a[some] - b[some])
            for i, (p, q) in enumerate(encoded):
                tally.own[i] += _energy((p - a)[some]) + _energy((q - b)[some])
                tally.between[i] += _energy(((p - q) - (a - b))[some])


def shared_values(
    a: torch.Tensor, b: torch.Tensor, strength: str, book: Formatbook, block_size: int = BLOCK_SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both tokens of each pair encoded and decoded, float32 [n, K], sharing in each block what `strength` says.

    A pair takes the sub-formatbook, or the dialect, of least summed squared error by the tables; with the exponent, also the
    larger of both row scales and exponents. A shared dialect is one of all 32, a sub-formatbook's one of the block's own
    maximum, as layers choose; "none" comes in both kinds.
    """
    tables = book.tables()
    if strength in STRENGTHS[:3]:
        candidates = "all" if strength == STRENGTHS[1] else "max"
        allowed = _pair_books(a, b, book, block_size) if strength == "sub-formatbook" else None
        p, q = (_decoded(*reference.quantize_rows(x, tables, block_size, candidates, allowed)) for x in (a, b))
        return p, q
    return _one_dialect(a, b, strength == "dialect and exponent", tables, block_size)


def study(prompts: int) -> Study:
    """The study on the bundled model, in float32 on the CPU."""
    pipe = load_pipeline(demo.MODEL, torch.float32, "cpu")
    (model,) = denoisers(pipe).values()
    book, found = Formatbook.builtin("sedialect-32"), Study()
    chooser = torch.Generator().manual_seed(0)
    with _reading(model, lambda step, grid, x: _add_pairs(found, step, grid, x, book, chooser)):
        for prompt, seed in demo.evaluation_prompts()[:prompts]:
            generate(pipe, demo.request(prompt, seed), "Looking at pairs of tokens", output_type="latent")
    return found


def render(found: Study, prompts: int, where: dict[str, Any]) -> str:
    """Both tables as Markdown, with what they were measured on."""
    heads = " | ".join(STRENGTHS)
    lines = [
        f"| cosine of the pair | pairs | difference | {heads} |",
        "|---|---|---|" + "---|" * len(STRENGTHS),
    ]
    total = sum(tally.pairs for tally in found.bins)
    for name, tally in zip(_bin_names(), found.bins, strict=True):
        if tally.pairs:
            pairs = zip(tally.own, tally.between, strict=True)
            cells = " | ".join(f"{_thousandths(o, tally)} / {_thousandths(d, tally)}" for o, d in pairs)
            share, difference = tally.pairs / total, _thousandths(tally.difference, tally)
            lines.append(f"| {name} | {share:.1%} | {difference} | {cells} |")
    lines += ["", f"| neighbour | step | {' | '.join(_bin_names())} |", "|---|---|" + "---|" * len(COSINES)]
    for (kind, step), counts in sorted(found.counts.items()):
        lines.append(f"| {kind} | {step} | {' | '.join(f'{count / sum(counts):.1%}' for count in counts)} |")
    return "\n".join([*lines, "", f"{total} pairs, {prompts} prompts. {machine_line(where)}"])


def _one_dialect(
    a: torch.Tensor, b: torch.Tensor, one_exponent: bool, tables: DialectTables, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.stack([reference.activation_scale(x) for x in (a, b)])
    if one_exponent:
        scales = scales.amax(0).expand(2, -1)
    x = torch.stack([a, b]).view(2, len(a), -1, block_size)
    normal = x.abs() / scales.view(2, -1, 1, 1)
    deltas = torch.stack([reference._intermediate(part, reference.ACTIVATION_DELTA)[0] for part in normal])
    if one_exponent:
        deltas = deltas.amin(0).expand_as(deltas)
    units = (scales.unsqueeze(2) * torch.pow(2.0, -deltas)).unsqueeze(3)
    q = (2 * x.abs() / units).long().clamp_(max=Q_VALUES - 1)
    dialect = (_costs(q, tables) * units**2).sum(0).argmin(2, keepdim=True)
    value = tables.half_units.gather(1, tables.indices.long()).float()  # [D, 32]
    first, second = torch.copysign(value[dialect, q] * units, x).view(2, *a.shape)
    return first, second


def _pair_books(a: torch.Tensor, b: torch.Tensor, book: Formatbook, block_size: int) -> torch.Tensor:
    """The shapes that each pair may take in each block, as bits, uint8 [n, K/B]."""
    books = torch.tensor([sum(1 << shape for shape in sub) for sub in book.sub_formatbooks], dtype=torch.uint8)
    errors = [book_errors(shape_errors(x, book.tables(), block_size), books) for x in (a, b)]
    return books[(errors[0] + errors[1]).argmin(2)]


def _costs(q: torch.Tensor, tables: DialectTables) -> torch.Tensor:
    """Summed table errors of every block under every dialect, float32 [..., D], of q [..., B]."""
    histogram = torch.zeros(*q.shape[:-1], Q_VALUES)
    histogram.scatter_add_(-1, q, torch.ones(q.shape))
    return histogram @ tables.errors.float().T


def _decoded(operand: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return operand * scale.unsqueeze(1)


def _energy(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


def _add_pairs(
    found: Study, step: int, grid: tuple[int, int, int], x: torch.Tensor, book: Formatbook, chooser: torch.Generator
) -> None:
    """Some pairs of each kind of neighbour of one input [B, N, K]."""
    cells = x.flatten(0, 1)[: len(x) * grid[0] * grid[1] * grid[2]].view(len(x), *grid, -1).float()
    for kind, (dt, dh, dw) in NEIGHBOURS.items():
        t, h, w = grid
        first = cells[:, : t - dt, : h - dh, : w - dw].flatten(0, 3)
        second = cells[:, dt:, dh:, dw:].flatten(0, 3)
        some = torch.randint(len(first), (PAIRS,), generator=chooser)
        found.add(kind, step, first[some], second[some], book)


@contextmanager
def _reading(model: nn.Module, on_input: Any) -> Iterator[None]:
    """Call `on_input(step, grid, x)` with what layers of the video tokens read, one layer for each input."""
    plan, counter = make_plan(model, SeDialectConfig()), StepCounter()
    state: dict[str, Any] = {}

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        counter.advance(kwargs["timestep"])
        state["grid"] = plan.token_layout.for_inputs(kwargs).grid

    def read(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if counter.step in STEPS and counter.call == 0:
            on_input(counter.step, state["grid"], inputs[0])

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    seen: set[str] = set()
    for layer in plan.quantized:
        key = layer.shared_input or layer.name
        wanted = layer.stream == "video" and layer.block is not None and int(layer.block.split(".")[-1]) % EVERY_BLOCK == 0
        if wanted and key not in seen:
            seen.add(key)
            handles.append(model.get_submodule(layer.name).register_forward_pre_hook(read))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bin_names() -> list[str]:
    edges = [*COSINES[1:], None]
    return [f"from {low:g}" if high is None else f"{low:g} to {high:g}" for low, high in zip(COSINES, edges, strict=True)]


def _thousandths(value: float, tally: Tally) -> str:
    return f"{1000 * value / tally.energy:.2f}"
