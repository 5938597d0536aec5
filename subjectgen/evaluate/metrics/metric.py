"""What a metric is: pictures with their references and prompts => named scores of each picture."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from PIL import Image

BATCH = 32  # pictures that a network sees at once

Pictures = Sequence[Image.Image]
Thing = TypeVar("Thing")
Seen = TypeVar("Seen")


@runtime_checkable
class Metric(Protocol):
    """Scores pictures: `names` are the keys of what it returns, `checkpoints` the networks that it looks with."""

    names: tuple[str, ...]
    checkpoints: tuple[str, ...]  # "repo@commit"

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """One dictionary a picture, in their order. Raises ValueError as `check_cases` does."""
        ...


def check_cases(pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]) -> None:
    """Raise ValueError unless every picture has a prompt and at least one reference."""
    if not len(pictures) == len(references) == len(prompts):
        raise ValueError(
            f"{len(pictures)} pictures, {len(references)} lists of references and {len(prompts)} prompts: expected as "
            "many of each"
        )
    for index, own in enumerate(references):
        if not own:
            raise ValueError(
                f"picture {index} ({prompts[index]!r}) has no reference: expected at least one to compare it with"
            )


@torch.no_grad()
def in_batches(things: Sequence[Thing], look: Callable[[Sequence[Thing]], Iterable[Seen]]) -> list[Seen]:
    """What `look` sees in each thing, `BATCH` at a time."""
    return [seen for start in range(0, len(things), BATCH) for seen in look(things[start : start + BATCH])]


def seen_with_references(
    pictures: Pictures, references: Sequence[Pictures], look: Callable[[Pictures], Iterable[Seen]]
) -> list[tuple[Seen, list[Seen]]]:
    """What is seen in each picture and in its references. A reference of many pictures is looked at once."""
    distinct = {id(each): each for own in references for each in own}
    known = dict(zip(distinct, in_batches(list(distinct.values()), look), strict=True))
    own_seen = [[known[id(each)] for each in own] for own in references]
    return list(zip(in_batches(pictures, look), own_seen, strict=True))


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; there must be at least one."""
    kept = list(values)
    return sum(kept) / len(kept)
