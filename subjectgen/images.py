"""Intake of a user's images: whatever was given => an upright 8-bit RGB picture, or an error that helps.

Nothing is guessed: a value that could be read in two ways is refused with the expression that settles it.
"""

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 2**27  # 134 megapixels, 400 MB once decoded: above every camera's usual output, below a bomb's
EXPECTED = "a path, a PIL image, a numpy array [h, w, 3] or a torch tensor [3, h, w]"
GREY_16 = {"I;16", "I;16L", "I;16B", "I;16N", "I"}


def load_image(value: Any, *, alpha: bool = False) -> Image.Image:
    """Any image a user may hold => a new upright RGB PIL image, RGBA if `alpha`.

    Takes a path, a PIL image, a numpy array (height, width[, 1 | 3 | 4]; uint8, uint16 or float 0..1) or a torch tensor
    ([1 | 3 | 4,] height, width; uint8 or float 0..1). Warns when transparency is laid on white or only the first frame
    of an animation is used. Raises FileNotFoundError or ValueError.
    """
    image = _loaded(value)
    if alpha:
        return image.convert("RGBA")
    if image.mode == "RGBA":
        warnings.warn(f"{_named(value)} is partly transparent: it is laid on white.", stacklevel=2)
    return on_white(image)


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA picture as it looks on white paper; RGB stays as it is."""
    if image.mode == "RGB":
        return image
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _loaded(value: Any) -> Image.Image:
    """RGB, or RGBA if any of it is transparent."""
    if isinstance(value, (str, Path)):
        return _from_path(value)
    if isinstance(value, Image.Image):
        return _from_pil(value, _named(value))
    if isinstance(value, np.ndarray):
        return _from_array(value)
    if isinstance(value, Tensor):
        return _from_tensor(value)
    raise ValueError(f"{shown(value)} is not an image: expected {EXPECTED}.{_remedy(value)}")


def _from_path(value: str | Path) -> Image.Image:
    if str(value).split("://")[0].lower() in {"http", "https", "ftp", "s3", "data", "file"} or str(value).startswith(
        "data:"
    ):
        raise ValueError(
            f"{shown(value)} is a URL: expected a file on this machine. Download it first and pass its path."
        )
    path, name = Path(value).expanduser(), _named(value)
    if not _is_there(path):
        raise FileNotFoundError(f"{name} does not exist: expected a picture such as a PNG or JPEG. Check the path.")
    if path.is_dir():
        raise ValueError(f"{name} is a folder: expected one picture. Pass each file by itself.")
    if path.suffix == ".safetensors":
        raise ValueError(
            f"{name} is no picture but tensors: expected {EXPECTED}. A subject that was encoded is given as "
            f"SubjectEmbeds.load({str(value)!r}), in place of all images of its prompt."
        )
    return _decoded(path, name)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # too long, a zero byte, a folder that may not be looked into
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{shown(str(path))} cannot be a path ({reason}): expected {EXPECTED}. Check it.") from error


def _decoded(path: Path, name: str) -> Image.Image:
    """Pillow's readers fail in many ways on broken files: all of them become one ValueError that says which file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}): expected a readable file.") from error
    if not data:
        raise ValueError(f"{name} is empty (0 bytes): expected a picture. Copy or download it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not a picture Pillow can read: expected PNG, JPEG, WebP, GIF, TIFF or BMP. "
            "Convert it, or copy it again if it should be one."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(name, str(error))) from error
    except Exception as error:
        raise ValueError(_corrupt(name, error)) from error
    return _from_pil(image, name)


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels (size {image.width}x{image.height}): expected at least 1x1.")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large(name, f"{image.width}x{image.height} pixels"))
    try:
        upright = ImageOps.exif_transpose(_first_frame(image, name))
    except Exception as error:
        raise ValueError(_corrupt(name, error)) from error
    return _straight(upright, name)


def _first_frame(image: Image.Image, name: str) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    if frames == 1:
        image.load()
        return image
    if image.format != "MPO":  # a phone's MPO is one photo with a preview behind it
        warnings.warn(f"{name} has {frames} frames: only the first is used.", stacklevel=2)
    position = image.tell()
    image.seek(0)
    first = image.copy()
    image.seek(position)
    return first


def _straight(image: Image.Image, name: str) -> Image.Image:
    if image.mode in GREY_16 or image.mode == "F":
        return _from_array(np.asarray(image), name)
    if image.mode == "LAB":
        return _managed(image, ImageCms.createProfile("LAB"), name)
    profile, alpha = image.info.get("icc_profile"), _alpha(image)
    opaque = image.convert("RGBA").convert("RGB") if _has_alpha(image) else image
    if opaque.mode not in {"RGB", "CMYK", "L"}:
        opaque = opaque.convert("RGB")
    coloured = _managed(opaque, profile, name) if profile else opaque.convert("RGB")
    if alpha is not None:
        coloured.putalpha(alpha)
    return coloured


def _alpha(image: Image.Image) -> Image.Image | None:
    """How opaque it is, if any of it is not wholly so."""
    if not _has_alpha(image):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    lowest, _ = alpha.getextrema()
    return alpha if lowest < 255 else None  # type: ignore[operator]  (one channel has one pair)


