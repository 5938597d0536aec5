"""Whose references are whose: what the user gives for one prompt or many => a list for each prompt."""

from typing import Any

import numpy as np
from torch import Tensor

from subjectgen.embeds import SubjectEmbeds
from subjectgen.images import EXPECTED, shown


def subject_lists(subject_images: Any, num_prompts: int) -> list[list[Any]]:
    """One subject, a list of subjects for every prompt, or a list per prompt => one list per prompt.

    The entries themselves are passed through untouched. `None` and `[]` mean text only; SubjectEmbeds in a list are
    the whole list of a prompt.
    """
    if subject_images is None:
        return [[] for _ in range(num_prompts)]
    if not isinstance(subject_images, (list, tuple)):
        _refuse_collection(subject_images)
        return [[subject_images] for _ in range(num_prompts)]
    subject_images = [[entry] if isinstance(entry, SubjectEmbeds) else entry for entry in subject_images]
    nested = [entry is None or isinstance(entry, (list, tuple)) for entry in subject_images]
    if not any(nested):
        for entry in subject_images:
            _refuse_collection(entry)
        return [list(subject_images) for _ in range(num_prompts)]
    if not all(nested):
        raise ValueError(
            f"subject_images mixes images and lists (entry {nested.index(False) + 1} of {len(nested)} is "
            f"{shown(subject_images[nested.index(False)])}): expected one list of images, or one list per prompt. "
            "Put each prompt's images in a list of their own, `[]` for a prompt without any."
        )
    return _one_list_per_prompt(subject_images, num_prompts)


def _one_list_per_prompt(lists: list[Any], num_prompts: int) -> list[list[Any]]:
    if len(lists) != num_prompts:
        raise ValueError(
            f"subject_images holds {len(lists)} lists for {num_prompts} prompt(s): expected one list per prompt. "
            "For the same subjects with every prompt pass one flat list."
        )
    for entries in lists:
        for entry in entries or ():
            if isinstance(entry, (list, tuple)):
                raise ValueError("subject_images is nested three deep: expected a list of lists of images at most.")
            _refuse_collection(entry)
    return [list(entries or ()) for entries in lists]


def _refuse_collection(value: Any) -> None:
    """Refuse what holds several images but is not a list: its order or its meaning would be a guess."""
    if isinstance(value, (dict, set, frozenset)) or (hasattr(value, "__next__") and hasattr(value, "__iter__")):
        raise ValueError(f"subject_images holds {shown(value)}: expected {EXPECTED}, or a list of them.")
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 4:
        raise ValueError(
            f"{shown(value)} is a batch: expected one image per entry. Pass list(images) for several subjects, "
            "images[0] for one."
        )
