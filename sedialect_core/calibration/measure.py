"""Relative errors of several books on the same rows, with the encoder itself: what a fitted book is judged by."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...kernels import reference
from ..formatbook import Formatbook


@dataclass(frozen=True)
class Change:
    """Relative squared errors, sum((x_hat - x)^2) / sum(x^2), of each tensor under two books.

    layers: tensor name -> (before, after); a layer's inputs are the mean over all steps and prompts.
    """

    layers: dict[str, tuple[float, float]]

    @property
    def before(self) -> float:
        """Mean over the tensors, under the start."""
        return self._mean(0)

    @property
    def after(self) -> float:
        """Mean over the tensors, under the fitted book."""
        return self._mean(1)

    @property
    def better(self) -> int:
        """How many tensors have a lower error than before."""
        return sum(after < before for before, after in self.layers.values())

    def _mean(self, which: int) -> float:
        return sum(errors[which] for errors in self.layers.values()) / max(1, len(self.layers))


class ErrorMeter:
    """Collects the relative errors of two books, tensor by tensor."""

    def __init__(self, books: Sequence[Formatbook], block_size: int, candidates: str = "max") -> None:
        self.books, self.block_size, self.candidates = books, block_size, candidates
        self._errors: dict[str, list[tuple[float, ...]]] = defaultdict(list)

    def add_activation(self, name: str, rows: torch.Tensor) -> None:
        """Rows [r, K] of a layer's input, encoded as the layer would."""
        rows = rows.float()
        decoded = []
        for book in self.books:
            operand, scale = reference.quantize_rows(rows, book.tables(rows.device), self.block_size, self.candidates)
            decoded.append(operand * scale.unsqueeze(1))
        self._add(name, rows, decoded)

    def add_weight(self, name: str, rows: torch.Tensor) -> None:
        """Rows [r, K] of a weight, encoded as they are stored: all dialects, exact error, the best of several row scales."""
        rows = rows.float()
        decoded = []
        for book in self.books:
            tables = book.tables(rows.device)
            encoded = reference.encode_weight_rows(rows, tables, self.block_size)
            operand = reference.decode_rows(encoded.codes, encoded.meta, tables)
            decoded.append(operand * encoded.scale.unsqueeze(1))
        self._add(name, rows, decoded)

    def change(self) -> Change:
        """What was collected; of exactly two books."""
        means = {
            name: [sum(column) / len(column) for column in zip(*rows, strict=True)] for name, rows in self._errors.items()
        }
        return Change({name: (before, after) for name, (before, after) in means.items()})

    def _add(self, name: str, rows: torch.Tensor, decoded: list[torch.Tensor]) -> None:
        energy = float(rows.double().square().sum())
        if energy > 0:
            self._errors[name].append(tuple(float((part - rows).double().square().sum()) / energy for part in decoded))
