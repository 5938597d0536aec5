"""From prompt and references to a plan, written by the MLLM that also reads them for the painter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from subjectgen.backbones import Reader
from subjectgen.embeds import SubjectEmbeds
from subjectgen.reasoning.decoding import GrammarPicker
from subjectgen.reasoning.grammar import parse_plan, plan_grammar
from subjectgen.reasoning.instruction import request_to_plan
from subjectgen.reasoning.paint import plans_of
from subjectgen.reasoning.plan import Plan, PlanError
from subjectgen.request import Request, ResolvedRequest, Subjects
from subjectgen.subject_lists import subject_lists
from subjectgen.types import ReferencePrefix

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

OnToken = Callable[[Any, str], None]  # called with the pipeline and all that is written so far


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a plan is written."""

    max_new_tokens: int
    temperature: float  # 0: always the likeliest token
    generator: torch.Generator | None
    on_token: OnToken | None

    def __post_init__(self) -> None:
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens!r}: expected a whole number, at least 1")
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, Real) or self.temperature < 0:
            raise ValueError(f"temperature={self.temperature!r}: expected a number, 0 for the likeliest token always")
        if self.generator is not None and self.temperature == 0:
            raise ValueError("a generator draws nothing at temperature=0: give a temperature above 0, or no generator")


def reason(pipe: "SubjectPipeline", prompt: Any, subject_images: Any, writing: Writing) -> Plan:
    """The plan of one prompt; what was read of its references goes with it."""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r}: expected one string. pipe(prompts, images, reasoning=True) takes many.")
    (entries,) = subject_lists(subject_images, 1)
    resolved = pipe._resolve(Request(prompt=prompt, subject_images=[entries]))  # refuses before work begins
    (named,), (embeds,) = resolved.prompts, _read(pipe, resolved.subjects)
    reader, _ = pipe.adapters()
    prefix = reader.read_references(()) if embeds is None else embeds.prefix
    text = _written(pipe, reader, request_to_plan(pipe.config["plan_instruction"], named), prefix, writing)
    return replace(parse_plan(text, prefix.num_references, prompt), subject_images=entries, embeds=embeds)


def reasoned(pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest) -> Request:
    """A request with a plan in place of each prompt; references that prompts share are read once."""
    if plans_of(request.prompt) is not None:
        raise ValueError("reasoning=True with a plan: expected prompts. A plan is painted as it is, without reasoning.")
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    given, read = subject_lists(request.subject_images, len(prompts)), _read(pipe, resolved.subjects)
    plans = [
        replace(pipe.reason(prompt, embeds), subject_images=entries)
        for prompt, entries, embeds in zip(prompts, given, read, strict=True)
    ]
    return replace(request, prompt=plans, subject_images=None)


def _read(pipe: "SubjectPipeline", subjects: Sequence[Subjects]) -> list[SubjectEmbeds | None]:
    """The subjects of each prompt as this model reads them, equal ones once; None without any."""
    read: dict[tuple, SubjectEmbeds | None] = {}
    for each in subjects:
        if (key := (each.key, each.names)) not in read:
            read[key] = _encoded(pipe, each)
    return [read[each.key, each.names] for each in subjects]


def _encoded(pipe: "SubjectPipeline", subjects: Subjects) -> SubjectEmbeds | None:
    if isinstance(subjects, SubjectEmbeds):
        return subjects
    return pipe._encode(subjects) if subjects.num_references else None


def _written(pipe: "SubjectPipeline", reader: Reader, asked: str, prefix: ReferencePrefix, writing: Writing) -> str:
    """A whole plan in the MLLM's words. Raises PlanError if it comes to no end."""
    tokenizer, ids = reader.processor.tokenizer, []
    grammar = plan_grammar(prefix.num_references)
    picker = GrammarPicker(tokenizer, grammar, temperature=writing.temperature, generator=writing.generator)
    with pipe.progress_bar(total=writing.max_new_tokens) as bar:  # type: ignore[call-arg]  (hidden by a decorator)
        for token in islice(reader.answer(asked, prefix, picker), writing.max_new_tokens):
            ids.append(token)
            bar.update()
            if writing.on_token is not None:
                writing.on_token(pipe, tokenizer.decode(ids))
            if picker.finished or pipe.interrupt:
                break
    text = tokenizer.decode(ids)
    if not picker.finished:
        raise PlanError(f"{_why_unfinished(pipe, len(ids), writing)} It wrote: {text!r}", text)
    return text


def _why_unfinished(pipe: "SubjectPipeline", num_tokens: int, writing: Writing) -> str:
    if pipe.interrupt:
        return f"the plan was interrupted after {num_tokens} tokens."
    if num_tokens == writing.max_new_tokens:
        return f"the plan has no end after max_new_tokens={num_tokens}: give more."
    return f"the plan has no end after {num_tokens} tokens, all that the MLLM has positions for: use fewer references."
