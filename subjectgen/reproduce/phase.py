"""A phase of a row's training: the method of `train/subject.py`, with what the rows of the tables vary."""

from itertools import pairwise
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from subjectgen.data.batches import batch_of, generator_of
from subjectgen.data.render import Renderer
from subjectgen.evaluate.sheet import picture_grid
from subjectgen.generate.stages import stage_at
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.dit.context import Share, StageContext
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.kept import joined, weighed
from subjectgen.models.dit.positions import image_ids, position_features
from subjectgen.models.vae import pixels_from_latents
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reproduce.configuration import Configuration, Network, Part, Sampling
from subjectgen.reproduce.readings import Reading, Readings
from subjectgen.train.attention import attention_of
from subjectgen.train.dropout import kept
from subjectgen.train.subject import (
    DRAWS,
    GRID,
    SHEET_STEPS,
    SHIFT,
    SubjectPhase,
    box_weights,
    hidden_states,
    seen_by,
    shifted,
)

DATA_SEED = 0  # all rows and seeds are trained on the same pictures
POSITION_FEATURES = 16  # as mini has
MASKS = Sampling().stages  # where the paper lets conditions act


class RowPhase(SubjectPhase):
    """Flow matching of a training of the tables. Shapes: D pictures are DRAWS noise levels of each of a batch."""

    def __init__(
        self,
        configuration: Configuration,
        training: str,
        part: Part,
        renderer: Renderer,
        out: Path,
        *,
        seed: int,
        before: Path | None = None,
    ):
        """out: holds `frozen` and the readings; before: an export to go on from, None for untrained networks."""
        self.configuration, self.part, self.before = configuration, part, before
        self.training, self.settings = configuration.trainings[training], configuration.phases[part.name]
        super().__init__(renderer, out / "frozen", part.name, batch_size=configuration.batch_size, seed=seed)
        self.denoiser = FluxDenoiser(self.transformer, self.training.conditions)
        self.readings = Readings(out / "readings", configuration.num_batches, self.read)

    def start(self, run: Path) -> tuple[DualLayerAggregator, FluxTransformer2DModel]:
        """Untrained networks as the training describes them, or those exported before."""
        if self.before is not None:
            return (
                DualLayerAggregator.from_pretrained(self.before / "aggregator", torch_dtype=torch.float32),
                FluxTransformer2DModel.from_pretrained(self.before / "transformer", torch_dtype=torch.float32),
            )
        return self.new_aggregator(), new_transformer(self.configuration.network, self.vae.config["latent_channels"])

    def new_aggregator(self) -> DualLayerAggregator:
        """Of the training's kind and layers, one block a pooling as in mini."""
        first, last = self.training.layer_range(self.reader.num_layers)
        width = self.configuration.network.width
        return DualLayerAggregator(
            num_layers=self.reader.num_layers,
            mllm_width=self.reader.width,
            width=width,
            pooled_width=width,
            mode=self.training.aggregator,
            first_layer=first,
            last_layer=last,
            num_blocks=1,
        )

    @torch.no_grad()
    def read(self, number: int) -> Reading:
        """What the frozen networks make of batch `number`."""
        batch = batch_of(self.renderer, DATA_SEED, number, self.batch_size, self.configuration.num_subjects)
        with torch.autocast(self.renderer.device.type, torch.bfloat16):
            image = self.denoiser.pack(self.latents(batch.target))
            references = self.denoiser.pack(self.latents(batch.references.flatten(0, 1)))
            states, is_image, mask = hidden_states(self.reader, batch)
        return Reading(
            image=image,
            references=rearrange(references, "(b r) n c -> b r n c", b=len(image)),
            counted=seen_by(batch.masks, GRID),
            states=states.to(torch.bfloat16),
            is_image=is_image,
            mask=mask,
            weight=box_weights(batch.scenes),
        )

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the velocity at DRAWS noise levels of each picture, weighted towards the subjects."""
        number, device = self.part.begin + step, self.renderer.device
        reading, random = self.readings.on(number, device), generator_of(self.seed, number, device)
        image = torch.cat([reading.image] * DRAWS)
        sigma = shifted(torch.rand(len(image), generator=random, device=device))
        noise = torch.randn(image.shape, generator=random, device=device)
        seen = self.seen(sigma, random)
        with attention_of(device):
            velocity = self.velocity(reading, torch.lerp(image, noise, sigma[:, None, None]), sigma, *seen)
        error = (velocity.float() - (noise - image)).square().mean(-1)
        weight = torch.cat([reading.weight] * DRAWS)
        return (error * weight).mean() / weight.mean(), {"plain": error.mean().item()}

    def seen(
        self, sigma: Float[Tensor, " D"], random: torch.Generator
    ) -> tuple[Bool[Tensor, " D"], Bool[Tensor, " D"]]:
        """Which pictures see their semantic and their identity tokens: by chance, and as the paper's stages say."""
        keep = kept(self.settings.dropout, len(sigma) // DRAWS, random)
        semantic, identity = (torch.cat([each] * DRAWS) for each in keep)
        if not self.settings.masked:
            return semantic, identity
        stages = [stage_at(MASKS, level) for level in sigma.tolist()]
        acting = torch.tensor([(stage.semantic > 0, stage.identity > 0) for stage in stages], device=sigma.device)
        return semantic & acting[:, 0], identity & acting[:, 1]

    def velocity(
        self,
        reading: Reading,
        noisy: Float[Tensor, "D n c"],
        sigma: Float[Tensor, " D"],
        semantic: Bool[Tensor, " D"],
        identity: Bool[Tensor, " D"],
    ) -> Float[Tensor, "D n c"]:
        """The networks' velocity of pictures that see the kinds of condition that are True for them."""
        times = len(noisy) // len(reading.image)
        with torch.autocast(self.renderer.device.type, torch.bfloat16):
            tokens, pooled = self.aggregator(reading.states.float(), reading.is_image, reading.mask)
            pooled = torch.where(
                semantic[:, None], torch.cat([pooled] * times), self.aggregator.null_pooled.to(pooled.dtype)
            )
            text = torch.cat([reading.mask] * times) & semantic[:, None]
            counted = torch.cat([reading.counted.flatten(1)] * times) & identity[:, None]
            paint = self.jointly if self.training.conditions == "joint" else self.cached
            return paint(reading, tokens, noisy, sigma, pooled, text, counted)

    def cached(
        self,
        reading: Reading,
        tokens: Float[Tensor, "b t width"],
        noisy: Float[Tensor, "D n c"],
        sigma: Float[Tensor, " D"],
        pooled: Float[Tensor, "D pooled"],
        text: Bool[Tensor, "D t"],
        counted: Bool[Tensor, "D m"],
    ) -> Float[Tensor, "D n c"]:
        """Conditions are read once for all noise levels. text, counted: which condition tokens a picture sees."""
        null = self.aggregator.null_pooled
        groups, seen = [self.denoiser.semantic_kv(tokens, reading.mask, null)], [text]
        if counted.any():
            groups.append(self.denoiser.identity_kv(reading.references, GRID, GRID, null, reading.counted))
            seen.append(counted)
        keys = joined(groups).each(lambda tensor: torch.cat([tensor] * (len(noisy) // len(tensor))))
        return self.denoiser.denoise_with_kv(noisy, sigma, pooled, GRID, keys, torch.cat(seen, dim=1))

    def jointly(
        self,
        reading: Reading,
        tokens: Float[Tensor, "b t width"],
        noisy: Float[Tensor, "D n c"],
        sigma: Float[Tensor, " D"],
        pooled: Float[Tensor, "D pooled"],
        text: Bool[Tensor, "D t"],
        counted: Bool[Tensor, "D m"],
    ) -> Float[Tensor, "D n c"]:
        """The same with all tokens in one sequence, beside the noise."""
        times, count = len(noisy) // len(tokens), reading.references.shape[1] if counted.any() else 0
        references = self.denoiser.with_positions(reading.references[:, :count].flatten(0, 1), GRID)
        beside = rearrange(references, "(b r) n c -> b (r n) c", b=len(tokens))
        visible = torch.cat([text, text.new_ones(noisy.shape[:2]), counted[:, : beside.shape[1]]], dim=1)
        share = Share(
            rows=torch.arange(len(noisy), device=noisy.device),
            text=torch.cat([tokens] * times),
            image=torch.cat([beside] * times),
            image_ids=image_ids(GRID, [GRID] * count, noisy.device),
            pooled=pooled,
            bias=weighed(visible),
        )
        features = position_features(*GRID, POSITION_FEATURES).to(noisy)[None]
        return self.denoiser.velocity(noisy, sigma, StageContext(shares=(share,), features=features, name="cond"))

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Pictures that are trained on above what the networks paint of them, under all that this phase has."""
        reading, device = self.readings.on(0, self.renderer.device), self.renderer.device
        every = torch.ones(len(reading.image), dtype=torch.bool, device=device)
        random = generator_of(self.seed, 0, device)
        tokens = torch.randn(reading.image.shape, generator=random, device=device)
        sigmas = shifted(torch.linspace(1, 0, SHEET_STEPS + 1, device=device))
        identity = every if self.settings.identity + self.settings.both < 1 else ~every
        for now, then in pairwise(sigmas):
            tokens += (then - now) * self.velocity(reading, tokens, now.expand(len(tokens)), every, identity)
        rows = [self.denoiser.unpack(each, *GRID) for each in (reading.image, tokens)]
        return picture_grid(torch.cat([pixels_from_latents(self.vae, each) for each in rows]), columns=len(tokens))

    def pipeline(self) -> SubjectPipeline:
        """The networks as they are, ready to paint."""
        pipe = SubjectPipeline(
            mllm=self.mllm,
            processor=self.reader.processor,
            aggregator=self.aggregator,
            transformer=self.transformer,
            vae=self.vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            conditions=self.training.conditions,
            num_inference_steps=self.configuration.num_inference_steps,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def new_transformer(network: Network, latent_channels: int) -> FluxTransformer2DModel:
    """An untrained DiT of these sizes, with position features as mini's."""
    channels = 4 * latent_channels  # of a token of 2 x 2
    return FluxTransformer2DModel(
        in_channels=channels + POSITION_FEATURES,
        out_channels=channels,
        num_layers=network.num_layers,
        num_single_layers=network.num_single_layers,
        attention_head_dim=network.head_dim,
        num_attention_heads=network.width // network.head_dim,
        joint_attention_dim=network.width,
        pooled_projection_dim=network.width,
        axes_dims_rope=tuple(network.rope_dims),  # type: ignore[arg-type]  (three, as many as axes)
    )
