"""What becomes of pictures once they are painted: the best of each picture's candidates is kept, and then improved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from subjectgen.generate.to_image import to_image
from subjectgen.reasoning.best_of import Asked, Choice, asked_of, best_of, check_judgeable, first_of
from subjectgen.reasoning.judges import Judge, MllmJudge
from subjectgen.reasoning.paint import plans_of
from subjectgen.reasoning.reason import reasoned
from subjectgen.reasoning.reflect import Reflection, Round, check_correctable, check_heard, reflect
from subjectgen.reasoning.tower_judge import TowerJudge
from subjectgen.request import Request, ResolvedRequest, generators_of

if TYPE_CHECKING:
    from subjectgen.pipeline import Callback, SubjectPipeline

JUDGES: dict[str, Any] = {"mllm": MllmJudge, "tower": TowerJudge}  # of a pipeline, by the names that checkpoints have


@dataclass(frozen=True, kw_only=True)
class Refined:
    """Latents of the pictures that are left, and how they came to be."""

    latents: Float[Tensor, "pictures c h w"]
    choice: Choice
    rounds: list[Round] | None = None


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What was asked to be done with painted pictures. `judge` None: the checkpoint's own, where there is a choice."""

    judge: Any
    reflection: Reflection

    def __post_init__(self) -> None:
        if self.judge is not None and not callable(self.judge):
            raise ValueError(f"judge={self.judge!r}: expected a function of pictures, what was asked, and references")

    def planned(self, pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest, reasoning: bool) -> Request:
        """The request, with a plan in place of each prompt where that is asked for or needed."""
        if self.reflection.rounds:
            check_heard(self.reflection, request, resolved)
        mllm_judges = isinstance(self._judge(pipe), MllmJudge)
        asks_mllm = self.reflection.rounds > 0 or (request.best_of > 1 and mllm_judges)
        if reasoning or (asks_mllm and plans_of(request.prompt) is None):
            request = reasoned(pipe, request, resolved)
        if self.reflection.rounds:
            check_correctable(plans_of(request.prompt) or ())
        return request

    def asked(self, pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest) -> list[Asked]:
        """What the judge will hear of each prompt; nothing where it won't be asked. Raises ValueError, as it would."""
        if request.best_of == 1 and self.judge is None:
            return []
        asked = asked_of(pipe, request, resolved)
        check_judgeable(self._judge(pipe), asked)
        return asked

    def __call__(
        self,
        pipe: "SubjectPipeline",
        request: Request,
        resolved: ResolvedRequest,
        asked: Sequence[Asked],
        latents: Float[Tensor, "candidates c h w"],
        on_step_end: "Callback | None",
    ) -> Refined:
        """The pictures that are left of the candidates; the first ones, unjudged, after an interruption."""
        choice = self._choice(pipe, request, asked, latents)
        latents = latents[choice.rows]
        if pipe.interrupt or not self.reflection.rounds:
            return Refined(latents=latents, choice=choice)
        generators = generators_of(request.generator, resolved.num_pictures)
        kept = [generators[row] for row in choice.rows]
        latents, rounds = reflect(pipe, self.reflection, request, latents, kept, on_step_end)
        return Refined(latents=latents, choice=choice, rounds=rounds)

    def _choice(
        self,
        pipe: "SubjectPipeline",
        request: Request,
        asked: Sequence[Asked],
        latents: Float[Tensor, "candidates c h w"],
    ) -> Choice:
        if pipe.interrupt or not asked:
            return first_of(len(latents) // request.best_of, request.best_of)
        pictures: Any = to_image(pipe.vae, latents, "pil")
        return best_of(self._judge(pipe), asked, request.best_of, pictures)

    def _judge(self, pipe: "SubjectPipeline") -> Judge:
        return JUDGES[pipe.config["judge"]](pipe) if self.judge is None else self.judge
