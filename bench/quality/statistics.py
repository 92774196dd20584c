"""Means of pairs of prompt and seed, and how sure we are of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 20261122


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def bootstrap(values: Sequence[float]) -> Interval:
    """The mean, and the percentile bootstrap's interval of it (Efron 1979): resampled by pair, with a fixed seed.

    The pairs are few and the errors skewed, hence no formula of a normal distribution.
    """
    sample = np.asarray(values, dtype=np.float64)
    picked = np.random.default_rng(SEED).integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.quantile(sample[picked].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(sample.mean()), float(low), float(high))


def worst_tenth(values: Sequence[float], higher_is_nearer: bool = False) -> float:
    """The mean of the tenth of the values that are worst, at least one: means hide prompts that fail."""
    worst = sorted(values, reverse=not higher_is_nearer)[: math.ceil(len(values) / 10)]
    return sum(worst) / len(worst)


def paired_difference(values: Sequence[float], base: Sequence[float]) -> Interval:
    """The mean of value minus base, pair by pair: what all pairs have in common drops out."""
    return bootstrap([value - other for value, other in zip(values, base, strict=True)])
