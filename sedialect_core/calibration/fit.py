"""The job: run prompts, learn shapes, and say on other prompts what that brought."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..config import SeDialectConfig
from ..errors import InputError
from ..formatbook import Formatbook
from ..formatbook.blocks import BlockSample
from ..formatbook.book import MAXIMA
from ..formatbook.fitting import RESTARTS, Fitted, fit_book
from ..formatbook.matching import weights_digest
from ..inspection.denoisers import denoisers
from ..progress import shown_bar
from ..quantize.checks import check_ready
from ..video.sampling import Request, generate
from .capture import WEIGHT_ROWS, Target, add_activation, add_weight, targets_of, watching
from .fingerprint import fingerprint_of
from .measure import Change, ErrorMeter

HELD_OUT = 0.25  # of the prompts


@dataclass(frozen=True)
class FitReport:
    """What fitting brought: to activations on prompts that it did not see, to weights on other rows than it was fitted to
    where a weight has more than `WEIGHT_ROWS`, else on the same ones.

    Errors are relative squared errors, sum((x_hat - x)^2) / sum(x^2), a mean over the layers.
    `blocks` are those seen and those kept in memory; `fitted_on` is after / before of what was minimised, for each maximum.
    """

    start: str
    block_size: int
    activations: Change
    weights: Change
    blocks: tuple[int, int]
    fitted_on: tuple[float, ...]
    prompts: tuple[int, int]

    def table(self) -> str:
        """Before, after and change, for people."""
        lines = [f"{'relative squared error':<34}{self.start:>14}{'fitted':>10}{'change':>9}{'layers better':>15}"]
        for label, change in (("activations, held-out prompts", self.activations), ("weights", self.weights)):
            part = f"{change.after / change.before - 1:+.1%}" if change.before else "-"
            better = f"{change.better} of {len(change.layers)}"
            lines.append(f"{label:<34}{change.before:>14.3e}{change.after:>10.3e}{part:>9}{better:>15}")
        fitted, held_out = self.prompts
        seen, kept = self.blocks
        lines.append(
            f"{fitted} prompts fitted to, {held_out} held out; {seen:,} blocks of {self.block_size} seen, {kept:,} kept"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, layer by layer."""
        return asdict(self)


def fit_formatbook(
    pipe: Any,
    prompts: Sequence[str | Request],
    *,
    config: SeDialectConfig | None = None,
    name: str | None = None,
    start: Formatbook | None = None,
    held_out: int | None = None,
    every: int = 1,
    seed: int = 0,
    restarts: int = RESTARTS,
    progress: bool = True,
) -> tuple[Formatbook, FitReport]:
    """Learn the shapes of a formatbook from a 16-bit pipeline, which is not changed.

    The prompts are sampled twice as they are: all but the held-out ones to collect blocks, the held-out ones to measure both
    books. Memory holds a bounded sample of blocks, whatever the number of prompts.

    Args:
        prompts: at least two; a text stands for a request with the pipeline's own settings, and its place as the seed.
        config: which layers count, and the block size.
        start: the book to improve on, `universal-32` when not given. The result has as many shapes and its sub-formatbooks.
        held_out: how many of the last prompts are for measuring only; a quarter when not given.
        every: look at every `every`-th sampling step.

    Raises:
        InputError: too few prompts, or the pipeline refuses one.
        ModelError: the pipeline has no transformer, is quantized already, or takes no 4-bit activations under `config`.

    Example:
        >>> book, report = fit_formatbook(pipe, ["a red ball rolls", "a cat jumps", "rain on a lake"])
        >>> print(report.table())
        >>> book.save_pretrained("my-book")
    """
    config, start = config or SeDialectConfig(), start or Formatbook.builtin()
    requests = [p if isinstance(p, Request) else Request(p, seed=seed + i) for i, p in enumerate(prompts)]
    fitted_to, measured_on = _split(requests, held_out)
    if every < 1:
        raise InputError(f"every is {every}; look at every step with 1, at every second with 2")
    models = denoisers(pipe)
    for component, model in models.items():
        check_ready(component, model)
    run = _Run(pipe, models, targets_of(models, config), config.block_size, every, progress)
    samples = run.collect(fitted_to, start, seed)
    fitted = _fit(samples, start, name or _name(models, config), seed, restarts, progress)
    activations, weights = run.measure(measured_on, [start, fitted.book])
    report = FitReport(
        start=start.name,
        block_size=config.block_size,
        activations=activations,
        weights=weights,
        blocks=(sum(sum(s.seen) for s in samples), sum(s.kept for s in samples)),
        fitted_on=tuple(
            after / before if before else 1.0 for before, after in zip(fitted.before, fitted.after, strict=True)
        ),
        prompts=(len(fitted_to), len(measured_on)),
    )
    fingerprint = {**fingerprint_of(pipe, models, fitted_to), "block_size": str(config.block_size)}
    return replace(fitted.book, fingerprint=fingerprint), report


