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
    raise ValueError(f"{_shown(value)} is not an image: expected {EXPECTED}.{_remedy(value)}")


def subject_lists(subject_images: Any, num_prompts: int) -> list[list[Any]]:
    """One subject, a list of subjects for every prompt, or a list per prompt => one list per prompt.

    The entries themselves are passed through untouched. `None` and `[]` mean text only.
    """
    if subject_images is None:
        return [[] for _ in range(num_prompts)]
    if not isinstance(subject_images, (list, tuple)):
        _refuse_collection(subject_images)
        return [[subject_images] for _ in range(num_prompts)]
    nested = [entry is None or isinstance(entry, (list, tuple)) for entry in subject_images]
    if not any(nested):
        for entry in subject_images:
            _refuse_collection(entry)
        return [list(subject_images) for _ in range(num_prompts)]
    if not all(nested):
        raise ValueError(
            f"subject_images mixes images and lists (entry {nested.index(False) + 1} of {len(nested)} is "
            f"{_shown(subject_images[nested.index(False)])}): expected one list of images, or one list per prompt. "
            "Put each prompt's images in a list of their own, `[]` for a prompt without any."
        )
    return _one_list_per_prompt(subject_images, num_prompts)


def check_size(height: Any, width: Any, multiple: int) -> None:
    """Raise ValueError, naming the nearest two sizes, unless both sides are positive multiples of `multiple` pixels."""
    for name, side in (("height", height), ("width", width)):
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < 1:
            raise ValueError(f"{name}={side!r} is not a size: expected a whole number of pixels, e.g. {8 * multiple}.")
    if height % multiple == 0 and width % multiple == 0:
        return
    (low_width, high_width), (low_height, high_height) = _nearest(width, multiple), _nearest(height, multiple)
    raise ValueError(
        f"size {width}x{height} (width x height) does not fit this model: both sides must be multiples of {multiple}. "
        f"The nearest sizes are {low_width}x{low_height} and {high_width}x{high_height}."
    )


def _nearest(side: int, multiple: int) -> tuple[int, int]:
    below = max(side // multiple, 1) * multiple
    return (below, below) if side == below else (below, below + multiple)


def _one_list_per_prompt(lists: list[Any] | tuple[Any, ...], num_prompts: int) -> list[list[Any]]:
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
        raise ValueError(f"subject_images holds {_shown(value)}: expected {EXPECTED}, or a list of them.")
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 4:
        raise ValueError(
            f"{_shown(value)} is a batch: expected one image per entry. Pass list(images) for several subjects, "
            "images[0] for one."
        )


def _from_path(value: str | Path) -> Image.Image:
    if str(value).split("://")[0].lower() in {"http", "https", "ftp", "s3", "data", "file"} or str(value).startswith(
        "data:"
    ):
        raise ValueError(
            f"{_shown(value)} is a URL: expected a file on this machine. Download it first and pass its path."
        )
    path, name = Path(value).expanduser(), _named(value)
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist: expected a picture such as a PNG or JPEG. Check the path.")
    if path.is_dir():
        raise ValueError(f"{name} is a folder: expected one picture. Pass each file by itself.")
    return _decoded(path, name)


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
    name = _shown(tensor)
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
    name = name or _shown(array)
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
        return _levels(array, 65535.0, name, "Scale it to 16 bits first.")
    raise ValueError(f'{name}: expected uint8 0..255, uint16 or float 0..1. Use array.astype("uint8").')


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
    return "the PIL image" if isinstance(value, Image.Image) else _shown(value)


def _shown(value: Any) -> str:
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
