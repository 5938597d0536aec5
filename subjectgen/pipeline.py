"""SubjectPipeline: prompt and references -> pictures. Five calls: encode, fuse, identity, sample, to image."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from inspect import signature
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from subjectgen import batch
from subjectgen.backbones import Denoiser, Reader, Transformer, adapter_of, denoiser_of, reader_of
from subjectgen.callback import Callback, changed_by, check_tensor_inputs
from subjectgen.embeds import Fingerprints, SubjectEmbeds
from subjectgen.estimate import Estimate, estimate
from subjectgen.generate.encode import encode
from subjectgen.generate.fuse import fuse
from subjectgen.generate.guide import NEGATIVES, Guidance, guided
from subjectgen.generate.sample import AfterStep, check_scheduler, sample, schedule
from subjectgen.generate.stages import Number, is_whole, resolve_stages
from subjectgen.generate.to_image import to_image
from subjectgen.memory import recoverable
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.dit.positions import Grid
from subjectgen.models.vae import Vae, latent_channels, pixels_per_latent, reads_alpha
from subjectgen.output import SubjectPipelineOutput
from subjectgen.reasoning.instruction import INSTRUCTION
from subjectgen.reasoning.paint import as_painted, bindings_of, plans_of, with_references
from subjectgen.reasoning.reason import MAX_NEW_TOKENS, OnToken, Writing, reason
from subjectgen.reasoning.refine import JUDGES, Refinement
from subjectgen.reasoning.reflect import REFLECT_SIGMA, Reflection
from subjectgen.references import References, read_images
from subjectgen.request import Limits, Request, ResolvedRequest, draw_noise, one_of_two, resolve
from subjectgen.saved import SavedPipeline
from subjectgen.subject_lists import subject_lists
from subjectgen.types import Condition

CONDITIONS = ("joint", "cached")  # how a checkpoint's conditions attend, see FluxDenoiser
REFERENCE_SHAPES = ("square", "own")


class SubjectPipeline(SavedPipeline):
    """A picture of your subject in the scene you describe.

    An MLLM reads prompt and references together, all its layers are fused into semantic tokens, VAE latents of the
    references are identity tokens, and a DiT denoises in stages. What a checkpoint was made for (how its conditions
    attend, its stages, sizes in pixels) is saved with it.
    """

    model_cpu_offload_seq = "mllm->aggregator->transformer->vae"
    _optional_components = ["aggregator"]  # noqa: RUF012  (so too)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012  (diffusers reads it from the class)

    def __init__(
        self,
        mllm: PreTrainedModel,
        processor: ProcessorMixin,
        transformer: Transformer,
        vae: Vae,
        scheduler: FlowMatchEulerDiscreteScheduler,
        aggregator: DualLayerAggregator | None = None,
        conditions: str = "cached",
        stages: Any = "paper",
        max_references: int = 3,
        reference_size: int = 128,
        reference_shape: str = "square",
        image_size: int = 128,
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
        negative: str = "empty_text",
        judge: str = "mllm",
        plan_instruction: str = INSTRUCTION,
        license: str | None = None,
    ):
        super().__init__()
        _check_choice("conditions", conditions, CONDITIONS)
        _check_choice("reference_shape", reference_shape, REFERENCE_SHAPES)
        _check_choice("negative", negative, NEGATIVES)
        _check_choice("judge", judge, list(JUDGES))
        self.register_modules(
            mllm=mllm,
            processor=processor,
            aggregator=aggregator,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
        )
        resolved = resolve_stages(stages)
        _check_references(max_references, reference_size)
        if reference_shape == "square" and transformer is not None and vae is not None:
            _check_square(reference_size, transformer, vae)
        self.register_to_config(
            conditions=conditions,
            stages=stages if isinstance(stages, str) else [asdict(stage) for stage in resolved],
            max_references=int(max_references),
            reference_size=int(reference_size),
            reference_shape=reference_shape,
            image_size=image_size,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative=negative,
            judge=judge,
            plan_instruction=plan_instruction,
            license=license,
        )
        self._fingerprints = Fingerprints()
        self._interrupt = False
        self._in_call = False
        self._num_timesteps = 0

    @recoverable
    @torch.no_grad()
    def __call__(
        self,
        prompt: Any,
        subject_images: Any = None,
        *,
        image: Any = None,
        height: Any = None,
        width: Any = None,
        num_inference_steps: Any = None,
        guidance_scale: Any = None,
        negative_prompt: Any = None,
        negative: Any = None,
        guidance: Any = None,
        stages: Any = None,
        reasoning: Any = False,
        best_of: Any = 1,
        judge: Any = None,
        reflect: Any = 0,
        reflect_sigma: Any = REFLECT_SIGMA,
        num_images_per_prompt: Any = 1,
        generator: Any = None,
        latents: Any = None,
        output_type: Any = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Any = ("latents",),
    ) -> Any:
        """Paint each prompt with its subjects. What is left out is the checkpoint's own choice.

        Returns a SubjectPipelineOutput, or a tuple of the pictures alone if `return_dict` is false.

        prompt: a string or a list of strings; or a Plan or a list of them, with references of their own.
        subject_images: nothing, one image, a list (subjects in the prompt's order, the same for every prompt), a list
            per prompt, or what `encode_subjects` made of them. An image is a path, a PIL image, an array, a tensor, or
            a `Subject`: an image with a name, a box or a mask. `image` is another name for it.
        height, width: pixels, multiples of what one token covers.
        guidance_scale, negative_prompt, negative ("empty_text", "no_identity", "no_condition"): see `Guidance`;
            `guidance` takes a whole one, with three terms if you like. A negative prompt is read: where it is given
            and `negative` is not, that is "empty_text". Of a list, "" is no negative prompt.
        stages: "paper", "free", "faithful" or a list of `Stage`.
        reasoning: whether each prompt is planned first, as `reason` does, and the plans are painted. References are cut
            to the plan's boxes, but for those that were encoded before.
        best_of: candidates for each picture, of which the best is kept; what is said per picture of generators and
            latents is then per candidate.
        judge: what scores them: "tower" (a `TowerJudge` of this pipeline), "mllm" (an `MllmJudge`, which plans prompts
            first) or a function, see `Judge`. The checkpoint's own if left out.
        reflect: how often, at most, pictures are painted again that the MLLM finds to depart from their plans: noised
            to `reflect_sigma` (1 = noise), with what departs said again in the prompt. Prompts are planned first.
            Some stage below `reflect_sigma` has to hear the prompt: "paper" does down to .85.
        generator: one (drawn from once per picture, in order) or one per picture.
        latents: noise [pictures, channels, rows, columns] in place of the generators'. Rounds of `reflect` draw
            further noise, and so need a generator beside it.
        callback_on_step_end: called as (pipe, step, timestep, {"latents": [b, c, h, w]}); the "latents" of the mapping
            it returns are used from there on. Steps count from 0 again in every round of `reflect`. Set
            `pipe._interrupt = True` in it to stop; elsewhere, judging and looking at pictures stop as well.

        Raises ValueError or FileNotFoundError for what cannot be painted, before anything is computed; PlanError where
        reasoning came to no plan, as `reason` does; OutOfMemory, which leaves the pipeline as it was.
        """
        request = with_references(
            Request(
                prompt=prompt,
                subject_images=one_of_two(subject_images, image),
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                negative=negative,
                guidance=guidance,
                stages=stages,
                generator=generator,
                latents=latents,
                num_images_per_prompt=num_images_per_prompt,
                best_of=best_of,
                output_type=output_type,
            )
        )
        check_tensor_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        refinement = Refinement(judge=judge, reflection=Reflection(rounds=reflect, sigma=reflect_sigma))
        resolved = self._resolve(request)
        noise = draw_noise(request, resolved, self.limits)
        self._interrupt = False
        if (planned := refinement.planned(self, request, resolved, reasoning)) is not request:
            request, resolved = planned, self._resolve(planned)

        asked = refinement.asked(self, request, resolved)
        request, resolved = refinement.read(self, request, resolved)
        painted = self._paint(resolved, noise, callback_on_step_end)
        refined = refinement(self, request, resolved, asked, painted, callback_on_step_end)
        images = to_image(self.vae, refined.latents, resolved.output_type)
        if not return_dict:
            return (images,)
        plans = plans_of(request.prompt)
        return SubjectPipelineOutput(
            images=images,
            bindings=resolved.bindings if plans is None else tuple(map(bindings_of, plans)),
            plans=plans,
            scores=refined.choice.scores,
            kept=refined.choice.kept if refined.choice.scores else None,
            noise=noise[refined.choice.rows],
            rounds=refined.rounds,
        )

    @recoverable
    @torch.no_grad()
    def reason(
        self,
        prompt: Any,
        subject_images: Any = None,
        *,
        image: Any = None,
        max_new_tokens: Any = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        generator: Any = None,
        callback_on_token: OnToken | None = None,
    ) -> Any:
        """What the MLLM makes of a prompt before it is painted: a Plan; print it, edit it with `replace`, paint it with
        `pipe(plan)`. Of a list of prompts a list of plans, written side by side, each the same as alone.

        subject_images, image: as of a call. What is read of them goes with the plan and is not read again. Pictures are
            cut to the plan's boxes when it is painted; what was encoded before cannot be.
        max_new_tokens: that each plan may have.
        temperature: 0 takes the likeliest token always; above 0 tokens are drawn, by `generator` if given: one for each
            prompt.
        callback_on_token: called as (pipe, all that is written so far); of a list of prompts that is a list. Set
            `pipe._interrupt = True` in it to stop.

        Raises PlanError, with what was written, where that is no whole plan; of several prompts it says which, and its
        `plans` are what came of each. ValueError or FileNotFoundError as a call.
        """
        writing = Writing(
            max_new_tokens=max_new_tokens, temperature=temperature, generator=generator, on_token=callback_on_token
        )
        self._interrupt = False
        return reason(self, prompt, one_of_two(subject_images, image), writing)

    @recoverable
    @torch.no_grad()
    def encode_subjects(self, images: Any) -> SubjectEmbeds:
        """Read the subjects of a prompt once, for many prompts; exact. One image or a list, in the prompt's order.

        An image may be a `Subject`.
        """
        (entries,) = subject_lists(images, 1)
        if not entries:
            raise ValueError(f"encode_subjects({images!r}): expected one image or a list of images, this has none")
        return self._encode([read_images(entries, self.limits)])[0]

    def estimate(
        self,
        prompt: Any,
        subject_images: Any = None,
        *,
        image: Any = None,
        dtype: Any = None,
        quantization: str | None = None,
        offload: str | None = None,
        **options: Any,
    ) -> Estimate:
        """What a call with these arguments costs, before it runs: tokens, steps and passes per stage, peak memory.

        Takes what a call takes to decide this; raises what the call would, and ValueError for what cannot be counted
        beforehand, such as reasoning. dtype, quantization, offload: as they would be given to `load`; what is left out
        is as this pipeline is.
        """
        request = Request(prompt=prompt, subject_images=one_of_two(subject_images, image), **_counted(options))
        return estimate(self, self._resolve(request), dtype, quantization, offload)

    @property
    def limits(self) -> Limits:
        """What this checkpoint can do, and does when nothing is asked."""
        pixels, denoiser = pixels_per_latent(self.vae), denoiser_of(self.transformer, self.config["conditions"])
        defaults = {each.name: self.config[each.name] for each in fields(Limits) if each.name in self.config}
        return Limits(
            pixels_per_latent=pixels,
            pixels_per_token=pixels * denoiser.patch,
            size_multiple=pixels * denoiser.patch * denoiser.multiple,
            latent_channels=latent_channels(self.vae),
            reads_alpha=reads_alpha(self.vae),
            **defaults,
        )

    def adapters(self) -> tuple[Reader, Denoiser]:
        """What reads with the MLLM and what paints with the DiT, on the device where this pipeline computes."""
        reader = reader_of(self.mllm, self.processor, self._execution_device)
        return reader, denoiser_of(self.transformer, self.config["conditions"])

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells this model's SubjectEmbeds from another's; hashed once, and again when weights change."""
        hashes = self._fingerprints(mllm=self.mllm, vae=self.vae, processor=self.processor)
        return hashes | {name: str(self.config[name]) for name in ("reference_size", "reference_shape")}

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def _resolve(self, request: Request) -> ResolvedRequest:
        check_scheduler(self.scheduler)
        _check_aggregator(self.aggregator, self.transformer)
        resolved = resolve(as_painted(request, self), self.limits)
        _check_told(resolved.guidance, self.transformer)
        for subjects in resolved.subjects:
            if isinstance(subjects, SubjectEmbeds):
                subjects.check(self.fingerprints)
        return resolved

    def _encode(self, lists: Sequence[References]) -> list[SubjectEmbeds]:
        """The subjects of each prompt; equal ones are read once."""
        reader, denoiser = self.adapters()
        prefixes = batch.prefixes(reader, lists)
        identities = batch.identities(self.vae, denoiser, lists, reader.device)
        fingerprints = self.fingerprints
        return [
            SubjectEmbeds(prefix=prefix, identity=identity, names=references.names, fingerprints=fingerprints)
            for prefix, identity, references in zip(prefixes, identities, lists, strict=True)
        ]

    def _paint(
        self,
        resolved: ResolvedRequest,
        noise: Float[Tensor, "b c h w"],
        on_step_end: Callback | None,
        start: Number = 1.0,
    ) -> Float[Tensor, "b c h w"]:
        """Noise, or latents noised to the sigma `start` -> latents of the pictures asked for."""
        reader, denoiser = self.adapters()
        texts, subjects = zip(*(read := batch.readings(resolved)), strict=True)
        hidden = encode(reader, texts, batch.prefixes(reader, subjects))
        semantic = fuse(self.aggregator, hidden)
        identity = batch.identities(self.vae, denoiser, resolved.subjects, reader.device)
        conditions = batch.conditions(resolved, read, semantic, identity)
        return self._sample(denoiser, resolved, noise.to(reader.device), *conditions, on_step_end, start)

    def _sample(
        self,
        denoiser: Denoiser,
        resolved: ResolvedRequest,
        noise: Float[Tensor, "b c h w"],
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        on_step_end: Callback | None,
        start: Number = 1.0,
    ) -> Float[Tensor, "b c h w"]:
        """Noise -> latents under the conditions of each picture."""
        grid = (noise.shape[-2] // denoiser.patch, noise.shape[-1] // denoiser.patch)
        nothing = torch.zeros(0) if self.aggregator is None else self.aggregator.pooled_of_nothing()
        schedule(self.scheduler, resolved.num_inference_steps, grid[0] * grid[1], noise.device, start)
        self._num_timesteps = len(self.scheduler.timesteps)
        with self.progress_bar(total=self._num_timesteps) as bar:  # type: ignore[call-arg]  (hidden by a decorator)
            tokens = sample(
                denoiser.pack(noise),
                self.scheduler,
                resolved.stages,
                guided(denoiser, conditions, negatives, resolved.guidance, grid, nothing.to(noise.device)),
                after_step=self._after_step(denoiser, grid, bar.update, on_step_end),
                interrupted=lambda: self._interrupt,
            )
        return denoiser.unpack(tokens, *grid)

    def _after_step(
        self, denoiser: Denoiser, grid: Grid, advance: Callable[[], Any], on_step_end: Callback | None
    ) -> AfterStep:
        """The progress bar, and the user's callback: it sees latents and may change them."""

        def after_step(step: int, timestep: Tensor, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
            advance()
            if on_step_end is None:
                return tokens
            tensors = {"latents": denoiser.unpack(tokens, *grid)}
            return denoiser.pack(changed_by(on_step_end(self, step, timestep, tensors), tensors["latents"]))

        return after_step


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def _check_references(max_references: Any, reference_size: Any) -> None:
    if not is_whole(max_references) or max_references < 0:
        raise ValueError(f"max_references={max_references!r}: expected a whole number, 0 for a model that takes none")
    if not is_whole(reference_size) or reference_size < 1:
        raise ValueError(f"reference_size={reference_size!r}: expected a whole number of pixels, such as 128")


def _check_square(reference_size: Any, transformer: Transformer, vae: Vae) -> None:
    kind = adapter_of("transformer", type(transformer).__name__)
    multiple = pixels_per_latent(vae) * kind.patch * kind.multiple
    if reference_size % multiple:
        nearest = max(round(reference_size / multiple), 1) * multiple
        raise ValueError(
            f"reference_size={reference_size}: expected a multiple of {multiple} pixels, as these networks take. The "
            f"nearest is {nearest}."
        )


def _check_aggregator(aggregator: DualLayerAggregator | None, transformer: Transformer) -> None:
    kind = type(transformer).__name__
    if aggregator is None and adapter_of("transformer", kind).needs_aggregator:
        raise ValueError(f"aggregator is None, and a {kind} paints nothing without: expected the checkpoint's own")


def _check_told(guidance: Guidance, transformer: Transformer) -> None:
    if guidance.embedded is not None and not transformer.config.get("guidance_embeds"):
        raise ValueError(
            f"guidance embedded={guidance.embedded}: this {type(transformer).__name__} was not distilled on a guidance "
            "that it is told: expected None. Use scale."
        )


def _counted(options: dict[str, Any]) -> dict[str, Any]:
    """Those that a request has. Raises ValueError for what a call takes besides, TypeError for what neither takes."""
    taken, counted = signature(SubjectPipeline.__call__).parameters, {each.name for each in fields(Request)}
    for name in options.keys() - counted:
        if name not in taken:
            raise TypeError(f"SubjectPipeline.estimate() got an unexpected keyword argument {name!r}")
        if options[name] != taken[name].default:
            raise ValueError(
                f"{name}={options[name]!r} is nothing that an estimate counts: expected what one painting is. Leave it "
                "out; of a call that plans or reflects, estimate the plan of pipe.reason() and each round by itself."
            )
    return {name: value for name, value in options.items() if name in counted}
