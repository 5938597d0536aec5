"""Phases 3 and 4: aggregator and DiT learn the method, first under the MLLM alone, then under MLLM and VAE."""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, FluxTransformer2DModel
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import InternVLForConditionalGeneration

from subjectgen.data.batches import Batch, batch_of, generator_of
from subjectgen.data.more_words import WORDINGS
from subjectgen.data.render import Renderer
from subjectgen.data.world import SIDE, Scene
from subjectgen.evaluate.sheet import picture_grid
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.kept import KeyValues, joined
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.models.mllm.processor import SubjectProcessor
from subjectgen.models.vae import latents_from_pixels, pixels_from_latents
from subjectgen.train.dropout import Dropout, kept

WIDTH = 256
GRID = (SIDE // 16, SIDE // 16)  # rows and columns of tokens, of a picture and of a reference
DRAWS = 2  # noise levels drawn for each picture: its conditions are read once for all of them
SHIFT = 2.5  # of the sigmas drawn: the ground is decided at high noise
SUBJECT_WEIGHT = 3.0  # how much more the error inside the subjects' boxes counts
PAD_TO = 16  # tokens; few lengths, few compilations
SHEET_STEPS = 12
UPRIGHT = 0.2  # of the subjects: as often as each other pose, as to copy them as they stand is learnt long before
TERSE = 0.3  # of the prompts: some of their little words left out, so that sentences are not learnt by heart
SPARED = 0.4  # of the pictures of several references: not all are asked for, so which one is must be heard


BEFORE = ("align", "stage1")  # what stage 2 may go on from, the first that is there
DROPOUTS = {"stage1": Dropout(both=0.05, identity=0.95), "stage2": Dropout(semantic=0.1, identity=0.1, both=0.05)}


def new_transformer() -> FluxTransformer2DModel:
    """mini's DiT, untrained: 16 input channels beyond the latents' 64 are position features."""
    return FluxTransformer2DModel(
        in_channels=64 + 16,
        out_channels=64,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=WIDTH // 64,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(8, 28, 28),
    )


def new_aggregator(reader: InternVLReader) -> DualLayerAggregator:
    """mini's DLA over all layers, untrained; one block a pooling keeps mini small."""
    return DualLayerAggregator(
        num_layers=reader.num_layers, mllm_width=reader.width, width=WIDTH, pooled_width=WIDTH, num_blocks=1
    )


class SubjectPhase:
    """Flow matching under conditions; `name` says under which."""

    def __init__(self, renderer: Renderer, run: Path, name: str, *, batch_size: int = 16, seed: int = 0):
        self.renderer, self.name, self.batch_size, self.seed = renderer, name, batch_size, seed
        device = renderer.device
        self.vae = AutoencoderDC.from_pretrained(run / "vae" / "export").to(device)  # type: ignore[arg-type]
        self.mllm = InternVLForConditionalGeneration.from_pretrained(run / "mllm" / "export" / "mllm")
        self.mllm.to(device)  # type: ignore[arg-type]  (hidden by a decorator)
        processor = SubjectProcessor.from_pretrained(run / "mllm" / "export" / "processor")
        self.reader = InternVLReader(self.mllm, processor)
        torch.manual_seed(seed)
        self.aggregator, self.transformer = self.start(run)
        self.model = nn.ModuleDict({"aggregator": self.aggregator, "transformer": self.transformer}).to(device)
        self.denoiser = FluxDenoiser(self.transformer, "cached")

    def start(self, run: Path) -> tuple[DualLayerAggregator, FluxTransformer2DModel]:
        """New networks for stage 1, those of stage 1 for stage 2."""
        if self.name == "stage1":
            return new_aggregator(self.reader), new_transformer()
        before = next(run / name / "export" for name in BEFORE if (run / name / "export").is_dir())
        return (
            DualLayerAggregator.from_pretrained(before / "aggregator", dtype=torch.float32),
            FluxTransformer2DModel.from_pretrained(before / "transformer", torch_dtype=torch.float32),
        )

    @property
    def networks(self) -> list[nn.Module]:
        """Aggregator and DiT."""
        return list(self.model.children())

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the velocity, weighted towards the subjects."""
        drawn = {"upright": UPRIGHT, "spared": SPARED, "terse": TERSE, "wordings": WORDINGS}
        batch = batch_of(self.renderer, self.seed, step, self.batch_size, **drawn)
        return self.velocity_loss(batch, generator_of(self.seed, step, self.renderer.device))

    def velocity_loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch under randomly dropped conditions, at random noise levels."""
        keep = kept_conditions(self.name, len(batch.prompts), random)
        with torch.autocast(self.renderer.device.type, torch.bfloat16):
            image = self.denoiser.pack(self.latents(batch.target))
            kept, seen, pooled = self.conditions(batch, *keep)
            error = self.squared_error(image, kept, seen, pooled, random)
        weight = repeat(box_weights(batch.scenes).to(error), "b n -> (d b) n", d=DRAWS)
        return (error.mean(-1) * weight).mean() / weight.mean(), {"plain": error.mean().item()}

    @torch.no_grad()
    def latents(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c rows columns"]:
        """Normalised latents."""
        return latents_from_pixels(self.vae, pixels).float()

    def conditions(
        self, batch: Batch, semantic: Bool[Tensor, " b"], identity: Bool[Tensor, " b"]
    ) -> tuple[KeyValues, Bool[Tensor, "b kept"], Float[Tensor, "b pooled"]]:
        """Kept keys of the conditions, which of them each picture sees, and its pooled vector.

        `semantic` and `identity` say which pictures have conditions of that kind.
        """
        null = self.aggregator.null_pooled
        states, is_image, mask = hidden_states(self.reader, batch)
        tokens, pooled = self.aggregator(states, is_image, mask)
        groups, seen = [self.denoiser.semantic_kv(tokens, mask, null)], [mask & semantic[:, None]]
        if identity.any():
            latents = self.denoiser.pack(self.latents(batch.references.flatten(0, 1)))
            references = rearrange(latents, "(b r) n c -> b r n c", b=len(mask))
            inside = seen_by(batch.masks, GRID)
            groups.append(self.denoiser.identity_kv(references, GRID, GRID, null, inside))
            seen.append(inside.flatten(1) & identity[:, None])
        return joined(groups), torch.cat(seen, dim=1), torch.where(semantic[:, None], pooled, null.to(pooled))

    def squared_error(
        self,
        image: Float[Tensor, "b n c"],
        kept: KeyValues,
        seen: Bool[Tensor, "b kept"],
        pooled: Float[Tensor, "b pooled"],
        random: torch.Generator,
    ) -> Float[Tensor, "draws n c"]:
        """(predicted velocity - (noise - image))^2 at DRAWS noise levels of each picture."""
        image, seen, pooled = (torch.cat([x] * DRAWS) for x in (image, seen, pooled))
        kept = kept.each(lambda tensor: torch.cat([tensor] * DRAWS))
        noise = torch.randn(image.shape, generator=random, device=image.device)
        sigma = shifted(torch.rand(len(image), generator=random, device=image.device))
        noisy = torch.lerp(image, noise, sigma[:, None, None])
        velocity = self.denoiser.denoise_with_kv(noisy, sigma, pooled, GRID, kept, seen)
        return (velocity.float() - (noise - image)).square()

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """For eight scenes: the first reference, the rendered truth, and what the model paints."""
        batch = batch_of(self.renderer, self.seed + 1, 0, 8)
        random = generator_of(self.seed + 1, 0, self.renderer.device)
        every = torch.ones(8, dtype=torch.bool, device=self.renderer.device)
        with torch.autocast(self.renderer.device.type, torch.bfloat16):
            kept, seen, pooled = self.conditions(batch, every, ~every if self.name == "stage1" else every)
            tokens = torch.randn((8, 64, 64), generator=random, device=self.renderer.device)
            sigmas = shifted(torch.linspace(1, 0, SHEET_STEPS + 1, device=tokens.device))
            for now, then in pairwise(sigmas):
                tokens += (then - now) * self.denoiser.denoise_with_kv(tokens, now[None], pooled, GRID, kept, seen)
        painted = pixels_from_latents(self.vae, self.denoiser.unpack(tokens, *GRID))
        return picture_grid(torch.cat([batch.references[:, 0], batch.target, painted]), columns=8)

    def export(self, folder: Path) -> None:
        """Save both networks in bfloat16."""
        for name, network in (("aggregator", self.aggregator), ("transformer", self.transformer)):
            copy = type(network).from_config(network.config)
            copy.load_state_dict(network.state_dict())  # type: ignore[union-attr]
            copy.to(torch.bfloat16).save_pretrained(folder / name, max_shard_size="15MB")  # type: ignore[union-attr]


@torch.no_grad()
def hidden_states(
    reader: InternVLReader, batch: Batch
) -> tuple[Float[Tensor, "b layers t width"], Bool[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Hidden states of whole prompts, which tokens are image tokens, and which are neither template nor unseen."""
    layouts = [reader.token_layout(prompt, batch.references.shape[1]) for prompt in batch.prompts]
    ids, is_image, is_text, real = (
        padded(rows).to(batch.references.device)
        for rows in (
            [layout.input_ids for layout in layouts],
            [layout.is_image for layout in layouts],
            [layout.is_text for layout in layouts],
            [torch.ones_like(layout.is_text) for layout in layouts],
        )
    )
    states = reader.hidden_states(ids, batch.references.flatten(0, 1), real.long())
    seen = is_image.masked_scatter(is_image, seen_by(batch.masks, reader.image_grid))
    return states.float(), is_image, seen | is_text


def seen_by(masks: Bool[Tensor, "b r side side"], grid: tuple[int, int]) -> Bool[Tensor, "b r n"]:
    """Which tokens of grids over the references see anything that counts."""
    return F.adaptive_max_pool2d(masks.float(), grid).flatten(2) > 0


def padded(rows: list[Tensor]) -> Tensor:
    """One batch, padded to one of few lengths."""
    batch = pad_sequence(rows, batch_first=True)
    return F.pad(batch, (0, -batch.shape[1] % PAD_TO))


def kept_conditions(
    name: str, size: int, random: torch.Generator
) -> tuple[Bool[Tensor, " size"], Bool[Tensor, " size"]]:
    """Which pictures keep their semantic and their identity tokens."""
    return kept(DROPOUTS[name], size, random)


def shifted(uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Sigmas moved towards noise."""
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def box_weights(scenes: list[Scene]) -> Float[Tensor, "b tokens"]:
    """Weight of each token's error: 1 on the ground, 1 + SUBJECT_WEIGHT inside the subjects' boxes."""
    inside = torch.zeros(len(scenes), SIDE, SIDE)
    for picture, scene in enumerate(scenes):
        for left, top, right, bottom in (box for placement in scene.placements for box in placement.boxes()):
            inside[picture, top:bottom, left:right] = 1
    tokens = rearrange(inside, "b (h p) (w q) -> b (h w) (p q)", p=16, q=16).mean(-1)
    return 1 + SUBJECT_WEIGHT * tokens
