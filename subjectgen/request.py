"""What the user asked for, and what that means: two types, so that nothing downstream asks if a value was given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from subjectgen.binding import Binding, bind, numbered
from subjectgen.embeds import SubjectEmbeds
from subjectgen.generate.guide import Guidance
from subjectgen.generate.stages import Stage, is_number, is_whole, resolve_stages
from subjectgen.generate.to_image import OutputType
from subjectgen.references import References, check_count, read_images
from subjectgen.subject_lists import subject_lists

Subjects = References | SubjectEmbeds


@dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of a call as they were given; None leaves a choice to the checkpoint."""

    prompt: Any
    subject_images: Any = None
    height: Any = None
    width: Any = None
    num_inference_steps: Any = None
    guidance_scale: Any = None
    negative_prompt: Any = None
    negative: Any = None
    guidance: Any = None
    stages: Any = None
    generator: Any = None
    latents: Any = None
    num_images_per_prompt: Any = 1
    best_of: Any = 1
    output_type: Any = "pil"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a checkpoint can do, and what it does when nothing is asked."""

    image_size: int  # pixels, both sides
    pixels_per_latent: int
    pixels_per_token: int
    size_multiple: int  # pixels that both sides of a picture must be divisible by
    latent_channels: int
    reference_size: int  # pixels, both sides; their geometric mean where references keep their shape
    reference_shape: str  # "square" or "own"
    reads_alpha: bool
    max_references: int
    num_inference_steps: int
    guidance_scale: float
    negative: str  # of NEGATIVES
    stages: Any


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A call with every choice made: prompts, their subjects, and how to paint them."""

    prompts: tuple[str, ...]  # in which every subject is called by its number
    negative_prompts: tuple[str, ...]  # so too
    subjects: tuple[Subjects, ...]  # one entry per prompt
    bindings: tuple[tuple[Binding, ...], ...]  # of each prompt as it was given
    height: int
    width: int
    num_inference_steps: int
    guidance: Guidance
    stages: tuple[Stage, ...]
    num_images_per_prompt: int  # all that are painted, candidates among them
    output_type: OutputType

    @property
    def num_pictures(self) -> int:
        return len(self.prompts) * self.num_images_per_prompt


def resolve(request: Request, limits: Limits) -> ResolvedRequest:
    """The request with every choice made. Raises ValueError or FileNotFoundError for what cannot be."""
    prompts = prompts_of(request.prompt)
    negative_prompts = negative_prompts_of(request.negative_prompt, len(prompts))
    entries = subject_lists(request.subject_images, len(prompts))
    subjects = tuple(_subjects(each, limits) for each in entries)
    bindings = _bindings(prompts, subjects)
    height = limits.image_size if request.height is None else request.height
    width = limits.image_size if request.width is None else request.width
    check_size(height, width, limits.size_multiple)
    steps = limits.num_inference_steps if request.num_inference_steps is None else request.num_inference_steps
    resolved = ResolvedRequest(
        prompts=tuple(map(numbered, prompts, bindings)),
        negative_prompts=tuple(map(numbered, negative_prompts, _bindings(negative_prompts, subjects))),
        subjects=subjects,
        bindings=bindings,
        height=int(height),
        width=int(width),
        num_inference_steps=_count(steps, "num_inference_steps"),
        guidance=_guidance(request, negative_prompts, limits),
        stages=resolve_stages(limits.stages if request.stages is None else request.stages),
        num_images_per_prompt=_count(request.num_images_per_prompt, "num_images_per_prompt")
        * _count(request.best_of, "best_of"),
        output_type=_output_type(request.output_type),
    )
    _check_generator(request.generator, resolved.num_pictures)
    return resolved


def one_of_two(subject_images: Any, image: Any) -> Any:
    """`image` is another name for `subject_images`; giving both is an error."""
    if subject_images is not None and image is not None:
        raise ValueError("both subject_images and image are given: they are two names for the same thing, give one")
    return image if subject_images is None else subject_images


