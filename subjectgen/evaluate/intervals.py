"""Means and their 95 % intervals, over subjects: exact bounds of shares, Student's of everything else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, t

LEVEL = 95.0  # percent
TAIL = (100 - LEVEL) / 200  # at each end
FEWEST = 5  # subjects of which an interval can be told
DOUBT = 2.0  # wrong (or right) subjects' worth of the belief that pictures of one subject are all alike
INTERVALS = (
    f"{LEVEL:g} % intervals over subjects, each with all of its prompts and seeds: of shares the exact bounds of "
    "Clopper and Pearson with an effective number of trials, by how alike pictures of one subject are (Korn and "
    "Graubard); of everything else Student's t over subjects."
)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of `count` values about `subjects` subjects; without an interval where none can be told.

    That is where there are fewer than FEWEST subjects, or where all values are equal and are no share.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    subjects: int


def mean_with_interval(values: Sequence[float], subjects: Sequence[str], *, share: bool = False) -> Mean:
    """The mean of all values and its interval; `subjects` says whom each value is about, `share` that all are 0..1.

    Values about one subject resemble each other: more seeds of the same subjects make no interval narrower than the
    subjects allow. Raises ValueError if there are no values.
    """
    if not len(values) or len(values) != len(subjects):
        raise ValueError(f"{len(values)} values about {len(subjects)} subjects: expected one subject a value, and some")
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    mean, number = float(np.mean(values)), len(names)
    low, high = None, None
    if number >= FEWEST:
        variance = _variance(np.asarray(values, float) - mean, index)
        low, high = _of_share(mean, variance, number) if share else _of_mean(mean, variance, number)
    return Mean(mean=mean, low=low, high=high, count=len(values), subjects=number)


def _variance(residuals: np.ndarray, index: np.ndarray) -> float:
    """Of the mean, if subjects are drawn: linearised, as the mean is a ratio of their sums and counts."""
    sums = np.bincount(index, weights=residuals)
    return float(len(sums) / (len(sums) - 1) * (sums**2).sum() / len(residuals) ** 2)


def _of_mean(mean: float, variance: float, number: int) -> tuple[float | None, float | None]:
    """Student's t over subjects; nothing where nothing varies."""
    arm = student(number - 1.0) * variance**0.5
    return (mean - arm, mean + arm) if arm else (None, None)


def _of_share(mean: float, variance: float, number: int) -> tuple[float, float]:
    """Clopper and Pearson (Biometrika 26, 1934), with the trials of Korn and Graubard (Survey Methodology 24, 1998)."""
    trials = _trials(mean, variance, number)
    right, wrong = trials * mean, trials * (1 - mean)
    low = float(beta.ppf(TAIL, right, wrong + 1)) if mean > 0 else 0.0
    high = float(beta.ppf(1 - TAIL, right + 1, wrong)) if mean < 1 else 1.0
    return low, high


def _trials(mean: float, variance: float, number: int) -> float:
    """How many independent answers would be as sure: their number where no two are about one subject.

    Few wrong answers do not show how alike those about one subject are. All alike, each subject is one trial: that is
    believed of a share of 0 or 1, and the less the more answers speak. An estimate over few subjects is itself unsure,
    for which trials are taken off by the ratio of Student's quantiles.
    """
    alike = 1 / (number - 1)
    if not 0 < mean < 1:
        return float(number)
    telling = number * min(mean, 1 - mean)
    seen = variance / (mean * (1 - mean))
    believed = max(seen, (telling * seen + DOUBT * alike) / (telling + DOUBT))
    trials = 1 + 1 / believed
    return trials * min(1.0, (student(trials - 1) / student(number - 1.0)) ** 2)


def student(freedom: float | int) -> float:
    """How many standard errors a mean is off by chance at most, in LEVEL of 100 cases."""
    return float(t.ppf(1 - TAIL, freedom))
