"""The MLLM looks at a painted picture: behind the references of its plan, as one image more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from PIL import Image

from subjectgen.backbones import Reader
from subjectgen.batch import prefixes
from subjectgen.embeds import SubjectEmbeds
from subjectgen.reasoning.decoding import GrammarPicker
from subjectgen.reasoning.grammar import words_of
from subjectgen.reasoning.paint import as_read_by, checked_entries
from subjectgen.reasoning.plan import DECISIONS, Plan
from subjectgen.reasoning.questions import DEPARTS, NO, NOTHING, RESPECTS, SEEN, YES, departures_question
from subjectgen.references import read_images
from subjectgen.types import ReferencePrefix

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

MAX_ANSWER = 1024  # tokens: what is seen, byte by byte, then all respects
MAX_SEEN = 120  # characters of a scene or a view, so that it comes to an end


@dataclass(frozen=True, kw_only=True)
class View:
    """A painted picture and the references before it, as the MLLM has read them."""

    reader: Reader
    prefix: ReferencePrefix  # of references and picture
    speaks_in_plans: bool = False  # the MLLM was taught to write plans, so that equal things have equal words

    @property
    def number(self) -> int:
        """What the picture is called: image 1 is the first reference, this is the last."""
        return self.prefix.num_references

    def yes(self, questions: Sequence[str]) -> list[float]:
        """Of each: the probability that its answer begins like "yes", where it begins like "yes" or "no"; any case."""
        if not questions:
            return []
        tokens = [self._first_token(form) for word in (YES, NO) for form in (word, word.capitalize())]
        logits = self.reader.first_logits(questions, self.prefix).float()[:, tokens]
        return logits.softmax(-1)[:, :2].sum(-1).tolist()

    def departures(self, plan: Plan) -> tuple[str, ...]:
        """The respects in which the picture is not what was planned, once the MLLM has said what it sees; greedily.

        Of an MLLM that speaks in plans: scene and view, where its words are not the plan's. It describes what it sees
        far better than it compares.
        """
        text = self._answer(plan)
        if self.speaks_in_plans:
            return tuple(name for name in SEEN if f"{name}: {getattr(plan, name)};" not in text)
        wrong = text.rpartition(DEPARTS)[2]
        return () if wrong == NOTHING else tuple(wrong.split(", "))

    def _answer(self, plan: Plan) -> str:
        tokenizer = self.reader.processor.tokenizer
        decisions = "; ".join(f"{name}: {getattr(plan, name)}" for name in DECISIONS)
        respects = RESPECTS if self.number > 1 else RESPECTS[1:]  # without references there is no subject to keep
        picker = GrammarPicker(tokenizer, departures_grammar(respects))
        question = departures_question(decisions, self.number)
        steps = self.reader.answers([question], [self.prefix], [picker], MAX_ANSWER)
        text = tokenizer.decode([token for step in steps for token in step[0]], skip_special_tokens=True)
        if not picker.finished:
            raise ValueError(
                f"the MLLM has no positions left to say more than {text!r} of its picture: use fewer references"
            )
        return text

    def _first_token(self, word: str) -> int:
        return self.reader.processor.tokenizer(word, add_special_tokens=False)["input_ids"][0]


def departures_grammar(respects: Sequence[str]) -> str:
    """All `departures_answer`s: what is seen, then `NOTHING`, or some of these respects in their order."""
    some = (", ".join(each) for count in range(1, len(respects) + 1) for each in combinations(respects, count))
    wrong = " | ".join(f'"{answer}"' for answer in (NOTHING, *some))
    words = words_of(MAX_SEEN, without=";")
    return f'start: "scene: " WORDS "; view: " WORDS "; {DEPARTS}" wrong\nwrong: {wrong}\nWORDS: /{words}/\n'


def views(pipe: "SubjectPipeline", plan: Plan, pictures: Sequence[Image.Image]) -> Iterator[View]:
    """Each picture behind the references of its plan, which are read once at most; ends where a call is interrupted."""
    reader, _ = pipe.adapters()
    references, speaks_in_plans = _read(pipe, reader, plan), not pipe.config["plan_instruction"]
    with pipe.progress_bar(total=len(pictures)) as bar:  # type: ignore[call-arg]  (hidden by a decorator)
        for picture in pictures:
            if pipe._in_call and pipe.interrupt:  # one that has ended stops nothing after it
                return
            seen = read_images([picture], pipe.limits)
            prefix = reader.read_references(seen.images, behind=references)
            yield View(reader=reader, prefix=prefix, speaks_in_plans=speaks_in_plans)
            bar.update()


def check_askable(plan: Plan) -> None:
    """Raise ValueError for a plan whose prompt was edited alone: the MLLM would be asked for what it said before."""
    if plan.stale_decisions:
        said = ", ".join(f"{name}={words!r}" for name, words in plan.stale_decisions.items())
        raise ValueError(
            f"the plan's prompt={plan.prompt!r} was edited and its decisions were not: {said} would be asked of the "
            "picture: expected decisions that say what the prompt says. Give those that changed, or one that did not "
            "if none has: plan.replace(prompt=..., scene=...)."
        )


def _read(pipe: "SubjectPipeline", reader: Reader, plan: Plan) -> ReferencePrefix:
    """The references as this model read them while reasoning, or reads them now: whole, as the boxes are about them."""
    plan = as_read_by(pipe, plan)
    if plan.embeds is not None:
        return plan.embeds.prefix
    entries = checked_entries(plan)
    subjects = entries[0] if entries and isinstance(entries[0], SubjectEmbeds) else read_images(entries, pipe.limits)
    (prefix,) = prefixes(reader, [subjects])
    return prefix