def _managed(image: Image.Image, profile: Any, name: str) -> Image.Image:
    """Colours as the picture's own ICC profile means them => sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile)) if isinstance(profile, bytes) else profile
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError) as error:
        warnings.warn(
            f"{name}: its colour profile does not fit ({error}); the colours are taken as sRGB.", stacklevel=2
        )
        return image.convert("RGB")
    assert converted is not None  # None only for in-place conversion
    return converted


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info


def _from_tensor(tensor: Tensor) -> Image.Image:
    name = shown(tensor)
    if tensor.ndim not in {2, 3} or (tensor.ndim == 3 and tensor.shape[0] not in {1, 3, 4}):
        remedy = " Use tensor.permute(2, 0, 1)." if tensor.ndim == 3 and tensor.shape[-1] in {1, 3, 4} else ""
        remedy = " Pass list(tensor) for several images, tensor[0] for one." if tensor.ndim == 4 else remedy
        raise ValueError(f"{name}: expected [channels, height, width] with 1, 3 or 4 channels.{remedy}")
    if tensor.dtype.is_floating_point:
        tensor = tensor.float()
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"{name}: expected uint8 0..255 or float 0..1. Use tensor.to(torch.uint8).")
    array = tensor.detach().cpu().numpy()
    return _from_array(array if tensor.ndim == 2 else rearrange(array, "c h w -> h w c"), name)


def _from_array(array: np.ndarray, name: str | None = None) -> Image.Image:
    name = name or shown(array)
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[-1] not in {1, 3, 4}):
        remedy = " Use array.transpose(1, 2, 0)." if array.ndim == 3 and array.shape[0] in {1, 3, 4} else ""
        remedy = " Pass list(array) for several images, array[0] for one." if array.ndim == 4 else remedy
        raise ValueError(f"{name}: expected [height, width, channels] with 1, 3 or 4 channels.{remedy}")
    if 0 in array.shape:
        raise ValueError(f"{name} has no pixels: expected at least 1x1.")
    levels = _eight_bit(array, name)
    levels = levels[..., 0] if levels.ndim == 3 and levels.shape[-1] == 1 else levels
    return _straight(Image.fromarray(np.ascontiguousarray(levels)), name)


def _eight_bit(array: np.ndarray, name: str) -> np.ndarray:
    """uint8, 16-bit levels 0..65535 or floats 0..1 => uint8, rounded to the nearest level."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        return _levels(array, 1.0, name, "Use (array + 1) / 2 for -1..1, array / 255 for 0..255.")
    if array.dtype in (np.uint16, np.int32):  # int32 is how Pillow holds 16-bit TIFF and PNG
        _check_not_8_bit(array, name)
        return _levels(array, 65535.0, name, "Scale it to 16 bits first.")
    raise ValueError(f'{name}: expected uint8 0..255, uint16 or float 0..1. Use array.astype("uint8").')


def _check_not_8_bit(array: np.ndarray, name: str) -> None:
    if 0 < (high := array.max()) <= 255:
        raise ValueError(
            f"{name} has levels up to {high} of 65535, which is black to the eye: expected 16-bit levels. "
            'Use array.astype("uint8") if they are of 255 (of a PIL image: numpy.array(image).astype("uint8")).'
        )


def _levels(array: np.ndarray, highest: float, name: str, remedy: str) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= highest):  # also refuses NaN
        raise ValueError(f"{name} has values {low:g}..{high:g}: expected 0..{highest:g}. {remedy}")
    return np.round(array.astype(np.float64) * (255 / highest)).astype(np.uint8)


def _too_large(name: str, what: str) -> str:
    return (
        f"{name} is too large ({what}): expected at most {MAX_PIXELS // 10**6} megapixels, since larger files are "
        "usually decompression bombs. Scale it down first; this model sees only a few hundred pixels of it."
    )


def _corrupt(name: str, error: Exception) -> str:
    return f"{name} is corrupt or cut off ({error}): expected a whole picture. Copy or download it again."


def _named(value: Any) -> str:
    if isinstance(value, (str, Path)):
        return f"image file '{Path(value).expanduser()}'"
    return "the PIL image" if isinstance(value, Image.Image) else shown(value)


def shown(value: Any) -> str:
    """A short way to name a value in an error."""
    if isinstance(value, (np.ndarray, Tensor)):
        kind = "numpy array" if isinstance(value, np.ndarray) else "torch tensor"
        return f"the {kind} of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if isinstance(value, (str, Path)) else f"{text} (of type {type(value).__name__})"


def _remedy(value: Any) -> str:
    remedies: list[tuple[Callable[[Any], bool], str]] = [
        (lambda v: isinstance(v, (bytes, bytearray)), " Use PIL.Image.open(io.BytesIO(data))."),
        (lambda v: hasattr(v, "read"), " Use PIL.Image.open(file)."),
        (lambda v: isinstance(v, (list, tuple)), " Pass one image at a time."),
        (lambda v: v is None, " Leave subject_images out for text only."),
    ]
    return next((remedy for fits, remedy in remedies if fits(value)), "")
