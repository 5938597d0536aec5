"""What an MLLM plans while it is trained by its rewards: requests about references; number n is always the same."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from subjectgen.data.batches import random_looks, reading_pose
from subjectgen.data.render import Look, Renderer
from subjectgen.data.sightings import Sighting, sighting
from subjectgen.data.talks import Asked, random_asked
from subjectgen.data.triples import Rows, check, listed, open_rows
from subjectgen.data.world import random_count
from subjectgen.evaluate.sheet import picture_of
from subjectgen.images import load_image


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A request and its references."""

    prompt: str
    references: tuple[Image.Image, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class EmojiTask(Task):
    """With its truth: what the request means, what the references show, and the looks of what is asked for."""

    asked: Asked
    seen: tuple[Sighting, ...]
    looks: tuple[Look, ...]  # of each placement of the scene


class EmojiTasks:
    """Requests of the emoji world, direct or not, about one to three references as an MLLM learns to read them."""

    def __init__(self, renderer: Renderer, seed: int = 0):
        self.renderer, self.seed = renderer, seed

    def __getitem__(self, number: int) -> EmojiTask:
        rng = np.random.default_rng((self.seed, number))
        num_subjects = len(self.renderer.names)
        looks = random_looks(rng, num_subjects, random_count(rng))
        poses = [reading_pose(rng, num_subjects) for _ in looks]
        seen = tuple(sighting(self.renderer, *pair) for pair in zip(looks, poses, strict=True))
        asked = random_asked(rng, seen)
        return EmojiTask(
            prompt=asked.text,
            references=tuple(map(picture_of, self.renderer.references(looks, poses))),
            asked=asked,
            seen=seen,
            looks=tuple(looks[image - 1] for image in asked.shown),
        )


class PhotographTasks:
    """References and prompts of rows of triples, over and over; their targets are not looked at."""

    def __init__(self, rows: Rows):
        self.rows = rows

    @classmethod
    def of(cls, data: str | Path, max_references: int) -> "PhotographTasks":
        """As `open_rows`. Raises ValueError, naming all rows that cannot be trained on."""
        rows = open_rows(str(data))
        if rows.left_out:
            warnings.warn(rows.left_out, stacklevel=2)
        if faults := check(rows, 1, max_references):
            raise ValueError(listed(rows, faults))
        return cls(rows)

    def __getitem__(self, number: int) -> Task:
        triple = self.rows[number % len(self.rows)]
        return Task(prompt=triple.prompt, references=tuple(map(load_image, triple.references)))
