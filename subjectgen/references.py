"""What the user holds of subjects -> references as the model reads them: pictures of one size, and their masks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from subjectgen.masks import Mask, seen_tokens
from subjectgen.subject import Subject

if TYPE_CHECKING:
    from subjectgen.request import Limits

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class References:
    """Images of the subjects of one prompt, as both branches see them; equal pictures have equal keys."""

    images: tuple[Image.Image, ...]
    masks: tuple[Mask | None, ...]  # where the subject is, of the size of its image; None: everywhere
    names: tuple[str | None, ...]

    @property
    def num_references(self) -> int:
        return len(self.images)

    @cached_property
    def key(self) -> tuple[str, ...]:
        """One hash per picture."""
        return tuple(key_of(image, mask) for image, mask in zip(self.images, self.masks, strict=True))

    def grids(self, pixels_per_token: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of identity tokens of each."""
        return tuple((image.height // pixels_per_token, image.width // pixels_per_token) for image in self.images)

    def num_identity(self, pixels_per_token: int) -> int:
        """How many identity tokens count: those that see a subject."""
        pairs = zip(self.masks, self.grids(pixels_per_token), strict=True)
        return sum(int(seen_tokens(mask, grid).sum()) for mask, grid in pairs)

    def num_dropped(self, reader) -> int:
        """How many image tokens of the MLLM become no semantic tokens."""
        return reader.num_dropped(self.masks)


def key_of(image: Image.Image, mask: Mask | None = None) -> str:
    """A hash of a picture and its mask."""
    shape = f"{image.mode} {image.width} x {image.height} ".encode()
    where = b"" if mask is None else mask.numpy().tobytes()
    return hashlib.sha256(shape + image.tobytes() + where).hexdigest()


def read_images(entries: Sequence[Any], limits: "Limits") -> References:
    """Whatever stands for images, and subjects -> references: whole on a white square, or of their shape."""
    check_count(len(entries), limits)
    subjects = [Subject.of(entry) for entry in entries]
    read = [_fitted(*subject.read(alpha=limits.reads_alpha), limits) for subject in subjects]
    return References(
        images=tuple(image for image, _ in read),
        masks=tuple(mask for _, mask in read),
        names=tuple(subject.name for subject in subjects),
    )


def cropped_as_seen(value: Any, percent_box: Sequence[float | int], limits: "Limits") -> Subject:
    """An image or subject cut to a box in percent of its reference as the model reads it, white paper and all."""
    subject = Subject.of(value)
    picture, _ = subject.read(alpha=True)
    return subject.cropped_to(fit_of(picture.size, limits).of_picture(percent_box))


def check_count(num_references: int, limits: "Limits") -> None:
    """Raise ValueError for more references than the model takes."""
    if num_references > limits.max_references:
        raise ValueError(
            f"{num_references} references for one prompt: this model takes at most {limits.max_references}. "
            "Leave some out; for different prompts give a list per prompt."
        )


@dataclass(frozen=True)
class Fit:
    """How a picture lies in its reference: scaled, in the middle of white paper."""

    scaled: Size
    paper: Size

    @property
    def corner(self) -> Size:
        """Where the picture starts."""
        return (self.paper[0] - self.scaled[0]) // 2, (self.paper[1] - self.scaled[1]) // 2

    def of_picture(self, percent_box: Sequence[float | int]) -> tuple[float, ...]:
        """Percent of the paper's sides -> percent of the picture's, as far as it reaches."""
        axes = zip(percent_box, self.paper * 2, self.corner * 2, self.scaled * 2, strict=True)
        shares = [(percent / 100 * paper - corner) / scaled for percent, paper, corner, scaled in axes]
        return tuple(min(max(100 * share, 0.0), 100.0) for share in shares)

    def laid(self, picture: Image.Image, resample: Image.Resampling, ground: Any) -> Image.Image:
        paper = Image.new(picture.mode, self.paper, ground)
        paper.paste(picture.resize(self.scaled, resample), self.corner)
        return paper


def fit_of(size: Size, limits: "Limits") -> Fit:
    """The whole picture on a square; or about as many pixels in its own shape, both sides multiples, and no paper."""
    if limits.reference_shape == "square":
        scale = limits.reference_size / max(size)
        width, height = (max(round(side * scale), 1) for side in size)
        return Fit(scaled=(width, height), paper=(limits.reference_size, limits.reference_size))
    stretch, multiple = (size[0] / size[1]) ** 0.5, limits.size_multiple
    sides = (limits.reference_size * stretch, limits.reference_size / stretch)
    width, height = (max(round(side / multiple), 1) * multiple for side in sides)
    return Fit(scaled=(width, height), paper=(width, height))


def _fitted(picture: Image.Image, mask: Mask | None, limits: "Limits") -> tuple[Image.Image, Mask | None]:
    fit = fit_of(picture.size, limits)
    image = fit.laid(picture, Image.Resampling.LANCZOS, "white")
    return image, None if mask is None else _fitted_mask(mask, fit)


def _fitted_mask(mask: Mask, fit: Fit) -> Mask:
    """True where a pixel of the reference has any share in the subject."""
    shares = Image.fromarray(mask.numpy().astype(np.float32))
    return torch.from_numpy(np.array(fit.laid(shares, Image.Resampling.BOX, 0.0)) > 0)
