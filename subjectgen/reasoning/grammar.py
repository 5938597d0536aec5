"""The text in which an MLLM writes a plan: the grammar that it is held to, and reading what it wrote.

    <subject>name: ...; colours: ..., ...; box: 12 20 80 90; pose: ...; ground: ...</subject>   one per reference
    <plan>scene: ...; view: ...; pose: ...; changes: ...; keeps: ...</plan><prompt>...</prompt>

`details` and `text` may follow the colours. A box is left, top, right, bottom in percent of the reference's sides.
"""

import re

from subjectgen.reasoning.plan import DECISIONS, Plan, PlanError, PlannedSubject

# Characters: an MLLM that repeats itself comes to an end.
MAX_NAME, MAX_COLOUR, MAX_WORDS, MAX_PROMPT = 80, 24, 240, 600
MAX_COLOURS = 6

# Letters in any case, as Python has it where `bind` reads: an i with or without its dot, a long s.
FIRST, REST, PLURAL = "iI\u0130\u0131", ("mM", "aA", "gG", "eE"), "sS\u017f"
NO_CHARACTER = r"[^\s\S]"
LINK = r"\s,&aAnNdDoOrR"  # what stands between the numbers of a list

VALUE = "[^;<>]+"
SUBJECT = re.compile(
    f"<subject>name: (?P<name>{VALUE}); colours: (?P<colours>{VALUE})"
    f"(?:; details: (?P<details>{VALUE}))?(?:; text: (?P<text>{VALUE}))?"
    rf"; box: (?P<box>\d+ \d+ \d+ \d+); pose: (?P<pose>{VALUE}); ground: (?P<ground>{VALUE})</subject>"
)
DECIDED = re.compile(
    f"<plan>{'; '.join(f'{name}: (?P<{name}>{VALUE})' for name in DECISIONS)}</plan><prompt>(?P<prompt>[^<>]+)</prompt>"
)


def plan_grammar(num_subjects: int) -> str:
    """All plans about this many references, as a Lark grammar for llguidance.

    What may be painted speaks of no further image.
    """
    decisions = ' "; '.join(f'{name}: " DECISION' for name in DECISIONS)
    colour = words_of(MAX_COLOUR, without=";,")
    return f"""
start: {"subject " * num_subjects}plan prompt
subject: "<subject>name: " NAME "; colours: " COLOURS details? text? "; box: " box appearance "</subject>"
details: "; details: " WORDS
text: "; text: " WORDS
appearance: "; pose: " WORDS "; ground: " WORDS
plan: "<plan>{decisions} "</plan>"
prompt: "<prompt>" PROMPT "</prompt>"
{_box_rules()}
NAME: /{words_of(MAX_NAME, without=";")}/
COLOURS: /{colour}(?:, {colour}){{0,{MAX_COLOURS - 1}}}/ & PAINTABLE
WORDS: /{words_of(MAX_WORDS, without=";")}/
DECISION: WORDS & PAINTABLE
PROMPT: /{words_of(MAX_PROMPT, without="")}/ & PAINTABLE
PAINTABLE: /{_paintable(num_subjects)}/
"""


def words_of(at_most: int, *, without: str) -> str:
    """A regular expression for text without tags, some separators and control characters; no space at its ends."""
    end, inside = (rf"[^<>{left_out}\x00-\x1f\x7f]" for left_out in (without + " ", without))
    return f"{end}(?:{inside}{{0,{at_most - 2}}}{end})?"


def _paintable(num_subjects: int) -> str:
    """A regular expression for text in which "image" or "images" is followed by numbers of subjects, or by none.

    Every letter is read as one more of "image", its first one again, or the end of that. The complement (`~`) of such
    text would be shorter, but beside a bounded length llguidance 1.9 gives up on it.
    """
    begun, ended = _numbers("|".join(map(str, range(1, num_subjects + 1))) or NO_CHARACTER)
    for letter in reversed(REST):
        begun = f"(?:[{letter}]{begun})?"
        ended = f"(?:[^{FIRST}{letter}]|[{letter}]{ended})"
    first = f"[{FIRST}](?:{begun}[{FIRST}])*"
    return f"(?:[^{FIRST}]|{first}{ended})*(?:{first}{begun})?"


def _numbers(known: str) -> tuple[str, str]:
    """What may follow "image": as far as it may be written, and up to the character that ends it."""
    one, several = rf"\s+(?:{known})", rf"\s+(?:{known})(?:[{LINK}]+(?:{known}))*[{LINK}]*"
    begun = rf"(?:{one}|\s+|[{PLURAL}](?:{several}|\s+)?)?"
    no_number = rf"\s+[^{FIRST}\s\d]"
    ended = (
        rf"(?:[^{FIRST}{PLURAL}\s]|{no_number}|{one}[^{FIRST}\d]"
        rf"|[{PLURAL}](?:[^{FIRST}\s]|{no_number}|{several}[^{FIRST}{LINK}\d]))"
    )
    return begun, ended


def _box_rules() -> str:
    """Bits 0-6 of a rule's parameter hold the left edge, bits 7-13 the top: right and bottom lie beyond them."""
    rules = {
        "left": [f'"{edge} " top::bit_or({edge})' for edge in range(100)],
        "top": [f'"{edge} " right::bit_or({edge << 7})' for edge in range(100)],
        "right": [f'"{edge} " bottom::_ %if lt([0:7], {edge})' for edge in range(1, 101)],
        "bottom": [f'"{edge}" %if lt([7:14], {edge})' for edge in range(1, 101)],
    }
    return "box: left::0\n" + "\n".join(f"{name}::_ : " + "\n  | ".join(ways) for name, ways in rules.items())


def parse_plan(text: str, num_subjects: int, asked: str) -> Plan:
    """What was written about this many references. Raises PlanError, with the text, if that is no plan."""
    subjects, position = [], 0
    try:
        for number in range(1, num_subjects + 1):
            found = _found(SUBJECT.match(text, position), f"<subject> {number} of {num_subjects}")
            subjects.append(_subject(found))
            position = found.end()
        decided = _found(DECIDED.fullmatch(text, position), "<plan> and <prompt>, and nothing else,")
        return Plan(subjects=tuple(subjects), asked=asked, **decided.groupdict())  # type: ignore[arg-type]
    except ValueError as error:
        raise PlanError(f"the MLLM wrote no plan: {error}. It wrote: {text!r}", text) from error


def _found(match: re.Match[str] | None, what: str) -> re.Match[str]:
    if match is None:
        raise ValueError(f"expected {what} with all of its fields")
    return match


def _subject(found: re.Match[str]) -> PlannedSubject:
    values = {name: value or "" for name, value in found.groupdict().items()}
    colours, box = values.pop("colours").split(", "), values.pop("box").split()
    return PlannedSubject(colours=tuple(colours), box=tuple(map(int, box)), **values)  # type: ignore[arg-type]
