"""Means and their 95 % intervals, by the bootstrap over subjects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 2605
LEVEL = 95.0  # percent
RESAMPLED = (
    f"{LEVEL:g} % intervals: percentiles of {RESAMPLES} bootstrap resamples of the subjects, each with all of its "
    "prompts and seeds."
)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of `count` values about `subjects` subjects; without an interval where resampling can tell none.

    That is where there is a single subject, or where all values are equal.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    subjects: int


def mean_with_interval(values: Sequence[float], subjects: Sequence[str]) -> Mean:
    """The mean of all values and its interval; `subjects` says whom each value is about.

    Values about one subject resemble each other, so subjects are resampled whole: more seeds of the same subjects make
    no interval narrower than the subjects allow. Raises ValueError if there are no values.
    """
    if not len(values) or len(values) != len(subjects):
        raise ValueError(f"{len(values)} values about {len(subjects)} subjects: expected one subject a value, and some")
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    sums, counts = np.bincount(index, weights=np.asarray(values, float)), np.bincount(index)
    known = len(names) > 1 and min(values) < max(values)
    low, high = _interval(sums, counts) if known else (None, None)
    return Mean(mean=float(np.mean(values)), low=low, high=high, count=len(values), subjects=len(names))


def _interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """How far the mean moves when subjects are drawn anew, with replacement."""
    number = len(sums)
    drawn = np.random.default_rng(SEED).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
