"""Two subjects in one picture, and a batch in which every prompt has references of its own."""

from pathlib import Path

import torch

import subjectgen

first, second = sorted((Path(__file__).parent / "references").glob("*.png"))[:2]
out = Path("out")
out.mkdir(exist_ok=True)

pipe = subjectgen.load("mini")
prompts = [
    "image 1 on the left and image 2 on the right on a green background",  # in the order of the references
    "on a yellow checkerboard, a large image 1 at the top",
    "a plain red ground",
]
subjects = [[first, second], [second], []]  # one list per prompt; none is text only
generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]

for index, image in enumerate(pipe(prompts, subjects, generator=generators).images):
    image.save(out / f"two_subjects-{index + 1}.png")
    print(out / f"two_subjects-{index + 1}.png", "|", prompts[index])
