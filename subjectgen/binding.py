"""Which reference each phrase of a prompt is about: "image 2", "images 1 and 2", or a subject's name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Names = Sequence[str | None]  # of the references, in order
NOTHING = "(?!)"  # a pattern that matches nowhere
ALSO = r"(?:\s*[,&]\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+)\d+"  # one more number of a list
NUMBERED = re.compile(rf"(?<!\w)(?:image\s+\d+|images\s+\d+(?:{ALSO})*)$", re.IGNORECASE)  # ends with its number


@dataclass(frozen=True, kw_only=True)
class Binding:
    """A phrase of a prompt that stands for a reference."""

    phrase: str
    span: tuple[int, int]  # characters of the prompt: prompt[slice(*span)] is the phrase
    reference: int  # counted from 1

    def __str__(self) -> str:
        return f"'{self.phrase}' is image {self.reference}"


def bind(prompt: str, names: Names) -> tuple[Binding, ...]:
    """What a prompt calls its references: "image 2", "NAME" or "NAME of image 2", whole words in any case.

    Of a list each number is a phrase of its own: "images 1, 2 and 3" is "images 1", "2" and "3".

    names: of each reference, None where it has none. Of two names that begin at the same word the longer one is meant.
    Raises ValueError for a number without a reference, and for a name that is not one reference's alone.
    """
    return tuple(each for found in _mentions(prompt, names) for each in _bound(found, names))


def numbered(prompt: str, bindings: Sequence[Binding]) -> str:
    """The prompt as any checkpoint understands it: each name alone becomes "NAME of image 2"."""
    for each in reversed(bindings):
        end = each.span[1]
        if not NUMBERED.search(prompt[:end]):
            prompt = f"{prompt[:end]} of image {each.reference}{prompt[end:]}"
    return prompt


def _mentions(prompt: str, names: Names) -> Iterator[re.Match[str]]:
    patterns = sorted((_pattern(name) for name in names if name is not None), key=len, reverse=True)
    named = rf"(?P<name>{'|'.join(patterns) or NOTHING})(?:\s+of\s+image\s+(?P<of>\d+))?"
    several = rf"(?P<several>images\s+\d+(?:{ALSO})+)"
    return re.finditer(rf"(?<!\w)(?:{named}|image\s+(?P<alone>\d+)|{several})(?!\w)", prompt, re.IGNORECASE)


def _bound(found: re.Match[str], names: Names) -> Iterator[Binding]:
    if found["several"] is None:
        yield Binding(phrase=found[0], span=found.span(), reference=_reference(found, names))
        return
    for each in re.finditer(r"(?:images\s+)?(\d+)", found[0], re.IGNORECASE):
        span = (found.start() + each.start(), found.start() + each.end())
        yield Binding(phrase=each[0], span=span, reference=_by_number(found[0], int(each[1]), len(names)))


def _reference(found: re.Match[str], names: Names) -> int:
    if found["name"] is None:
        return _by_number(found[0], int(found["alone"]), len(names))
    called = [k for k, name in enumerate(names, start=1) if name is not None and _is_called(found["name"], name)]
    if found["of"] is not None and int(found["of"]) not in called:
        raise ValueError(
            f"{found[0]!r}: the subject named {found['name']!r} is {_listed(called)}. Call it by its name alone."
        )
    if found["of"] is None and len(called) > 1:
        raise ValueError(
            f"{found[0]!r} could be {_listed(called)}, which share this name: expected one. "
            f"Write '{found[0]} of image {called[0]}', or give them names of their own."
        )
    return called[0] if found["of"] is None else int(found["of"])


def _by_number(phrase: str, number: int, num_references: int) -> int:
    if not 1 <= number <= num_references:
        allowed = "image 1" if num_references == 1 else f"image 1 to image {num_references}"
        raise ValueError(
            f"the prompt speaks of {phrase!r} and comes with {num_references} reference(s): expected "
            f"{allowed if num_references else 'no number'}. Give the missing image, or change the number."
        )
    return number


def _listed(references: Sequence[int]) -> str:
    return " and ".join(f"image {k}" for k in references)


def _is_called(words: str, name: str) -> bool:
    return re.fullmatch(_pattern(name), words, re.IGNORECASE) is not None


def _pattern(name: str) -> str:
    return r"\s+".join(map(re.escape, name.split()))
