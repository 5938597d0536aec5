"""Whether two rows can be told apart, and whether they stand in the paper's order."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

ERRORS = 2.0  # standard errors of a difference beyond which two rows are told apart

Scores = Float[np.ndarray, "seeds subjects"]  # prompts about one subject are no news of each other: their mean


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two rows: how far the first leads the second here, its standard error, and how far it leads in the paper."""

    first: str
    second: str
    lead: float
    error: float
    paper: float | None

    @property
    def told_apart(self) -> bool:
        return abs(self.lead) > ERRORS * self.error

    @property
    def agrees(self) -> bool:
        """Whether the same row leads in the paper. Raises ValueError where the paper has no figure."""
        if self.paper is None:
            raise ValueError(f"{self.first} and {self.second}: expected rows that the paper has figures of")
        return self.lead * self.paper > 0


def over_subjects(difference: Scores) -> float:
    """Squared standard error of a mean difference, over subjects: they are the same in every row."""
    subjects = difference.shape[1]
    return float(difference.mean(0).var(ddof=1)) / subjects if subjects > 1 else 0.0


def over_seeds(difference: Scores) -> float:
    """Squared standard error of a mean difference, over seeds."""
    seeds = difference.shape[0]
    return float(difference.mean(1).var(ddof=1)) / seeds if seeds > 1 else 0.0


def comparisons(scores: Sequence[tuple[str, Scores]], paper: Sequence[float | int | None]) -> list[Comparison]:
    """All pairs of rows, given by label.

    Two seeds say little of how far seeds lie apart, and by chance too little: a pair is given at least the mean over
    all pairs of its table.
    """
    pairs = list(combinations(zip(scores, paper, strict=True), 2))
    differences = [first - second for ((_, first), _), ((_, second), _) in pairs]
    typical = float(np.mean([over_seeds(each) for each in differences]))
    found = []
    for (((first, _), theirs), ((second, _), their_others)), difference in zip(pairs, differences, strict=True):
        error = np.sqrt(over_subjects(difference) + max(over_seeds(difference), typical))
        in_paper = None if theirs is None or their_others is None else float(theirs - their_others)
        lead = float(difference.mean())
        found.append(Comparison(first=first, second=second, lead=lead, error=float(error), paper=in_paper))
    return found
