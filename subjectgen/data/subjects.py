"""The subjects of the emoji world: cut-outs cached once as RGBA, split by name into seen and unseen."""

import hashlib
import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subjectgen.files import whole_file

SIDE = 128  # pixels of a cached cut-out
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the only bitmap size in the font
CODEPOINTS = ((0x1F300, 0x1F5FF), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF), (0x2600, 0x27BF))
# Signs, glyphs and people are not things one would ask a picture of, or differ from each other in a few pixels only.
NOT_THINGS = {
    "sign", "symbol", "face", "faces", "arrow", "arrows", "button", "moon", "hand", "hands", "person", "people",
    "man", "men", "woman", "women", "boy", "girl", "family", "adult", "baby", "child", "older", "bust", "busts",
    "modifier", "component", "square", "circle", "circled", "dingbat", "digit", "input", "keycap", "letter",
    "zodiac", "medal", "heart", "hearts", "speaker", "mailbox", "entry", "swimmer", "surfer", "runner", "cyclist",
    "bicyclist", "pedestrian", "dancer", "couple", "kiss", "wedding", "princess", "prince", "guardsman", "officer",
    "mage", "elf", "genie", "zombie", "superhero", "supervillain", "merperson", "fairy", "no", "non", "mobile",
    "left", "right", "index", "backhand", "bookmark", "triangle", "diamond", "asterisk", "mark", "ornament",
    "aries", "taurus", "gemini", "cancer", "leo", "virgo", "libra", "scorpius", "sagittarius", "capricorn",
    "aquarius", "pisces", "clock", "document", "selfie", "shrug", "wrestlers", "handball", "juggling", "fencer",
    "position", "restroom", "wc", "customs", "claim", "potable", "littering", "closed", "incoming", "outbox",
    "inbox",
}  # fmt: skip
UNSEEN_SHARE = 10  # one name in so many is never trained on


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """Named cut-outs; alpha says what belongs to the subject."""

    names: tuple[str, ...]
    rgba: UInt8[Tensor, "subjects 4 side side"]

    @property
    def sha256(self) -> str:
        """Of names and pixels."""
        return hashlib.sha256(f"{self.names}\n".encode() + self.rgba.contiguous().numpy().data).hexdigest()

    def split(self, unseen: bool) -> "Subjects":
        """The subjects never trained on, or all the others."""
        return self._only([i for i, name in enumerate(self.names) if is_unseen(name) == unseen])

    def spread(self, count: int) -> "Subjects":
        """So many, evenly spaced: those of a kind are neighbours in the font."""
        return self._only([i * len(self.names) // count for i in range(count)])

    def _only(self, keep: list[int]) -> "Subjects":
        return Subjects(names=tuple(self.names[i] for i in keep), rgba=self.rgba[keep])


def is_unseen(name: str) -> bool:
    """Whether a subject of this name is held out, by a hash of the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % UNSEEN_SHARE == 0


def default_cache() -> Path:
    """Where the cut-outs are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "subjectgen" / "emoji.safetensors"


def load_subjects(cache: Path | None = None, cutouts: Path | None = None) -> Subjects:
    """Read the cut-outs of a folder, or else the cached ones of the font, drawing these once if they are not there.

    Raises FileNotFoundError when neither is there, ValueError for pictures that are no cut-outs or a damaged cache.
    """
    if cutouts:
        return subjects_of(pictures_of_folder(cutouts))
    cache = cache or default_cache()
    if not cache.exists():
        save_subjects(subjects_of(pictures_of_font(FONT)), cache)
    try:
        with safe_open(str(cache), framework="pt") as file:
            return Subjects(names=tuple(json.loads(file.metadata()["names"])), rgba=file.get_tensor("rgba"))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{cache} cannot be read ({error}): delete it, and it is made again") from error


def subjects_of(pictures: dict[str, Image.Image]) -> Subjects:
    """Pictures by name => cut-outs of one size."""
    rgba = torch.stack([torch.from_numpy(np.array(fit(picture))).permute(2, 0, 1) for picture in pictures.values()])
    return Subjects(names=tuple(pictures), rgba=rgba.contiguous())


def save_subjects(subjects: Subjects, cache: Path) -> None:
    """Write cut-outs to one safetensors file."""
    with whole_file(cache) as path:
        save_file({"rgba": subjects.rgba}, path, metadata={"names": json.dumps(subjects.names)})


def pictures_of_font(font: Path) -> dict[str, Image.Image]:
    """Draw the things among the font's emoji, by their Unicode names."""
    if not font.exists():
        raise FileNotFoundError(
            f"{font} is not there: the emoji world is drawn from it. Install it (Debian, Ubuntu: "
            "`apt-get install fonts-noto-color-emoji`), or pass --cutouts with a folder of cut-outs (PNG with alpha)."
        )
    face = ImageFont.truetype(str(font), FONT_SIZE)
    drawn = {name: draw(code, face) for code, name in track(things(), "drawing emoji")}
    return {name: picture for name, picture in drawn.items() if is_colourful(picture)}


def pictures_of_folder(folder: Path) -> dict[str, Image.Image]:
    """Read every cut-out of a folder; a file's stem is the subject's name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected one with cut-outs (PNG or WebP with alpha)")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in {".png", ".webp"})
    if not files:
        raise ValueError(f"{folder} holds no PNG or WebP: expected cut-outs with alpha, named for what they show")
    return {file.stem.replace("_", " "): cutout(file) for file in files}


def cutout(file: Path) -> Image.Image:
    """One picture with alpha."""
    with Image.open(file) as picture:
        if not picture.has_transparency_data:
            raise ValueError(f"{file} has no alpha: expected a cut-out, transparent around its subject")
        rgba = picture.convert("RGBA")
    if np.asarray(rgba)[..., 3].max() < 128:
        raise ValueError(f"{file} is transparent everywhere: expected a cut-out with an opaque subject")
    return rgba


def things() -> list[tuple[int, str]]:
    """Code points and names of emoji that show a thing."""
    codes = [code for first, last in CODEPOINTS for code in range(first, last + 1)]
    named = [(code, unicodedata.name(chr(code), "").lower().replace("-", " ")) for code in codes]
    return [(code, name) for code, name in named if name and NOT_THINGS.isdisjoint(name.split())]


def draw(code: int, face: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji on a transparent ground."""
    picture = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(picture).text((8, 8), chr(code), font=face, embedded_color=True)
    return picture


def is_colourful(picture: Image.Image) -> bool:
    """Whether the font has a colour picture of its own here: a missing glyph comes out black or empty."""
    pixels = np.asarray(picture)
    opaque = pixels[pixels[..., 3] > 128][:, :3]
    return len(opaque) > 1500 and int(opaque.max()) > 60


def fit(picture: Image.Image) -> Image.Image:
    """Crop to the opaque part and centre it on a square of SIDE pixels, aspect kept."""
    cropped = picture.crop(picture.getchannel("A").getbbox())
    scale = SIDE / max(cropped.size)
    width, height = (max(1, round(side * scale)) for side in cropped.size)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(cropped.resize((width, height), Image.Resampling.LANCZOS), ((SIDE - width) // 2, (SIDE - height) // 2))
    return square
