"""What the picture painted after a plan is worth: beside the truth of emoji, or to judges of photographs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from subjectgen.data.render import Renderer
from subjectgen.evaluate.emoji import box_mask
from subjectgen.evaluate.sheet import picture_of
from subjectgen.likeness import Clip, Dino
from subjectgen.reasoning.paint import words_and_references
from subjectgen.train.rewards import plan_in
from subjectgen.train.tasks import EmojiTask, Task

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

NOISE = 2611  # the seed of all pictures: those of a group differ by their plans alone

Picture = Float[Tensor, "3 h w"]  # -1..1
Paint = Callable[[Sequence[str], Sequence[Task]], list[Picture | None]]  # None where a text is no plan to be painted


@contextmanager
def answering(network: nn.Module) -> Iterator[None]:
    """Not training meanwhile: a network that does keeps no keys and values where it checkpoints activations."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


class Painter:
    """Paints what was written, with the MLLM as it stands; the same texts once, however many rewards look at them."""

    def __init__(self, pipe: "SubjectPipeline"):
        self._pipe = pipe
        self._texts: list[str] = []
        self._tasks: list[Task] = []
        self._pictures: list[Picture | None] = []

    def __call__(self, texts: Sequence[str], tasks: Sequence[Task]) -> list[Picture | None]:
        """A picture for each text, None where it is no plan that can be painted. One at a time, for they are large."""
        if list(texts) != self._texts or list(tasks) != self._tasks:  # tasks are equal only to themselves
            self._texts, self._tasks = list(texts), list(tasks)
            with answering(self._pipe.mllm):
                self._pictures = [self._painted(text, task) for text, task in zip(texts, tasks, strict=True)]
        return self._pictures

    def _painted(self, text: str, task: Task) -> Picture | None:
        plan = plan_in(text, len(task.references), task.prompt)
        if plan is None:
            return None
        try:
            words_and_references(plan.replace(subject_images=list(task.references)), self._pipe.limits)
        except ValueError:  # a box that shows nothing of its picture: worth nothing, as any plan that cannot be painted
            return None
        noise = torch.Generator().manual_seed(NOISE)
        result = self._pipe(plan, list(task.references), generator=noise, output_type="pt")
        return result.images[0].float().cpu() * 2 - 1


class PictureReward:
    """Scores what is painted after each text; 0 where nothing is."""

    def __init__(self, paint: Paint):
        self._paint = paint

    def __call__(self, texts: Sequence[str], tasks: Sequence[Any]) -> list[float]:
        pairs = zip(self._paint(texts, tasks), tasks, strict=True)
        return [0.0 if picture is None else self.score(picture, task) for picture, task in pairs]

    def score(self, picture: Picture, task: Any) -> float:
        """Of one picture."""
        raise NotImplementedError


class RegionReward(PictureReward):
    """How much of the rendered truth is painted in its subjects' boxes: 1 all, 0 no more than on an empty ground."""

    def __init__(self, paint: Paint, renderer: Renderer):
        super().__init__(paint)
        self._renderer = renderer

    def score(self, picture: Picture, task: EmojiTask) -> float:
        """1 - the squared error, in units of that of the empty ground; not below 0."""
        scene, inside = task.asked.scene, box_mask(task.asked.scene)
        empty = replace(scene, placements=())
        truth, ground = self._renderer.scenes([scene, empty], [list(task.looks), []]).cpu()
        picture = F.interpolate(picture[None], truth.shape[-2:], mode="area")[0]  # other models paint other sizes
        wrong, worst = ((each - truth)[:, inside].square().sum() for each in (picture, ground))
        return max(1 - float(wrong / worst), 0.0)


class DinoReward(PictureReward):
    """Subject fidelity on photographs: how alike picture and references are, the mean over these."""

    def __init__(self, paint: Paint, dino: Dino):
        super().__init__(paint)
        self._dino = dino

    def score(self, picture: Picture, task: Task) -> float:
        """0..1, a negative cosine as 0: no picture is worth less than none."""
        return float(self._dino([picture_of(picture)], task.references).mean().clamp(min=0))


class PickReward(PictureReward):
    """Obedience on photographs: PickScore of picture and request, as a cosine."""

    def __init__(self, paint: Paint, pickscore: Clip):
        super().__init__(paint)
        self._pickscore = pickscore

    def score(self, picture: Picture, task: Task) -> float:
        """0..1, a negative cosine as 0; PickScore itself is a hundred times this."""
        return float(self._pickscore([picture_of(picture)], task.prompt).clamp(min=0))
