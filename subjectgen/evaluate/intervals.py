"""Means and their 95 % intervals: by the bootstrap over subjects, exact for shares of which all are 0 or all are 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 2605
LEVEL = 95.0  # percent
TAIL = (100 - LEVEL) / 200  # at each end
RESAMPLED = (
    f"{LEVEL:g} % intervals: percentiles of {RESAMPLES} bootstrap resamples of the subjects, each with all of its "
    "prompts and seeds. Of a share that is 0 or 100 % throughout, the exact bound of Clopper and Pearson, with as many "
    "trials as there are subjects."
)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of `count` values about `subjects` subjects; without an interval where none can be told.

    That is where there is a single subject, or where all values are equal and are no share of 0 or 1 throughout.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    subjects: int


def mean_with_interval(values: Sequence[float], subjects: Sequence[str], *, share: bool = False) -> Mean:
    """The mean of all values and its interval; `subjects` says whom each value is about, `share` that all are 0..1.

    Values about one subject resemble each other, so subjects are resampled whole: more seeds of the same subjects make
    no interval narrower than the subjects allow. Raises ValueError if there are no values.
    """
    if not len(values) or len(values) != len(subjects):
        raise ValueError(f"{len(values)} values about {len(subjects)} subjects: expected one subject a value, and some")
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    low, high = _interval(np.asarray(values, float), index, share) if len(names) > 1 else (None, None)
    return Mean(mean=float(np.mean(values)), low=low, high=high, count=len(values), subjects=len(names))


def _interval(values: np.ndarray, index: np.ndarray, share: bool) -> tuple[float | None, float | None]:
    """Exact where a share is 0 or 1 throughout, as resampling has nothing to vary there."""
    if values.min() < values.max():
        return _bootstrap(np.bincount(index, weights=values), np.bincount(index))
    return _throughout(values[0], int(index.max()) + 1) if share and values[0] in (0, 1) else (None, None)


def _throughout(value: float, number: int) -> tuple[float, float]:
    """Of a share that is 0 or 1 of each of `number` subjects (Clopper and Pearson, Biometrika 26, 1934).

    With a true share below tail ** (1 / number) all of them are 1 less often than the tail. That holds for means of
    several values as well: one of 0..1 is 1 no more often than its expectation.
    """
    bound = float(TAIL ** (1 / number))
    return (bound, 1.0) if value else (0.0, 1 - bound)


def _bootstrap(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """How far the mean moves when subjects are drawn anew, with replacement."""
    number = len(sums)
    drawn = np.random.default_rng(SEED).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.percentile(means, [100 * TAIL, 100 * (1 - TAIL)])
    return float(low), float(high)
