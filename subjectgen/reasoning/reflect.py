"""The MLLM looks at what was painted, says what departs from the plan, and the painter tries again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from subjectgen.generate.sample import noised
from subjectgen.generate.stages import is_number, is_whole
from subjectgen.generate.to_image import to_image
from subjectgen.reasoning.encoded import EncodedOnce
from subjectgen.reasoning.paint import bindings_of, plans_of, spoken_of
from subjectgen.reasoning.plan import Plan
from subjectgen.reasoning.questions import RESPECTS
from subjectgen.reasoning.view import check_askable, views
from subjectgen.request import Request, ResolvedRequest, draw

if TYPE_CHECKING:
    from subjectgen.callback import Callback
    from subjectgen.pipeline import SubjectPipeline

REFLECT_SIGMA = 0.9  # the lowest from which another prompt is painted as from noise (mini; benchmarks/reflection.py)
Departures = tuple[str, ...]  # of RESPECTS


@dataclass(frozen=True, kw_only=True)
class Round:
    """The pictures of a call after one painting, and in which respects each departs from its plan."""

    images: list[Image.Image]
    departures: list[Departures]

    @property
    def wrong(self) -> list[int]:
        """Which pictures depart, counted from 0."""
        return [index for index, each in enumerate(self.departures) if each]


@dataclass(frozen=True, kw_only=True)
class Reflection:
    """How often a picture is painted again at most, and the sigma to which it is noised before."""

    rounds: Any
    sigma: Any

    def __post_init__(self) -> None:
        if not is_whole(self.rounds) or self.rounds < 0:
            raise ValueError(f"reflect={self.rounds!r}: expected a whole number of rounds, 0 for none")
        if not is_number(self.sigma) or not 0 < self.sigma <= 1:
            raise ValueError(
                f"reflect_sigma={self.sigma!r}: expected a number above 0 (the picture stays) up to 1 (none of it does)"
            )


def corrected(plan: Plan, departures: Departures) -> Plan:
    """The plan with what its picture departs from said once more, behind its prompt, in the plan's own words.

    Subjects are called by number: the MLLM's name for one could be the user's for another.
    """
    looks = [f"image {k}, {', '.join(plan.subjects[k - 1].colours)}" for k in spoken_of(plan)]
    said = {"subject": " and ".join(looks), "scene": plan.scene, "view": plan.view, "pose": plan.pose}
    again = [f"{respect}: {said[respect]}" for respect in departures]
    return plan.replace(prompt="; ".join([plan.prompt, *again]))


def reflect(
    pipe: "SubjectPipeline",
    reflection: Reflection,
    encoded: EncodedOnce,
    request: Request,
    latents: Float[Tensor, "pictures c h w"],
    generators: Sequence[torch.Generator],
    on_step_end: "Callback | None",
) -> tuple[Float[Tensor, "pictures c h w"], list[Round]]:
    """Pictures painted from plans -> the latents of the last round, and all rounds, the first painting among them.

    Only pictures that depart from their plans are painted again, in one batch, each with fresh noise of its generator.
    A round that is interrupted, while it is painted or looked at, is thrown away.
    """
    plans = [plan for plan in plans_of(request.prompt) or () for _ in range(request.num_images_per_prompt)]
    images: Any = to_image(pipe.vae, latents, "pil")
    first = Round(images=images, departures=_departures(pipe, plans, images))
    rounds = [] if pipe.interrupt else [first]
    while 0 < len(rounds) <= reflection.rounds and (wrong := rounds[-1].wrong):
        resolved = _resolved_again(pipe, encoded, request, [plans[index] for index in wrong], rounds[-1])
        noise = draw([generators[index] for index in wrong], latents.shape[1:]).to(latents)
        start = noised(latents[wrong], noise, reflection.sigma)
        painted = pipe._paint(resolved, start, on_step_end, start=reflection.sigma)
        if pipe.interrupt:
            break
        new = _next_round(pipe, plans, rounds[-1], to_image(pipe.vae, painted, "pil"))
        if pipe.interrupt:
            break
        latents = latents.index_copy(0, torch.tensor(wrong, device=latents.device), painted)
        rounds.append(new)
    return latents, rounds


def check_heard(reflection: Reflection, request: Request, resolved: ResolvedRequest) -> None:
    """Raise ValueError where a round would be painted without the prompt, or with noise that no seed brings back."""
    if request.latents is not None and request.generator is None:
        raise ValueError(
            f"latents with reflect={reflection.rounds} and no generator: every round draws fresh noise, so the latents "
            "alone paint no picture again. Give a generator as well."
        )
    if not any(each.num_references for each in resolved.subjects):  # then the prompt acts in every stage
        return
    heard = [stage.until for stage in resolved.stages if stage.semantic > 0]
    if not heard or reflection.sigma <= heard[-1]:
        expected = f"expected more than {heard[-1]}" if heard else "expected stages with semantic above 0"
        raise ValueError(
            f"reflect_sigma={reflection.sigma!r}: no stage below it hears the prompt, so that a correction changes "
            f"nothing: {expected}. Give another reflect_sigma, or other stages."
        )


def check_correctable(plans: Sequence[Plan]) -> None:
    """Raise ValueError, before anything is painted, for a plan whose decisions cannot be asked for or said again."""
    for plan in plans:
        check_askable(plan)
        bindings_of(corrected(plan, RESPECTS))  # refuses a reference that is not there


def _resolved_again(
    pipe: "SubjectPipeline", encoded: EncodedOnce, request: Request, plans: Sequence[Plan], last: Round
) -> ResolvedRequest:
    """A corrected plan for each picture that is wrong."""
    negative = request.negative_prompt
    if isinstance(negative, (list, tuple)):
        negative = [negative[index // request.num_images_per_prompt] for index in last.wrong]
    again = replace(
        request,
        prompt=[corrected(plan, last.departures[index]) for plan, index in zip(plans, last.wrong, strict=True)],
        negative_prompt=negative,
        num_images_per_prompt=1,
        best_of=1,
        generator=None,  # those of the request are one for each candidate
    )
    resolved = pipe._resolve(again)
    return replace(resolved, subjects=encoded(pipe, resolved.subjects))


def _next_round(pipe: "SubjectPipeline", plans: Sequence[Plan], last: Round, again: Any) -> Round:
    """The last round with these pictures in place of the wrong ones."""
    images, departures = list(last.images), list(last.departures)
    seen = _departures(pipe, [plans[index] for index in last.wrong], again)
    for index, image, departs in zip(last.wrong, again, seen, strict=False):  # fewer are seen after an interruption
        images[index], departures[index] = image, departs
    return Round(images=images, departures=departures)


def _departures(pipe: "SubjectPipeline", plans: Sequence[Plan], images: Any) -> list[Departures]:
    """Of each picture from its plan, up to an interruption; references that neighbours share are read once."""
    departures = []
    for _, pairs in groupby(zip(plans, images, strict=True), key=lambda pair: id(pair[0])):
        (plan, *_), pictures = zip(*pairs, strict=True)
        departures += [view.departures(plan) for view in views(pipe, plan, pictures)]
    return departures
