"""Your subject in a scene you describe: `python examples/quick_start.py`."""

from pathlib import Path

import torch

import subjectgen

references = sorted((Path(__file__).parent / "references").glob("*.png"))
out = Path("out")
out.mkdir(exist_ok=True)

pipe = subjectgen.load("mini")
image = pipe(
    "image 1 upside down on the left on a blue striped background",
    references[0],
    generator=torch.Generator().manual_seed(0),
).images[0]
image.save(out / "quick_start.png")
print(out / "quick_start.png")
