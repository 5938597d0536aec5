"""Whether two rows can be told apart, and whether they stand in the paper's order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Float

from subjectgen.evaluate.intervals import LEVEL, student

CHANCE = 1 - LEVEL / 100  # of pairs that do not differ, those that are told apart all the same

Scores = Float[np.ndarray, "seeds subjects"]  # prompts about one subject are no news of each other: their mean


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A row's scores, the training it samples from, and the paper's figure of it."""

    label: str
    training: str
    scores: Scores
    paper: float | int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A squared standard error, and the degrees of freedom that it is known with; nought of both where nothing is."""

    square: float = 0.0
    degrees: int = 0

    @property
    def margin(self) -> float:
        """Half of the interval of a mean that has no other error."""
        return student(self.degrees) * self.square**0.5 if self.square > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two rows: how far the first leads the second here, what chance can make of it, and how far it leads in the paper.

    margin: half of the interval that holds the true lead in at least 95 % of cases.
    """

    first: str
    second: str
    lead: float
    margin: float
    paper: float | None

    @property
    def told_apart(self) -> bool:
        return abs(self.lead) > self.margin

    @property
    def agrees(self) -> bool:
        """Whether the same row leads in the paper. Raises ValueError where the paper has no figure."""
        if self.paper is None:
            raise ValueError(f"{self.first} and {self.second}: expected rows that the paper has figures of")
        return self.lead * self.paper > 0


def comparisons(rows: Sequence[Scored], run: Sequence[Scored]) -> list[Comparison]:
    """All pairs of a table's rows. run: all rows of all tables, those of this one among them, each once."""
    trainings, samplings = between_trainings(run), between_samplings(run)
    found = []
    for first, second in combinations(rows, 2):
        difference = first.scores - second.scores
        seeds = samplings if first.training == second.training else trainings
        in_paper = None if first.paper is None or second.paper is None else float(first.paper - second.paper)
        found.append(
            Comparison(
                first=first.label,
                second=second.label,
                lead=float(difference.mean()),
                margin=margin(difference, seeds),
                paper=in_paper,
            )
        )
    return found


def between_trainings(run: Sequence[Scored]) -> Estimate:
    """How far seeds move the difference of two trainings, from the first row of each.

    Two seeds say next to nothing of one pair, so all trainings are taken to depend on their seeds alike.
    """
    return pooled([list({row.training: row for row in reversed(run)}.values())])


def between_samplings(run: Sequence[Scored]) -> Estimate:
    """How far seeds move the difference of two rows that sample from one training: less, as they share its weights."""
    return pooled([[row for row in run if row.training == name] for name in dict.fromkeys(row.training for row in run)])


def pooled(groups: Sequence[Sequence[Scored]]) -> Estimate:
    """Of the mean difference of two rows of a group, over seeds. What a seed does to a whole group cancels out."""
    means = [np.stack([row.scores.mean(1) for row in group]) for group in groups]
    degrees = sum((rows - 1) * (seeds - 1) for rows, seeds in (each.shape for each in means))
    if degrees == 0:
        return Estimate()
    squares = sum(float((interaction(each) ** 2).sum()) for each in means)
    return Estimate(square=2 * squares / degrees / means[0].shape[1], degrees=degrees)


def margin(difference: Scores, seeds: Estimate) -> float:
    """Half of the interval of the mean difference of two rows, over subjects and seeds.

    Squares of both margins add up, as Banerjee has it (1960): common degrees after Satterthwaite tell apart up to 12 %
    by chance where seeds are known by 1 degree. What is news of one subject under one seed is in both and counts once.
    """
    news = replace(seeds, square=max(seeds.square - over_both(difference), 0.0))
    return max(seeds.margin, float(np.hypot(over_subjects(difference).margin, news.margin)))


def over_subjects(difference: Scores) -> Estimate:
    """Of the mean difference, over subjects: they are the same in every row."""
    subjects = difference.shape[1]
    if subjects == 1:
        return Estimate()
    return Estimate(square=float(difference.mean(0).var(ddof=1)) / subjects, degrees=subjects - 1)


def over_both(difference: Scores) -> float:
    """The squared standard error of the mean difference that is neither its subjects' nor its seeds'."""
    seeds, subjects = difference.shape
    degrees = (seeds - 1) * (subjects - 1)
    return float((interaction(difference) ** 2).sum()) / degrees / difference.size if degrees else 0.0


def interaction(values: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """What neither its row nor its column says of a value."""
    return values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
