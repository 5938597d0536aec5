"""What `make demo` shows: three subjects mini has never seen, in scenes it is asked for, on one contact sheet."""

from pathlib import Path

import torch
from PIL import Image

import subjectgen
from subjectgen.evaluate.sheet import captioned_sheet
from subjectgen.files import whole_file

REFERENCES = Path(__file__).parent / "references"
SHEET = Path("out/demo.png")
PROMPTS = {
    "lady_beetle": (
        "a large image 1 on the left, a teal gradient behind",
        "image 1 upside down at the top, purple stripes behind",
        "three of image 1 at the bottom on a plain yellow ground",
    ),
    "pineapple": (
        "on green hills, a big image 1 in the middle",
        "a small image 1 tilted to the right in the top left on a blue checkered background",
        "image 1 mirrored at the bottom right on a pink polka dot ground",
    ),
    "automobile": (
        "a large image 1 at the bottom on a brown room",
        "image 1 on the right, facing the other way, white checks behind",
        "a tiny image 1 in the bottom left on a black background",
    ),
}

pipe = subjectgen.load("mini")
rows: list[tuple[str, list[Image.Image]]] = []
for name, prompts in PROMPTS.items():
    reference = Image.open(REFERENCES / f"{name}.png")
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    pictures = pipe(list(prompts), [[reference]] * len(prompts), generator=generators).images
    rows += [(prompt, [reference, picture]) for prompt, picture in zip(prompts, pictures, strict=True)]

with whole_file(SHEET) as path:
    captioned_sheet(("reference", "result"), rows, per_line=3).save(path, format="PNG")
print(SHEET.resolve())
