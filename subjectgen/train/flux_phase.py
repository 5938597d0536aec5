"""The two stages of the paper on a FLUX transformer: aggregator and LoRA learn flow matching, all else is frozen."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers.training_utils import cast_training_params
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from subjectgen.adapter import SubjectAdapter
from subjectgen.data.batches import generator_of
from subjectgen.evaluate.sheet import captioned_sheet, picture_of
from subjectgen.generate.fuse import fuse
from subjectgen.generate.guide import needs_negative
from subjectgen.generate.identity import identity_tokens
from subjectgen.generate.sample import schedule
from subjectgen.generate.stages import STAGE_PRESETS, Stage
from subjectgen.lora import IDENTITY, identity_of
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.vae import pixels_from_latents
from subjectgen.pipeline import SubjectPipeline
from subjectgen.request import Request, draw_noise, resolve
from subjectgen.train.conditions import Conditions, Epochs, Example, Feed
from subjectgen.train.dropout import Dropout, kept
from subjectgen.train.sharding import shard_if_asked
from subjectgen.types import Condition, HiddenStates, SemanticTokens
from subjectgen.weights import WeightsError

# Stage 1 never sees identity. In stage 2 identity is often alone, since most steps of sampling are of that kind.
DROPOUTS = {"stage1": Dropout(identity=0.95, both=0.05), "stage2": Dropout(semantic=0.3, identity=0.1, both=0.05)}
STAGES = {"stage1": (Stage(0.0, identity=0.0),), "stage2": STAGE_PRESETS["paper"]}  # what it is trained to sample with
TEXT_DROPOUT = 0.1  # share of pictures without their prompt: the negative branch of sampling reads the empty text
NUM_LEVELS = 1000  # noise levels that are drawn from
HELD_OUT = 8  # rows on a sheet, and raw rows at most that are kept for them
CELL = 256  # pixels of a picture of the sheet


class Learner(nn.Module):
    """Aggregator and transformer as one module: FSDP has their weights at hand for what is done in its forward."""

    def __init__(self, aggregator: nn.Module, transformer: nn.Module):
        super().__init__()
        self.aggregator, self.transformer = aggregator, transformer

    def forward(self, act: Callable[[], Any]) -> Any:
        return act()


class Trained(nn.Module):
    """Of another module, the parameters that learn."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        named = self.module.named_parameters(*args, **kwargs)
        return ((name, parameter) for name, parameter in named if parameter.requires_grad)


