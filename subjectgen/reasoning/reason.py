"""From prompt and references to a plan, written by the MLLM that also reads them for the painter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from subjectgen.backbones import Reader
from subjectgen.embeds import SubjectEmbeds
from subjectgen.generate.stages import is_number, is_whole
from subjectgen.reasoning.decoding import GrammarPicker
from subjectgen.reasoning.encoded import EncodedOnce
from subjectgen.reasoning.grammar import parse_plan, plan_grammar
from subjectgen.reasoning.instruction import request_to_plan
from subjectgen.reasoning.paint import negative_as_painted, plans_of, words_and_references
from subjectgen.reasoning.plan import Plan, PlanError
from subjectgen.request import Limits, Request, ResolvedRequest, negative_prompts_of
from subjectgen.subject_lists import subject_lists
from subjectgen.types import ReferencePrefix

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

MAX_NEW_TOKENS = 768  # of a plan
OnToken = Callable[[Any, Any], None]  # called with the pipeline and all that is written so far


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How plans are written."""

    max_new_tokens: Any = MAX_NEW_TOKENS
    temperature: float = 0.0  # always the likeliest token
    generator: Any = None  # a torch.Generator; one for each of several prompts
    on_token: OnToken | None = None
    several: bool = False  # whether it hears a list of texts

    def __post_init__(self) -> None:
        if not is_whole(self.max_new_tokens) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens!r}: expected a whole number, at least 1")
        if not is_number(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature={self.temperature!r}: expected a number, 0 for the likeliest token always")
        if self.generator is not None and self.temperature == 0:
            raise ValueError("a generator draws nothing at temperature=0: give a temperature above 0, or no generator")

    def generators(self, count: int) -> list[torch.Generator | None]:
        """The one that each prompt draws from, so that its plan is the same alone. Raises ValueError."""
        if self.generator is None:
            return [None] * count
        given = self.generator if isinstance(self.generator, (list, tuple)) else [self.generator]
        if len(given) != count or not all(isinstance(each, torch.Generator) for each in given):
            raise ValueError(f"generator={self.generator!r} for {count} prompt(s): expected a torch.Generator for each")
        return list(given)


def reason(pipe: "SubjectPipeline", prompt: Any, subject_images: Any, writing: Writing) -> Plan | list[Plan]:
    """The plan of a prompt, or those of a list of prompts; what was read of their references goes with them."""
    request = Request(prompt=prompt, subject_images=subject_images)
    if plans_of(prompt) is not None:
        raise ValueError("a plan to reason about: expected a prompt. A plan is painted as it is, with pipe(plan).")
    several = not isinstance(prompt, str)
    results = _results(pipe, request, pipe._resolve(request), replace(writing, several=several))
    return _whole(results) if several else _plan(results[0])


def reasoned(pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest) -> Request:
    """A request with a plan in place of each prompt."""
    if plans_of(request.prompt) is not None:
        raise ValueError("reasoning=True with a plan: expected prompts. A plan is painted as it is, without reasoning.")
    results = _results(pipe, request, resolved, Writing())
    negatives = negative_prompts_of(request.negative_prompt, len(results))
    results = [_paintable(*each, pipe.limits) for each in zip(results, negatives, strict=True)]
    plans = [_plan(results[0])] if isinstance(request.prompt, str) else _whole(results)
    return replace(request, prompt=plans, subject_images=None)


def _results(
    pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest, writing: Writing
) -> list[Plan | PlanError]:
    """What came of each prompt, all written together; references that prompts share are read once."""
    asked = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    generators, given = writing.generators(len(asked)), subject_lists(request.subject_images, len(asked))
    encoded = EncodedOnce()(pipe, resolved.subjects)
    embeds = [each if isinstance(each, SubjectEmbeds) else None for each in encoded]
    reader, _ = pipe.adapters()
    prefixes = [reader.read_references(()) if each is None else each.prefix for each in embeds]
    prompts = [request_to_plan(pipe.config["plan_instruction"], named) for named in resolved.prompts]
    texts = _written(pipe, reader, prompts, prefixes, writing, generators)
    return list(map(_parsed, texts, asked, given, embeds))


def _parsed(
    text: str | PlanError, asked: str, entries: Sequence[Any], embeds: SubjectEmbeds | None
) -> Plan | PlanError:
    if isinstance(text, PlanError):
        return text
    try:
        plan = parse_plan(text, 0 if embeds is None else embeds.num_references, asked)
    except PlanError as error:
        return error
    return replace(plan, subject_images=entries, embeds=embeds)


def _paintable(result: Plan | PlanError, negative: str, limits: Limits) -> Plan | PlanError:
    """An error for a plan with a box beside its picture, a subject lost, or words that could mean two references.

    So too where it leaves out what its negative prompt speaks of.
    """
    if isinstance(result, PlanError):
        return result
    try:
        words_and_references(result, limits)
        negative_as_painted(result, negative)
    except ValueError as error:
        return PlanError(f"the MLLM's plan cannot be painted: {error} It wrote:\n{result}", result.to_json())
    return result


def _plan(result: Plan | PlanError) -> Plan:
    if isinstance(result, PlanError):
        raise result
    return result


def _whole(results: list[Plan | PlanError]) -> list[Plan]:
    """All plans. Raises PlanError, which holds those that there are, if any is none."""
    failed = {number: each for number, each in enumerate(results, start=1) if isinstance(each, PlanError)}
    if not failed:
        return [_plan(each) for each in results]
    told = "; ".join(f"prompt {number}: {error}" for number, error in failed.items())
    first = next(iter(failed.values()))
    raise PlanError(f"{len(failed)} of {len(results)} prompts came to no plan, {told}", first.written, results)


def _written(
    pipe: "SubjectPipeline",
    reader: Reader,
    prompts: Sequence[str],
    prefixes: Sequence[ReferencePrefix],
    writing: Writing,
    generators: Sequence[torch.Generator | None],
) -> list[str | PlanError]:
    """For each prompt a whole plan in the MLLM's words, or an error where it comes to no end."""
    tokenizer = reader.processor.tokenizer
    ids: list[list[int]] = [[] for _ in prompts]
    pickers = [
        GrammarPicker(
            tokenizer, plan_grammar(prefix.num_references), temperature=writing.temperature, generator=generator
        )
        for prefix, generator in zip(prefixes, generators, strict=True)
    ]
    with pipe.progress_bar(total=writing.max_new_tokens) as bar:  # type: ignore[call-arg]  (hidden by a decorator)
        for step in reader.answers(prompts, prefixes, pickers, writing.max_new_tokens):
            for number, tokens in step.items():
                ids[number] += tokens
            bar.update(max(map(len, ids)) - bar.n)
            if writing.on_token is not None:
                texts = [tokenizer.decode(each) for each in ids]
                writing.on_token(pipe, texts if writing.several else texts[0])
            if pipe.interrupt:
                break
    return [
        tokenizer.decode(each) if picker.finished else _unfinished(pipe, tokenizer.decode(each), len(each), writing)
        for each, picker in zip(ids, pickers, strict=True)
    ]


def _unfinished(pipe: "SubjectPipeline", text: str, num_tokens: int, writing: Writing) -> PlanError:
    return PlanError(f"{_why_unfinished(pipe, num_tokens, writing)} It wrote: {text!r}", text)


def _why_unfinished(pipe: "SubjectPipeline", num_tokens: int, writing: Writing) -> str:
    if num_tokens == writing.max_new_tokens:
        return f"the plan has no end after max_new_tokens={num_tokens}: give more, to pipe.reason()."
    if pipe.interrupt:
        return f"the plan was interrupted after {num_tokens} tokens."
    return f"the plan has no end after {num_tokens} tokens, all that the MLLM has positions for: use fewer references."
