"""Whether two rows can be told apart, and whether they stand in the paper's order."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

ERRORS = 2.0  # standard errors of a difference beyond which two rows are told apart

Scores = Float[np.ndarray, "seeds prompts"]


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


def lead_of(first: Scores, second: Scores) -> tuple[float, float]:
    """Mean difference of two rows and its standard error, over prompts and over seeds, which both rows share.

    Prompts are the same in every row, so their differences are what varies. The spread between seeds adds to it where
    there are several.
    """
    difference = first - second
    seeds, prompts = difference.shape
    variance = difference.mean(0).var(ddof=1) / prompts if prompts > 1 else 0.0
    if seeds > 1:
        variance += difference.mean(1).var(ddof=1) / seeds
    return float(difference.mean()), float(np.sqrt(variance))


def comparisons(scores: Sequence[tuple[str, Scores]], paper: Sequence[float | int | None]) -> list[Comparison]:
    """All pairs of rows, given by label."""
    pairs = combinations(zip(scores, paper, strict=True), 2)
    found = []
    for ((first, ours), theirs), ((second, others), their_others) in pairs:
        lead, error = lead_of(ours, others)
        known = theirs is not None and their_others is not None
        in_paper = float(theirs - their_others) if known else None  # type: ignore[operator]
        found.append(Comparison(first=first, second=second, lead=lead, error=error, paper=in_paper))
    return found
