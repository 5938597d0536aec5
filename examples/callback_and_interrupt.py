"""Watch the picture form, and stop early: after each step a callback sees the latents and may interrupt."""

from pathlib import Path
from typing import Any

import torch

import subjectgen

BUDGET = 10  # steps
out = Path("out")
out.mkdir(exist_ok=True)
reference = sorted((Path(__file__).parent / "references").glob("*.png"))[0]


def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """diffusers' callback: what it returns replaces the tensors it was given."""
    print(f"step {step + 1} of {pipe.num_timesteps}, spread of the latents {tensors['latents'].std():.2f}")
    pipe._interrupt = step + 1 == BUDGET  # diffusers' own switch: the steps left are skipped
    return tensors


pipe = subjectgen.load("mini")
image = pipe(
    "image 1 on the right, a purple gradient behind",
    reference,
    generator=torch.Generator().manual_seed(0),
    callback_on_step_end=on_step_end,
).images[0]
image.save(out / "interrupted.png")
print(out / "interrupted.png")
