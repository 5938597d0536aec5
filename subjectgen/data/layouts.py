"""Layouts of triples (references, prompt, target): how a raw row of each becomes a row of ours."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUBJECTS200K_SIDE, SUBJECTS200K_PADDING = 512, 8  # pixels of a view, and around and between the two
SUBJECTS200K_QUALITY = 5  # the highest mark
UNO_SCORE = 4.0  # the highest score; a few rows hold larger numbers that are none

Raw = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Triple:
    """What one training row says. A picture is whatever `load_image` takes."""

    references: tuple[Any, ...]
    prompt: Any  # words, if the row is a good one
    target: Any


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How raw rows are read: `triple(raw, folder of its files, view)` for each of the views that a raw row shows."""

    columns: tuple[str, ...]  # by which it is told from others
    triple: Callable[[Raw, Path, int], Triple]
    views: int = 1
    judged: tuple[str, ...] = ()  # columns that `good` looks at
    good: Callable[[Raw], bool] = lambda _: True  # rows its makers did not find good are left out
    marks: str = ""  # what good ones have, in words


def _own(raw: Raw, folder: Path, view: int) -> Triple:
    """Ours: `references` (a list), `prompt`, `target`; a picture is a file name beside the metadata, or itself."""
    references = raw["references"]
    if not isinstance(references, (list, tuple)):
        raise ValueError(f"references={references!r}: expected a list. Write [{references!r}]")
    pictures = tuple(_picture(each, folder) for each in references)
    return Triple(references=pictures, prompt=raw["prompt"], target=_picture(raw["target"], folder))


def _subjects200k(raw: Raw, folder: Path, view: int) -> Triple:
    """Subjects200K: one wide `image` shows a subject twice, `description_0` the left view, `description_1` the right.

    Either view is a target with the other as its reference. Columns: the card of huggingface.co/datasets/Yuanshi/
    Subjects200K. Where the views are, and which description is whose: its authors' own training code, OminiControl
    (src/train/data.py, train/config/subject_512.yaml).
    """
    side, step = SUBJECTS200K_SIDE, SUBJECTS200K_SIDE + SUBJECTS200K_PADDING
    image, (left, top) = raw["image"], (SUBJECTS200K_PADDING, SUBJECTS200K_PADDING)
    if image.width < left + step + side or image.height < top + side:
        raise ValueError(
            f"image of {image.width}x{image.height} pixels: expected two views of {side} pixels side by side, "
            f"{left + step + side}x{top + side} at least. Use the collections of Yuanshi/Subjects200K"
        )
    views = [image.crop((x, top, x + side, top + side)) for x in (left, left + step)]
    return Triple(references=(views[1 - view],), prompt=raw["description"][f"description_{view}"], target=views[view])


def _good_subjects200k(raw: Raw) -> bool:
    """Full marks in all three respects: what OminiControl trains on."""
    marks = raw["quality_assessment"] or {}
    names = ("compositeStructure", "objectConsistency", "imageQuality")
    return all((marks.get(name) or 0) >= SUBJECTS200K_QUALITY for name in names)


def _uno(raw: Raw, folder: Path, view: int) -> Triple:
    """UNO-1M's labels: two pictures of a subject, `img_path1` and `img_path2`, and the `caption` of each by its key.

    Either picture is a target with the other as its reference. The files lie in `images` beside the labels (README of
    github.com/bytedance/UNO). The fields of a label are told by others who unpacked them; the card was not seen.
    """
    names = ("img_path1", "img_path2")
    reference, target = (folder / "images" / raw[names[k]] for k in (1 - view, view))
    return Triple(references=(reference,), prompt=raw["caption"][names[view]], target=target)


def _good_uno(raw: Raw) -> bool:
    """The full score, as in the command of UNO's README that makes its training set."""
    return (raw.get("vlm_filter_cot") or {}).get("score_final") == UNO_SCORE


def _uno_training(raw: Raw, folder: Path, view: int) -> Triple:
    """UNO's training file: `image_paths`, `prompt` and `image_tgt_path`, as uno/dataset/uno.py reads them."""
    references = tuple(folder / each for each in raw["image_paths"])
    return Triple(references=references, prompt=raw["prompt"], target=folder / raw["image_tgt_path"])


OWN = Layout(columns=("references", "prompt", "target"), triple=_own)
SUBJECTS200K = Layout(
    columns=("image", "description", "quality_assessment"),
    triple=_subjects200k,
    views=2,
    judged=("quality_assessment",),
    good=_good_subjects200k,
    marks=f"{SUBJECTS200K_QUALITY} of {SUBJECTS200K_QUALITY} in each respect of their quality_assessment",
)
UNO = Layout(
    columns=("img_path1", "img_path2", "caption", "vlm_filter_cot"),
    triple=_uno,
    views=2,
    judged=("vlm_filter_cot",),
    good=_good_uno,
    marks=f"a score_final of {UNO_SCORE} in their vlm_filter_cot",
)
UNO_TRAINING = Layout(columns=("image_paths", "prompt", "image_tgt_path"), triple=_uno_training)
LAYOUTS = (OWN, SUBJECTS200K, UNO, UNO_TRAINING)


def layout_of(columns: Collection[str], source: str) -> Layout:
    """The layout that has these columns. Raises ValueError, naming what would do, if there is none."""
    for layout in LAYOUTS:
        if set(layout.columns) <= set(columns):
            return layout
    known = "; ".join(", ".join(layout.columns) for layout in LAYOUTS)
    raise ValueError(
        f"'{source}' has the columns {', '.join(sorted(columns))}: expected those of one of these: {known}. "
        "Rename them, or write a metadata.jsonl"
    )


def _picture(value: Any, folder: Path) -> Any:
    return folder / value if isinstance(value, str) else value
