"""Read the references once, then prompt as often as you like: the same pictures, sooner."""

from pathlib import Path
from time import perf_counter

import torch

import subjectgen
from subjectgen import SubjectEmbeds

reference = sorted((Path(__file__).parent / "references").glob("*.png"))[0]
out = Path("out")
out.mkdir(exist_ok=True)

pipe = subjectgen.load("mini")
pipe.encode_subjects([reference]).save(out / "subject.safetensors")
subject = SubjectEmbeds.load(out / "subject.safetensors")  # in another session, by the same model

for colour in ("red", "blue", "green"):
    start = perf_counter()
    image = pipe(f"image 1 in the middle on a {colour} background", subject, generator=torch.Generator().manual_seed(0))
    image.images[0].save(out / f"encode_once-{colour}.png")
    print(out / f"encode_once-{colour}.png", f"{perf_counter() - start:.1f} s")
