"""What a request asks for: OpenAI's fields that make sense here, and a few of our own."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from subjectgen.engine import Painting
from subjectgen.engine.facts import ModelFacts
from subjectgen.engine.work import MAX_SEED
from subjectgen.request import check_size
from subjectgen.serve.limits import RequestLimits
from subjectgen.sizes import size_of

Text = Annotated[str, Field(max_length=8000)]
Name = Annotated[str, Field(max_length=200)]
Scale = Annotated[float, Field(allow_inf_nan=False, ge=-100, le=100)]  # of guidance; weights of stages are less
Id = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Asked(BaseModel):
    """Pictures of a prompt. Fields that are not listed are refused, so that none is overlooked."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=8000)]
    model: Name | None = None
    n: Annotated[int, Field(ge=1)] = 1
    size: Annotated[str, Field(pattern="^(auto|[0-9]{1,5}x[0-9]{1,5})$")] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    quality: Literal["auto"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    user: Name | None = None
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    # ours
    subjects: Annotated[list[Id], Field(max_length=16)] = []
    negative_prompt: Text = ""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    stages: Name | Annotated[list[dict[str, Scale]], Field(max_length=100)] | None = None
    guidance_scale: Scale | None = None


def paintings(asked: Asked, subjects: Any, limits: RequestLimits, facts: ModelFacts) -> list[Painting]:
    """One for each picture; picture k has the seed + k - 1. Raises ValueError for what goes beyond the limits."""
    _check_model(asked.model, facts.name)
    _check_most("n", asked.n, limits.max_images)
    width, height = size_of(None if asked.size == "auto" else asked.size, "size")
    if width is not None and height is not None:
        check_size(height, width, facts.limits.size_multiple)
        _check_most("the number of pixels", width * height, limits.max_pixels)
    steps = asked.steps or facts.limits.num_inference_steps
    _check_most("steps", steps, limits.max_steps)
    first = Painting(
        prompt=asked.prompt,
        subjects=subjects,
        seed=asked.seed,
        negative_prompt=asked.negative_prompt,
        width=width,
        height=height,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        stages=asked.stages,
        preview_every=steps // (asked.partial_images + 1) if asked.partial_images else 0,
    )
    return [first.with_seed((first.seed + k) % (MAX_SEED + 1)) for k in range(asked.n)]


def _check_model(asked: str | None, here: str) -> None:
    if asked not in (None, here):
        raise ValueError(f"model '{asked}' is not here: expected '{here}', or none")


def _check_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise ValueError(f"{name} is {value}: expected {most} at most")
