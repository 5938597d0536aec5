"""What becomes of pictures once they are painted: the best of each picture's candidates is kept, and then improved."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from subjectgen.generate.to_image import to_image
from subjectgen.reasoning.best_of import Choice, best_of, first_of
from subjectgen.reasoning.judges import MllmJudge
from subjectgen.reasoning.paint import plans_of
from subjectgen.reasoning.reason import reasoned
from subjectgen.reasoning.reflect import Reflection, Round, check_correctable, reflect
from subjectgen.request import Request, ResolvedRequest, generators_of

if TYPE_CHECKING:
    from subjectgen.pipeline import Callback, SubjectPipeline


@dataclass(frozen=True, kw_only=True)
class Refined:
    """Latents of the pictures that are left, and how they came to be."""

    latents: Float[Tensor, "pictures c h w"]
    choice: Choice
    rounds: list[Round] | None = None


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What was asked to be done with painted pictures. `judge` None: the MLLM, where there is a choice."""

    judge: Any
    reflection: Reflection

    def __post_init__(self) -> None:
        if self.judge is not None and not callable(self.judge):
            raise ValueError(f"judge={self.judge!r}: expected a function of pictures, what was asked, and references")

    def planned(self, pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest, reasoning: bool) -> Request:
        """The request, with a plan in place of each prompt where that is asked for or needed."""
        asks_mllm = self.reflection.rounds > 0 or (request.best_of > 1 and self.judge is None)
        if reasoning or (asks_mllm and plans_of(request.prompt) is None):
            request = reasoned(pipe, request, resolved)
        if self.reflection.rounds:
            check_correctable(plans_of(request.prompt) or ())
        return request

    def __call__(
        self,
        pipe: "SubjectPipeline",
        request: Request,
        resolved: ResolvedRequest,
        latents: Float[Tensor, "candidates c h w"],
        on_step_end: "Callback | None",
    ) -> Refined:
        """The pictures that are left of the candidates; the first ones, unjudged, after an interruption."""
        choice = self._choice(pipe, request, resolved, latents)
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
        resolved: ResolvedRequest,
        latents: Float[Tensor, "candidates c h w"],
    ) -> Choice:
        if pipe.interrupt or (request.best_of == 1 and self.judge is None):
            return first_of(len(latents) // request.best_of, request.best_of)
        judge = MllmJudge(pipe) if self.judge is None else self.judge
        return best_of(pipe, judge, request, resolved, to_image(pipe.vae, latents, "pil"))  # type: ignore[arg-type]