@dataclass(frozen=True)
class _Run:
    """A pipeline with the layers that are looked at."""

    pipe: Any
    models: dict[str, nn.Module]
    targets: list[Target]
    block_size: int
    every: int
    progress: bool

    def collect(self, requests: Sequence[Request], start: Formatbook, seed: int) -> list[BlockSample]:
        """Blocks of the inputs that the requests lead to, and of the weights."""
        activations, weights = BlockSample(seed=seed), BlockSample(seed=seed)

        def keep(name: str, rows: torch.Tensor) -> None:
            add_activation(activations, rows, start.tables(rows.device), self.block_size)

        with watching(self.models, self.targets, self.every, keep):
            self._sample(requests, "Capturing")
        if not activations.tensors:
            raise InputError("no quantizable layer was called while sampling; the pipeline does not use its transformer")
        for target in self._bar(self.targets, "Reading weights"):
            rows = target.weight_rows(WEIGHT_ROWS)
            add_weight(weights, rows, start.tables(rows.device), self.block_size)
        return [activations, weights]

    def measure(self, requests: Sequence[Request], books: Sequence[Formatbook]) -> tuple[Change, Change]:
        """Errors of activations and of weights under two books."""
        activations, weights = (ErrorMeter(books, self.block_size) for _ in range(2))
        with watching(self.models, self.targets, self.every, activations.add_activation):
            self._sample(requests, "Measuring")
        for target in self._bar(self.targets, "Measuring weights"):
            # Half a distance beside the rows that were fitted to, so other rows wherever a weight has more of them.
            weights.add_weight(target.name, target.weight_rows(WEIGHT_ROWS, offset=0.5))
        return activations.change(), weights.change()

    def _sample(self, requests: Sequence[Request], label: str) -> None:
        for number, request in enumerate(requests, 1):
            generate(self.pipe, request, f"{label} {number}/{len(requests)}", "latent", self.progress)

    def _bar(self, targets: list[Target], label: str) -> Iterable[Target]:
        with shown_bar(label, len(targets), disable=not self.progress) as bar:
            for target in targets:
                yield target
                bar.update()


def _fit(samples: list[BlockSample], start: Formatbook, name: str, seed: int, restarts: int, progress: bool) -> Fitted:
    with shown_bar("Fitting", len(MAXIMA), "maximum", disable=not progress) as bar:
        return fit_book(
            samples,
            start,
            name=name,
            description=f"Fitted from {start.name}: {len(start.dialects)} dialects for one model.",
            seed=seed,
            restarts=restarts,
            on_maximum=lambda maximum: bar.update(),
        )


def _split(requests: list[Request], held_out: int | None) -> tuple[list[Request], list[Request]]:
    """The requests to fit to and those to measure on."""
    count = max(1, round(len(requests) * HELD_OUT)) if held_out is None else held_out
    if not 1 <= count < len(requests):
        raise InputError(
            f"{len(requests)} prompts with {count} held out leave nothing to fit to or to measure on; give at least two"
        )
    return requests[:-count], requests[-count:]


def _name(models: Mapping[str, nn.Module], config: SeDialectConfig) -> str:
    model = next(iter(models.values()))
    return f"{type(model).__name__}-{weights_digest(model)[:8]}-{config.block_size}"
