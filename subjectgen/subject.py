"""The thing to keep, cut out of its picture: by a box, by a mask, and called by a name."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from subjectgen.binding import NUMBERED
from subjectgen.images import load_image
from subjectgen.masks import Mask, read_mask

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Subject:
    """An image and what of it is the subject. Goes wherever an image goes.

    image: a path, a PIL image, an array or a tensor; box and mask are about it as it is shown, upright.
    name: what prompts call it, such as "red shoe".
    box: (left, top, right, bottom) in pixels, as of `PIL.Image.crop`; what is outside does not exist.
    mask: of the image's own size, white or True where the subject is: a path, a black and white PIL image, or a bool
        array or tensor [height, width]. What is outside becomes white paper, and tokens that see nothing else are left
        out of the DiT's sequence.

    Raises ValueError at once for a name or box that is none, and when the image is read for what does not fit it.
    """

    image: Any
    name: Any = None
    box: Any = None
    mask: Any = None

    def __post_init__(self):
        _check_name(self.name)
        if self.box is not None:
            object.__setattr__(self, "box", _checked_box(self.box))

    @classmethod
    def of(cls, value: Any) -> "Subject":
        """The value itself if it is a subject, else the whole of an image."""
        return value if isinstance(value, Subject) else cls(value)

    def cropped_to(self, percent_box: Sequence[float | int]) -> "Subject":
        """The same, cut to (left, top, right, bottom) in percent of the sides: of its box's, if it has one.

        Rounded outwards to whole pixels.
        """
        left, top, right, bottom = _checked_percents(percent_box)
        from_left, from_top, to_right, to_bottom = self._box_in(load_image(self.image, alpha=True))
        width, height = to_right - from_left, to_bottom - from_top
        box = (
            from_left + math.floor(left * width / 100),
            from_top + math.floor(top * height / 100),
            from_left + math.ceil(right * width / 100),
            from_top + math.ceil(bottom * height / 100),
        )
        return replace(self, box=box)

    def read(self, *, alpha: bool = False) -> tuple[Image.Image, Mask | None]:
        """The upright RGB picture (RGBA if `alpha`) within the box, white outside the mask; and the mask within it."""
        whole = load_image(self.image, alpha=alpha)
        box = self._box_in(whole)
        if self.mask is None:
            return whole.crop(box), None
        left, top, right, bottom = box
        mask = read_mask(self.mask, whole.size)[top:bottom, left:right]
        if not mask.any():
            where = "" if self.box is None else f" within box={self.box}"
            raise ValueError(f"mask has no subject{where}: expected white (255) or True where it is. Is it inverted?")
        return _on_paper(whole.crop(box), mask), mask

    def _box_in(self, picture: Image.Image) -> Box:
        """The box, checked against the picture; all of it if there is none."""
        width, height = picture.size
        if self.box is None:
            return 0, 0, width, height
        left, top, right, bottom = self.box
        if left < 0 or top < 0 or right > width or bottom > height:
            raise ValueError(
                f"box={self.box} reaches outside its picture of {width}x{height} pixels: expected left and top from "
                f"0, right up to {width} and bottom up to {height}. Clip it; cropped_to() takes percent."
            )
        return self.box


def _on_paper(picture: Image.Image, mask: Mask) -> Image.Image:
    paper = Image.new(picture.mode, picture.size, "white")
    paper.paste(picture, mask=Image.fromarray(mask.numpy()))
    return paper


def _check_name(name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name={name!r}: expected words of the prompt, such as 'red shoe', or None")
    if NUMBERED.search(name.strip()):
        raise ValueError(f"name={name!r} ends in what a prompt calls a reference by its order: expected other words")


def _checked_box(box: Any) -> Box:
    expected = "expected (left, top, right, bottom) in whole pixels, left < right and top < bottom"
    try:
        left, top, right, bottom = map(operator.index, box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box={box!r}: {expected}. Subject(image).cropped_to(box) takes percent.") from error
    if left >= right or top >= bottom:
        raise ValueError(f"box={box!r} is empty: {expected}. Give its corners, not its size.")
    return left, top, right, bottom


def _checked_percents(box: Sequence[float | int]) -> Sequence[float | int]:
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 100 and 0 <= box[1] < box[3] <= 100):
        raise ValueError(
            f"percent_box={box!r}: expected (left, top, right, bottom) in percent of the sides, each 0 to 100, "
            "left < right and top < bottom"
        )
    return box
