"""Images and fields that were sent as multipart/form-data, of which nothing is believed."""

import warnings
from io import BytesIO
from typing import Any

import anyio
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from subjectgen.engine.facts import ModelFacts
from subjectgen.images import load_image
from subjectgen.references import read_images
from subjectgen.serve.limits import RequestLimits

FORMATS = ("PNG", "JPEG", "WEBP")
SCAN = b"\xff\xda"  # begins one in a JPEG, and is nowhere else but in a preview that it holds
MAX_FIELDS, MAX_FIELD_BYTES = 32, 2**16
MAX_FILES = 16
DECODING = anyio.CapacityLimiter(2)  # images are large once they are decoded

LISTS = {"subjects", "name"}  # fields that may come several times


async def read_form(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    """The fields, and the images in their order, sent as "image" or "image[]"."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "expected multipart/form-data")
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile) != (name == "image"):
                raise ValueError(f"'{name}': expected files as 'image' and nothing else as a file")
            if isinstance(value, UploadFile):
                images.append(await value.read())
            else:
                _add(fields, name, value)
    return fields, images


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    if name in LISTS:
        fields.setdefault(name, []).append(value)
    elif name in fields:
        raise ValueError(f"'{name}' comes twice: expected it once")
    else:
        fields[name] = value


async def read_pictures(images: list[bytes], facts: ModelFacts, limits: RequestLimits) -> list[Image.Image]:
    """What was sent => pictures as the model sees them. Raises ValueError for what is no picture, or too large."""
    if len(images) > facts.limits.max_references:
        raise ValueError(f"{len(images)} images: this model takes at most {facts.limits.max_references}")
    pictures = []
    for number, data in enumerate(images, start=1):
        pictures.append(
            await anyio.to_thread.run_sync(decoded, data, f"image {number}", facts, limits, limiter=DECODING)
        )
    return pictures


def decoded(data: bytes, name: str, facts: ModelFacts, limits: RequestLimits) -> Image.Image:
    """One picture, decoded only if what it says of itself is within the limits."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(BytesIO(data), formats=FORMATS)
            _check_picture(picture, data, limits)
            return seen(load_image(picture, alpha=facts.limits.reads_alpha), facts)
    except UnidentifiedImageError as error:  # says only where in memory it was
        raise ValueError(f"{name} cannot be read: expected a whole {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's readers fail in many ways on what is broken
        raise ValueError(f"{name} cannot be read ({error}): expected a whole {', '.join(FORMATS)}") from error


def _check_picture(picture: Image.Image, data: bytes, limits: RequestLimits) -> None:
    """Raise ValueError for a picture that would take more memory, time or tokens than a request may."""
    size, most = f"{picture.width}x{picture.height} pixels", limits.max_reference_ratio
    if picture.width * picture.height > limits.max_reference_pixels:
        raise ValueError(f"it has {size}: expected {limits.max_reference_pixels} at most")
    if max(picture.size) > most * min(picture.size):
        raise ValueError(f"it has {size}: expected one side to be at most {most} times the other")
    if picture.format == "JPEG" and data.count(SCAN) > limits.max_reference_scans:
        raise ValueError(f"it has {data.count(SCAN)} scans: expected {limits.max_reference_scans} at most")


def seen(picture: Image.Image, facts: ModelFacts) -> Image.Image:
    """The picture as small as the model sees it, if that is what it would see of the small one as well."""
    once = read_images([picture], facts.limits)
    twice = read_images(once.images, facts.limits)
    return once.images[0] if twice.key == once.key else picture
