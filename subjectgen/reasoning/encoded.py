"""References of a call that is painted several times: encoded once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subjectgen.embeds import SubjectEmbeds
from subjectgen.references import References
from subjectgen.request import Subjects

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


class EncodedOnce:
    """Encodes each list of references when it is first asked for, and keeps what came of it."""

    def __init__(self) -> None:
        self._known: dict[tuple, SubjectEmbeds] = {}

    def __call__(self, pipe: "SubjectPipeline", subjects: Sequence[Subjects]) -> tuple[Subjects, ...]:
        """The subjects of each prompt as this model reads them; an empty list stays as it is."""
        images = [each for each in subjects if isinstance(each, References) and each.num_references]
        new = {(each.key, each.names): each for each in images if (each.key, each.names) not in self._known}
        self._known.update(zip(new, pipe._encode(list(new.values())), strict=True))
        return tuple(
            self._known.get((each.key, each.names), each) if isinstance(each, References) else each for each in subjects
        )