def check_unicode(name: str, text: str) -> None:
    """Raise ValueError for half of a character, which no tokenizer takes and no file holds."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name}={text!r} holds half a character: expected Unicode. Write it anew, in UTF-8")


def prompts_of(prompt: Any) -> tuple[str, ...]:
    """A prompt or a list of them. Raises ValueError for what is empty or no text."""
    prompts = (prompt,) if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(entry, str) for entry in prompts):
        raise ValueError(f"prompt={prompt!r}: expected a string or a list of strings")
    if not prompts or not all(entry.strip() for entry in prompts):
        raise ValueError(
            f"prompt={prompt!r} is empty: expected a few words, such as 'a red ground, the subject on the left'"
        )
    for entry in prompts:
        check_unicode("prompt", entry)
    return tuple(prompts)


def negative_prompts_of(negative_prompt: Any, num_prompts: int) -> tuple[str, ...]:
    """That of each prompt, empty where none is given. Raises ValueError for another number of them."""
    if negative_prompt is None:
        negative_prompt = ""
    if isinstance(negative_prompt, str):
        check_unicode("negative_prompt", negative_prompt)
        return (negative_prompt,) * num_prompts
    if not isinstance(negative_prompt, (list, tuple)) or not all(isinstance(entry, str) for entry in negative_prompt):
        raise ValueError(f"negative_prompt={negative_prompt!r}: expected a string or a list of strings")
    if len(negative_prompt) != num_prompts:
        raise ValueError(
            f"{len(negative_prompt)} negative prompts for {num_prompts} prompts: expected one, or one each"
        )
    for entry in negative_prompt:
        check_unicode("negative_prompt", entry)
    return tuple(negative_prompt)


def _subjects(entries: Sequence[Any], limits: Limits) -> Subjects:
    if any(isinstance(entry, SubjectEmbeds) for entry in entries):
        if len(entries) > 1:
            raise ValueError(
                f"{len(entries)} subjects of one prompt, SubjectEmbeds among them: embeds hold all references of a "
                "prompt, in order. Encode the images together with pipe.encode_subjects([...])."
            )
        check_count(entries[0].num_references, limits)
        return entries[0]
    return read_images(entries, limits)


def _bindings(prompts: Sequence[str], subjects: Sequence[Subjects]) -> tuple[tuple[Binding, ...], ...]:
    return tuple(bind(prompt, each.names) for prompt, each in zip(prompts, subjects, strict=True))


def _guidance(request: Request, negative_prompts: Sequence[str], limits: Limits) -> Guidance:
    if request.guidance is not None:
        if request.guidance_scale is not None or request.negative is not None:
            raise ValueError("guidance is given beside guidance_scale or negative: it already says both, give one")
        if not isinstance(request.guidance, Guidance):
            raise ValueError(f"guidance={request.guidance!r}: expected subjectgen.Guidance(...)")
        return request.guidance
    scale = limits.guidance_scale if request.guidance_scale is None else request.guidance_scale
    if not is_number(scale):
        raise ValueError(f"guidance_scale={scale!r}: expected a finite number, 1 for none")
    negative = _negative(negative_prompts, limits) if request.negative is None else request.negative
    return Guidance(scale=float(scale), negative=negative)


def _negative(negative_prompts: Sequence[str], limits: Limits) -> str:
    """What guidance goes away from where it isn't said: negative prompts are read. A batch has one answer."""
    if not any(negative_prompts):
        return limits.negative
    if not all(negative_prompts) and limits.negative != "empty_text":
        raise ValueError(
            f"negative_prompt={list(negative_prompts)!r}: some are empty, and this model's guidance goes away from "
            f"{limits.negative!r} where there is none: expected one each, or none. Give negative='empty_text' for "
            "all, or make two calls."
        )
    return "empty_text"


def _count(value: Any, name: str) -> int:
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a whole number, at least 1")
    return int(value)


def _output_type(output_type: Any) -> OutputType:
    if output_type not in get_args(OutputType):
        raise ValueError(f"output_type={output_type!r}: expected one of {', '.join(get_args(OutputType))}")
    return output_type


def draw_noise(request: Request, resolved: ResolvedRequest, limits: Limits) -> Float[Tensor, "pictures c h w"]:
    """`latents` as given, or one draw per picture, so that picture k is the same at any batch size and on any device.

    The pictures of one prompt stand together.
    """
    unit = limits.pixels_per_latent
    shape = (limits.latent_channels, resolved.height // unit, resolved.width // unit)
    if request.latents is not None:
        return _given_noise(request.latents, (resolved.num_pictures, *shape))
    return draw(generators_of(request.generator, resolved.num_pictures), shape)


def draw(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Float[Tensor, "pictures ..."]:
    """One draw of noise of each, on the CPU."""
    draws = [torch.randn(*shape, generator=generator, device=generator.device) for generator in generators]
    return torch.stack([each.cpu() for each in draws])


def _given_noise(latents: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(latents, Tensor) or not latents.is_floating_point() or tuple(latents.shape) != shape:
        given = list(latents.shape) if isinstance(latents, Tensor) else f"of type {type(latents).__name__}"
        raise ValueError(f"latents {given}: expected a float tensor {list(shape)} (pictures, channels, rows, columns)")
    return latents


def generators_of(generator: Any, num_pictures: int) -> list[torch.Generator]:
    """The one that each picture draws from. Raises ValueError for another number of them."""
    _check_generator(generator, num_pictures)
    if generator is None:
        return [torch.Generator().manual_seed(int(seed)) for seed in torch.randint(2**63 - 1, (num_pictures,))]
    return [generator] * num_pictures if isinstance(generator, torch.Generator) else list(generator)


def _check_generator(generator: Any, num_pictures: int) -> None:
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, (list, tuple)) or not all(isinstance(entry, torch.Generator) for entry in generator):
        raise ValueError(f"generator={generator!r}: expected torch.Generator().manual_seed(seed), or a list of them")
    if len(generator) != num_pictures:
        raise ValueError(f"{len(generator)} generators for {num_pictures} pictures: expected one, or one per picture")


def check_size(height: Any, width: Any, multiple: int) -> None:
    """Raise ValueError, naming the nearest two sizes, unless both sides are positive multiples of `multiple` pixels."""
    for name, side in (("height", height), ("width", width)):
        if not is_whole(side) or side < 1:
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
