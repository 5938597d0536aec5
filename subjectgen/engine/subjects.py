"""Subjects that many jobs have in common: known by a hash of what they show, encoded once, kept within a budget."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from subjectgen.embeds import SubjectEmbeds
from subjectgen.references import key_of
from subjectgen.subject import Subject
from subjectgen.subject_lists import subject_lists

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


@dataclass(frozen=True)
class HashedSubjects:
    """The images of one prompt and a hash of them: of what is seen of each, and its name."""

    entries: tuple[Any, ...]
    key: str

    @classmethod
    def of(cls, images: Any) -> "HashedSubjects | SubjectEmbeds | None":
        """One image or a list of images; None if there are none. Raises what reading them raises."""
        (entries,) = subject_lists(images, 1)
        if len(entries) == 1 and isinstance(entries[0], SubjectEmbeds):
            return entries[0]
        return cls(tuple(entries), _hash_of(entries)) if entries else None


def _hash_of(entries: list[Any]) -> str:
    shown = [(key_of(*subject.read(alpha=True)), subject.name) for subject in map(Subject.of, entries)]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()  # JSON, lest a name is read as more subjects


class SubjectCache:
    """What one pipeline made of subjects, the least recently used ones given up beyond `max_bytes`."""

    def __init__(self, pipe: "SubjectPipeline", max_bytes: int):
        self._pipe = pipe
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Any, tuple[Any, SubjectEmbeds]] = OrderedDict()  # with what its key was made from
        self.num_encoded = 0
        self.num_reused = 0

    def __call__(self, subjects: HashedSubjects | SubjectEmbeds | None) -> SubjectEmbeds | None:
        """What the pipeline encodes of the subjects. Raises ValueError for images that it does not take."""
        if subjects is None:
            return None
        if subjects.key in self._kept:
            self._kept.move_to_end(subjects.key)
            self.num_reused += 1
        else:
            self._kept[subjects.key] = subjects, self._encoded(subjects)
        return self._kept[subjects.key][1]

    def trim(self) -> None:
        """Keep within the budget; to be called after painting, which makes what is kept of subjects grow."""
        sizes = {key: num_bytes(embeds) for key, (_, embeds) in self._kept.items()}
        while sum(sizes.values()) > self._max_bytes:
            oldest, _ = self._kept.popitem(last=False)
            del sizes[oldest]

    def _encoded(self, subjects: HashedSubjects | SubjectEmbeds) -> SubjectEmbeds:
        if isinstance(subjects, SubjectEmbeds):  # another device may fill the same one's memory at the same time
            return replace(subjects, identity=replace(subjects.identity, kv={}))
        self.num_encoded += 1
        return self._pipe.encode_subjects(list(subjects.entries))


def num_bytes(value: Any) -> int:
    """Of all tensors in it."""
    return sum(tensor.nbytes for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if is_dataclass(value):
        value = [getattr(value, each.name) for each in fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for each in value:
        yield from _tensors(each)
