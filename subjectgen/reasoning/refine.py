"""What becomes of pictures once they are painted: the best of each picture's candidates is kept, and then improved."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from subjectgen.embeds import SubjectEmbeds
from subjectgen.generate.to_image import to_image
from subjectgen.reasoning.best_of import Asked, Choice, asked_of, best_of, check_judgeable, first_of
from subjectgen.reasoning.encoded import EncodedOnce
from subjectgen.reasoning.judges import Judge, MllmJudge
from subjectgen.reasoning.paint import as_read_by, checked_entries, plans_of
from subjectgen.reasoning.plan import Plan
from subjectgen.reasoning.reason import reasoned
from subjectgen.reasoning.reflect import Reflection, Round, check_correctable, check_heard, reflect
from subjectgen.reasoning.tower_judge import TowerJudge
from subjectgen.references import read_images
from subjectgen.request import Request, ResolvedRequest, generators_of

if TYPE_CHECKING:
    from subjectgen.callback import Callback
    from subjectgen.pipeline import SubjectPipeline

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

    judge: Any  # of JUDGES, or a Judge
    reflection: Reflection
    encoded: EncodedOnce = field(default_factory=EncodedOnce)

    def __post_init__(self) -> None:
        judge, names = self.judge, ", ".join(JUDGES)
        if isinstance(judge, type):
            raise ValueError(
                f"judge={judge.__name__} is a class: expected a judge such as TowerJudge(pipe), or one of {names}"
            )
        if judge is not None and not callable(judge) and not (isinstance(judge, str) and judge in JUDGES):
            raise ValueError(
                f"judge={judge!r}: expected one of {names}, or a function of pictures, what was asked, and references"
            )

    def planned(self, pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest, reasoning: Any) -> Request:
        """The request, with a plan in place of each prompt where that is asked for or needed. Raises ValueError."""
        if not isinstance(reasoning, bool):
            raise ValueError(f"reasoning={reasoning!r}: expected True or False")
        if self.reflection.rounds:
            check_heard(self.reflection, request, resolved)
        mllm_judges = self._judges(request) and isinstance(self._judge(pipe), MllmJudge)
        asks_mllm = self.reflection.rounds > 0 or mllm_judges
        if reasoning or (asks_mllm and plans_of(request.prompt) is None):
            request = reasoned(pipe, request, resolved)
        if self.reflection.rounds:
            check_correctable(plans_of(request.prompt) or ())
        return request

    def asked(self, pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest) -> list[Asked]:
        """What the judge will hear of each prompt; nothing where it won't be asked. Raises ValueError, as it would."""
        if not self._judges(request):
            return []
        asked = asked_of(pipe, request, resolved)
        check_judgeable(self._judge(pipe), asked)
        return asked

    def read(
        self, pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest
    ) -> tuple[Request, ResolvedRequest]:
        """The same with references encoded, where rounds paint from them and look at them again."""
        if not self.reflection.rounds:
            return request, resolved
        resolved = replace(resolved, subjects=self.encoded(pipe, resolved.subjects))
        return replace(request, prompt=[self._seen(pipe, plan) for plan in plans_of(request.prompt) or ()]), resolved

    def _seen(self, pipe: "SubjectPipeline", plan: Plan) -> Plan:
        """The plan with what this model reads of its whole references."""
        plan, entries = as_read_by(pipe, plan), checked_entries(plan)
        if plan.embeds is not None or not entries or isinstance(entries[0], SubjectEmbeds):
            return plan
        (embeds,) = self.encoded(pipe, [read_images(entries, pipe.limits)])
        return replace(plan, embeds=embeds)

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
        latents, rounds = reflect(pipe, self.reflection, self.encoded, request, latents, kept, on_step_end)
        return Refined(latents=latents, choice=choice, rounds=rounds or None)

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
        return best_of(pipe, self._judge(pipe), asked, request.best_of, pictures)

    def _judges(self, request: Request) -> bool:
        """Whether there is anything to judge."""
        return request.best_of > 1 or self.judge is not None

    def _judge(self, pipe: "SubjectPipeline") -> Judge:
        judge = pipe.config["judge"] if self.judge is None else self.judge
        return JUDGES[judge](pipe) if isinstance(judge, str) else judge