class FluxPhase:
    """Flow matching under precomputed conditions; `name` is stage1 (meaning) or stage2 (meaning and identity).

    The target is the velocity, noise - image. Noise levels are drawn evenly from the steps the checkpoint's scheduler
    makes for this resolution: those at which sampling asks for a velocity, as often as it asks; UNO trains so too. With
    a shift of s (FLUX: exp(mu)) their share below sigma is sigma / (s - (s - 1) sigma).

    Conditions are dropped for a batch as a whole, and a batch has equally many references: every step is one forward,
    so that processes that share weights ask for them equally often.
    """

    def __init__(
        self,
        pipe: SubjectPipeline,
        conditions: Conditions,
        name: str,
        before: SubjectAdapter | None = None,
        *,
        batch_size: int = 1,
        seed: int = 0,
    ):
        self.pipe, self.conditions, self.name, self.batch_size, self.seed = pipe, conditions, name, batch_size, seed
        self.device: torch.device = PartialState().device  # type: ignore[assignment]
        freeze_base(pipe, self.device)
        if before is not None:
            start_from(pipe, before)
        pipe.register_to_config(image_size=conditions.size, stages=[asdict(stage) for stage in STAGES[name]])
        pipe.set_progress_bar_config(disable=True)
        self.denoiser = FluxDenoiser(pipe.transformer, pipe.config["conditions"])
        self.learner = Learner(pipe.aggregator, pipe.transformer)
        shard_if_asked(self.learner)
        self.model = Trained(self.learner)
        side = conditions.size // pipe.limits.pixels_per_token
        self.grid = (side, side)
        self.sigmas = schedule(pipe.scheduler, NUM_LEVELS, side * side, self.device)
        rows, held_out = conditions.split(HELD_OUT)
        self.shown = shown_rows(rows, held_out)
        epochs = Epochs(conditions.num_references, rows, batch_size, seed)
        self.feed = Feed(conditions, epochs, stride=PartialState().num_processes)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the velocity of a batch."""
        examples = self.feed.batch(step)
        random = generator_of(self.seed, step, self.device)
        with self.precision():
            return self.learner(lambda: self.velocity_loss(examples, random)), {}

    def velocity_loss(self, examples: Sequence[Example], random: torch.Generator) -> Float[Tensor, ""]:
        """The loss under randomly dropped conditions, at random noise levels."""
        semantic, identity = (float(keep) for keep in kept(DROPOUTS[self.name], 1, random))
        with_text = torch.rand(len(examples), generator=random, device=self.device) >= TEXT_DROPOUT
        fused = self.fused(examples, with_text.tolist())
        null_pooled = self.pipe.aggregator.null_pooled
        image = self.denoiser.pack(torch.stack([example.target for example in examples]).to(self.device).float())
        noise = torch.randn(image.shape, generator=random, device=self.device)
        sigma = self.drawn_sigmas(len(image), random)
        conditions = self.with_identity(examples, fused)
        context = self.denoiser.prepare(conditions, self.grid, semantic, identity, null_pooled)
        velocity = self.denoiser.velocity(torch.lerp(image, noise, sigma[:, None, None]), sigma, context)
        error = (velocity.float() - (noise - image)).square().mean()
        return error + 0 * touched(fused, null_pooled)

    def drawn_sigmas(self, count: int, random: torch.Generator) -> Float[Tensor, " count"]:
        """Noise levels, see the class."""
        return self.sigmas[torch.randint(len(self.sigmas), (count,), generator=random, device=self.device)]

    def fused(self, examples: Sequence[Example], with_text: Sequence[bool]) -> list[SemanticTokens]:
        """Semantic tokens of each row, of its references alone where the prompt is to be the empty text."""
        pairs = zip(examples, with_text, strict=True)
        hidden = [example.hidden if keep else without_text(example.hidden) for example, keep in pairs]
        on_device = [HiddenStates(states=h.states.to(self.device), is_image=h.is_image.to(self.device)) for h in hidden]
        return fuse(self.pipe.aggregator, on_device)

    def with_identity(self, examples: Sequence[Example], fused: Sequence[SemanticTokens]) -> list[Condition]:
        """Both kinds of condition of each row."""
        latents = [[reference.to(self.device) for reference in example.references] for example in examples]
        identities = [identity_tokens(self.denoiser, each) for each in latents]
        return [Condition(semantic=s, identity=i) for s, i in zip(fused, identities, strict=True)]

    def precision(self) -> AbstractContextManager:
        """bfloat16 products where the base is bfloat16, also of the weights that are trained in float32."""
        dtype = self.pipe.transformer.dtype
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """For rows held out: the first reference, the target, and what the pipeline paints, from the same noise."""
        examples = [self.conditions.read(row) for row in self.shown]
        with self.precision():
            painted = list(self.learner(lambda: self.painted(examples)))
        references, targets = [e.references[0] for e in examples], [e.target for e in examples]
        pictures = [self.decoded(latents) for latents in (references, targets, painted)]
        rows = [(e.prompt, cells) for e, *cells in zip(examples, *pictures, strict=True)]
        return captioned_sheet(("reference", "target", "painted"), rows, cell=CELL)

    def painted(self, examples: Sequence[Example]) -> Float[Tensor, "b c rows columns"]:
        """Latents that the pipeline samples with its own steps, stages and guidance."""
        seeds = [torch.Generator().manual_seed(self.seed + k) for k in range(len(examples))]
        request = Request(prompt=["read already, with its references"] * len(examples), generator=seeds)
        resolved = resolve(request, self.pipe.limits)
        both = [self.with_identity(examples, self.fused(examples, [keep] * len(examples))) for keep in (True, False)]
        negatives = both[1] if needs_negative(resolved.stages, resolved.guidance) else []
        noise = draw_noise(request, resolved, self.pipe.limits).to(self.device)
        return self.pipe._sample(self.denoiser, resolved, noise, both[0], negatives, None)

    def decoded(self, latents: Sequence[Float[Tensor, "c _ _"]]) -> list[Image.Image]:
        """Latents as pictures; the VAE comes to the device for that only."""
        vae = self.pipe.vae.to(self.device)
        pictures = [picture_of(pixels_from_latents(vae, each[None].to(self.device))[0]) for each in latents]
        vae.to("cpu")
        return pictures

    def export(self, folder: Path) -> None:
        """Save the adapter, in float32."""
        adapter = SubjectAdapter.of(self.pipe)
        if PartialState().is_main_process:
            adapter.save(folder)


def shown_rows(rows: Sequence[int], held_out: Sequence[int]) -> Sequence[int]:
    """Those on the sheets; says so where nothing could be held out for them."""
    if not held_out:
        warnings.warn(
            f"all {len(rows)} rows are of one raw row and are trained on: sheets show them, not rows held out. Give "
            "two raw rows or more",
            stacklevel=2,
        )
    return (held_out or rows)[:HELD_OUT]


def freeze_base(pipe: SubjectPipeline, device: torch.device) -> None:
    """Aggregator and LoRA learn in float32, the rest of the transformer is frozen; the MLLM's weights are let go.

    Raises ValueError unless conditions are joint and the LoRA is there.
    """
    if pipe.config["conditions"] != "joint":
        raise ValueError(f"conditions={pipe.config['conditions']!r}: expected 'joint', the only kind trained here")
    identity_of(pipe.transformer)
    pipe.mllm.to("meta")  # type: ignore[arg-type]  (its output is precomputed, its configuration is still needed)
    pipe.transformer.to(device).requires_grad_(False)  # type: ignore[arg-type]
    for name, parameter in pipe.transformer.named_parameters():
        parameter.requires_grad_(f".{IDENTITY}." in name)
    pipe.aggregator.to(device).requires_grad_(True)
    cast_training_params([pipe.transformer, pipe.aggregator], torch.float32)  # type: ignore[arg-type]
    pipe.transformer.enable_gradient_checkpointing()


def start_from(pipe: SubjectPipeline, adapter: SubjectAdapter) -> None:
    """Put the weights of an adapter, unrounded, in place of untrained ones. Raises WeightsError if they do not fit."""
    from peft import set_peft_model_state_dict

    adapter.check(pipe)
    settings, _ = identity_of(pipe.transformer)
    if settings != adapter.config.lora:
        raise WeightsError(f"the adapter's LoRA is {adapter.config.lora}: expected {settings}. Train it again.")
    pipe.aggregator.load_state_dict(adapter.aggregator_state)
    set_peft_model_state_dict(pipe.transformer, dict(adapter.lora_state), adapter_name=IDENTITY)


def without_text(hidden: HiddenStates) -> HiddenStates:
    """The same for the empty prompt: references precede the text in a causal MLLM, so their states are no others."""
    return HiddenStates(states=hidden.states[:, hidden.is_image], is_image=hidden.is_image[hidden.is_image])


def touched(fused: Sequence[SemanticTokens], null_pooled: Float[Tensor, " pooled"]) -> Float[Tensor, ""]:
    """A sum over all that the aggregator gives: times 0 it gives its weights gradients also where it was dropped."""
    return torch.stack([each.tokens.sum() + each.pooled.sum() for each in fused]).sum() + null_pooled.sum()
