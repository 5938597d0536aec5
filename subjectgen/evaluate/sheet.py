"""Pictures side by side, to be looked at."""

import math
import textwrap
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

GAP = 8  # pixels
LINE = 18  # pixels of a line of text
CHARACTERS = 30  # in a line of a caption


def picture_of(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Pixels -1..1 as a picture."""
    eight_bit = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(rearrange(eight_bit, "c h w -> h w c").cpu().numpy())


def picture_grid(pixels: Float[Tensor, "n 3 h w"], columns: int) -> Image.Image:
    """Pixels -1..1 in rows of `columns`; n must fill the rows."""
    if len(pixels) % columns:
        raise ValueError(f"{len(pixels)} pictures do not fill rows of {columns}")
    return picture_of(rearrange(pixels, "(rows columns) c h w -> c (rows h) (columns w)", columns=columns))


def captioned_sheet(
    headings: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 128, per_line: int = 2
) -> Image.Image:
    """Rows of pictures of `cell` pixels, each with its prompt beside it; `per_line` rows stand side by side."""
    caption = 8 * CHARACTERS
    width = len(headings) * (cell + GAP) + caption + GAP
    lines = -(-len(rows) // per_line)
    sheet = Image.new("RGB", (width * per_line, LINE + GAP + lines * (cell + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column in range(per_line):
        for i, heading in enumerate(headings):
            draw.text((GAP + column * width + i * (cell + GAP), GAP // 2), heading, fill="black", font_size=13)
    for index, (text, pictures) in enumerate(rows):
        left, top = GAP + index % per_line * width, LINE + GAP + index // per_line * (cell + GAP)
        for i, picture in enumerate(pictures):
            sheet.paste(picture.resize((cell, cell), Image.Resampling.LANCZOS), (left + i * (cell + GAP), top))
        words = textwrap.fill(text, CHARACTERS)
        draw.text((left + len(headings) * (cell + GAP), top + cell // 4), words, fill="black", font_size=13)
    return sheet


def side_by_side(images: Sequence[Image.Image], cell: int = 128) -> Image.Image:
    """One picture of `cell` pixels with all images in it, each whole."""
    columns = math.ceil(math.sqrt(len(images)))
    side, together = cell // columns, Image.new("RGB", (cell, cell), "white")
    for index, image in enumerate(images):
        small = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
        left, top = index % columns * side, index // columns * side
        together.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    return together
