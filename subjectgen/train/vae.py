"""Phase 1: a tiny autoencoder (8x, 16 channels) learns to draw the emoji world."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from subjectgen.data.batches import Batch, batch_of, generator_of
from subjectgen.data.render import Renderer
from subjectgen.evaluate.sheet import picture_grid
from subjectgen.models.vae import latents_from_pixels, pixels_from_latents

CHANNELS = (16, 32, 64, 128)
BLOCKS = (0, 1, 2, 3)  # none at full size: pixels are unshuffled first, where convolutions cost most
LATENT_CHANNELS = 16
CROP = 64  # pixels; most batches are crops, four times as fast as whole pictures
WHOLE_EVERY = 10  # every so many batches are whole pictures
WHITENING = 0.1  # weight of the loss that keeps each latent channel at mean 0 and deviation 1
STATISTICS_BATCHES = 8


def new_vae() -> AutoencoderDC:
    """mini's VAE, untrained: DC-AE, whose unshuffling shortcuts learn many times sooner than a plain AutoencoderKL."""
    stages = len(CHANNELS)
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        attention_head_dim=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=CHANNELS,
        decoder_block_out_channels=CHANNELS,
        encoder_layers_per_block=BLOCKS,
        decoder_layers_per_block=BLOCKS,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
    )


class VaePhase:
    """Reconstruction of scenes and references."""

    name = "vae"

    def __init__(self, renderer: Renderer, *, batch_size: int = 16, seed: int = 0):
        self.renderer, self.batch_size, self.seed = renderer, batch_size, seed
        torch.manual_seed(seed)
        self.model = new_vae().to(renderer.device)  # type: ignore[arg-type]  (hidden by a decorator)

    @property
    def networks(self) -> list[nn.Module]:
        """Encoder and decoder."""
        return [self.model.encoder, self.model.decoder]  # type: ignore[list-item]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Absolute and squared error, and how far the latents are from white."""
        pixels = self.pixels(step)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            latents = self.model.encode(pixels).latent  # type: ignore[union-attr]
            decoded = self.model.decode(latents).sample.float()  # type: ignore[union-attr]
        squared, absolute = F.mse_loss(decoded, pixels), F.l1_loss(decoded, pixels)
        uneven = unevenness(latents.float())
        figures = {"psnr": psnr(squared.detach()), "uneven": uneven.item()}
        return absolute + 5 * squared + WHITENING * uneven, figures

    def pixels(self, step: int) -> Float[Tensor, "b 3 h w"]:
        """Scenes and references; mostly crops."""
        batch = batch_of(self.renderer, self.seed, step, self.batch_size)
        pixels = torch.cat([batch.target, batch.references.flatten(0, 1)])
        if step % WHOLE_EVERY == 0:
            return pixels[::2]  # fewer: they are four times as large
        return random_crops(pixels, generator_of(self.seed, step, pixels.device))

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Pictures above their reconstructions."""
        pixels = self.example().target[:8]
        decoded = pixels_from_latents(self.model, latents_from_pixels(self.model, pixels))
        return picture_grid(torch.cat([pixels, decoded]), columns=8)

    def example(self) -> Batch:
        """A batch of another seed than training's."""
        return batch_of(self.renderer, self.seed + 1, 0, 8)

    def export(self, folder: Path) -> None:
        """Measure the latents' deviation, then save in bfloat16."""
        vae = new_vae()
        vae.register_to_config(scaling_factor=round(1 / self.deviation(), 4))
        vae.load_state_dict(self.model.state_dict())
        vae.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]  (hidden by a decorator)

    def deviation(self) -> float:
        """Root mean square of raw latents."""
        batches = [batch_of(self.renderer, self.seed + 1, i, self.batch_size) for i in range(STATISTICS_BATCHES)]
        latents = torch.cat([self.model.encode(batch.target).latent for batch in batches])  # type: ignore[union-attr]
        return latents.square().mean().sqrt().item()


def unevenness(latents: Float[Tensor, "b c rows columns"]) -> Tensor:
    """Squared means and squared log deviations of the channels, averaged."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return (mean.square() + deviation.clamp(min=1e-3).log().square()).mean()


def random_crops(pixels: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 crop crop"]:
    """One crop of each picture."""
    limit = pixels.shape[-1] - CROP + 1
    corners = torch.randint(limit, (len(pixels), 2), generator=generator, device=pixels.device).tolist()
    return torch.stack([p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(pixels, corners, strict=True)])


def psnr(squared_error: Tensor) -> float:
    """Peak signal to noise ratio in dB of pixels -1..1."""
    return (10 * torch.log10(4 / squared_error)).item()
