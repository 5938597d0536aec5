"""How much a call computes: tokens of every kind, steps and passes of each stage. No network runs for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from subjectgen.batch import readings
from subjectgen.embeds import SubjectEmbeds
from subjectgen.generate.guide import Guidance, Pass, plan
from subjectgen.generate.sample import schedule
from subjectgen.generate.stages import Stage, split_steps
from subjectgen.models.dit.positions import Grid
from subjectgen.models.mllm.qwen3_vl import TOKENS_PER_SLOT
from subjectgen.request import ResolvedRequest, Subjects

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage: tokens a pass attends over, for the largest prompt of the batch; each step runs `passes` forwards."""

    stage: Stage
    steps: int
    noise_tokens: int
    semantic_tokens: int
    identity_tokens: int
    conditions: tuple[int, ...]  # semantic and identity tokens of each pass

    @property
    def passes(self) -> int:
        return len(self.conditions)

    @property
    def forwards(self) -> int:
        return self.steps * self.passes


@dataclass(frozen=True, kw_only=True)
class SubjectCount:
    """The references of a prompt."""

    slots: int  # tokens that the MLLM reads of them
    semantic: int  # those of them that become semantic tokens
    identity: int  # tokens that the DiT reads of them
    pixels: int  # of the largest that the VAE has to encode; 0 where all are encoded already

    @classmethod
    def of(cls, mllm: nn.Module, grids: Sequence[Grid], pixels_per_token: int, encoded: bool = False) -> "SubjectCount":
        """InternVL sees every reference at one size. Of Qwen3-VL's tokens latents take the places."""
        areas, fixed = [rows * columns for rows, columns in grids], getattr(mllm.config, "image_seq_length", None)
        return cls(
            slots=sum(areas) // TOKENS_PER_SLOT if fixed is None else fixed * len(areas),
            semantic=0 if fixed is None else fixed * len(areas),
            identity=sum(areas),
            pixels=0 if encoded else max(areas, default=0) * pixels_per_token**2,
        )


@dataclass(frozen=True, kw_only=True)
class TextCount:
    """A text as the MLLM reads it, behind the references of its subject."""

    words: int  # tokens of it and of the template around it
    subject: SubjectCount

    @property
    def read(self) -> int:
        """Tokens whose hidden states are kept."""
        return self.words + self.subject.slots

    @property
    def semantic(self) -> int:
        """Tokens for the DiT."""
        return self.words + self.subject.semantic


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the memory of a call depends on, beside its networks."""

    pictures: int
    pixels: int  # of a picture
    subjects: tuple[SubjectCount, ...]  # different ones of the batch
    texts: tuple[TextCount, ...]  # different ones, negative prompts among them
    stages: tuple[StageEstimate, ...]


def workload(pipe: "SubjectPipeline", resolved: ResolvedRequest) -> Workload:
    """Count what the call would do."""
    subjects = {each.key: _subject(pipe, each) for each in resolved.subjects}
    texts = [_text(pipe, text, each, subjects[each.key]) for text, each in readings(resolved)]
    return Workload(
        pictures=resolved.num_pictures,
        pixels=resolved.height * resolved.width,
        subjects=tuple(subjects.values()),
        texts=tuple(texts),
        stages=_stages(pipe, resolved, identity=max(each.identity for each in subjects.values())),
    )


def count_stages(
    stages: Sequence[Stage],
    steps: Sequence[int],
    plans: Sequence[Sequence[Pass]],
    *,
    noise: int,
    semantic: int,
    negative: int,
    identity: int,
) -> tuple[StageEstimate, ...]:
    """Tokens of each stage, from those of a picture, its prompt, its negative prompt and its references."""
    texts = {"prompt": semantic, "negative": negative, None: 0}
    return tuple(
        StageEstimate(
            stage=stage,
            steps=count,
            noise_tokens=noise,
            semantic_tokens=semantic if stage.semantic else 0,
            identity_tokens=identity if stage.identity else 0,
            conditions=tuple(texts[each.text] + (identity if each.identity else 0) for each in passes),
        )
        for stage, count, passes in zip(stages, steps, plans, strict=True)
    )


def plans_of(stages: Sequence[Stage], guidance: Guidance, identity: int, negative_differs: bool) -> list[list[Pass]]:
    """The passes of a step of each stage."""
    return [
        [*plan(stage, guidance, has_references=identity > 0, negative_differs=negative_differs)] for stage in stages
    ]


def _stages(pipe: "SubjectPipeline", resolved: ResolvedRequest, identity: int) -> tuple[StageEstimate, ...]:
    per_token = pipe.limits.pixels_per_token
    noise = (resolved.height // per_token) * (resolved.width // per_token)
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config)  # a call in progress keeps its own
    sigmas = schedule(scheduler, resolved.num_inference_steps, noise).tolist()
    differs = resolved.negative_prompts != resolved.prompts
    stages = resolved.stages if identity else tuple(each.without_references for each in resolved.stages)
    return count_stages(
        stages,
        split_steps(stages, sigmas),
        plans_of(stages, resolved.guidance, identity, differs),
        noise=noise,
        semantic=_most_semantic(pipe, resolved.prompts, resolved.subjects),
        negative=_most_semantic(pipe, resolved.negative_prompts, resolved.subjects),
        identity=identity,
    )


def _most_semantic(pipe: "SubjectPipeline", texts: Sequence[str], subjects: Sequence[Subjects]) -> int:
    return max(_semantic(pipe, text, each) for text, each in zip(texts, subjects, strict=True))


def _semantic(pipe: "SubjectPipeline", text: str, subjects: Subjects) -> int:
    reader, _ = pipe.adapters()
    return reader.num_semantic(text, subjects.grids(pipe.limits.pixels_per_token)) - subjects.num_dropped(reader)


def _text(pipe: "SubjectPipeline", text: str, subjects: Subjects, subject: SubjectCount) -> TextCount:
    return TextCount(words=_semantic(pipe, text, subjects) - subject.semantic, subject=subject)


def _subject(pipe: "SubjectPipeline", subjects: Subjects) -> SubjectCount:
    per_token, (reader, _) = pipe.limits.pixels_per_token, pipe.adapters()
    whole = SubjectCount.of(pipe.mllm, subjects.grids(per_token), per_token, isinstance(subjects, SubjectEmbeds))
    seen = whole.semantic - subjects.num_dropped(reader)
    return replace(whole, semantic=seen, identity=subjects.num_identity(per_token))
