"""Phase 1: a tiny AutoencoderKL (8x, 16 channels) learns to draw the emoji world."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from subjectgen.data.batches import Batch, batch_of, generator_of
from subjectgen.data.render import Renderer
from subjectgen.evaluate.sheet import picture_grid
from subjectgen.models.vae import latents_from_pixels, pixels_from_latents

CHANNELS = (16, 32, 64, 128)
LATENT_CHANNELS = 16
CROP = 64  # pixels; most batches are crops, four times as fast as whole pictures
WHOLE_EVERY = 6  # every so many batches are whole pictures
KL_WEIGHT = 1e-5  # per latent value, as in latent diffusion: only keeps the scale bounded
STATISTICS_BATCHES = 16


def new_vae() -> AutoencoderKL:
    """mini's VAE, untrained."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


class VaePhase:
    """Reconstruction of scenes and references."""

    name = "vae"

    def __init__(self, renderer: Renderer, *, batch_size: int = 16, seed: int = 0):
        self.renderer, self.batch_size, self.seed = renderer, batch_size, seed
        self.model = new_vae().to(renderer.device)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Absolute and squared error, and a small KL."""
        pixels = self.pixels(step)
        noise = generator_of(self.seed, step, pixels.device)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            moments = self.model.encoder(pixels)
        posterior = DiagonalGaussianDistribution(moments.float())
        with torch.autocast(pixels.device.type, torch.bfloat16):
            decoded = self.model.decoder(posterior.sample(noise)).float()
        squared, absolute = F.mse_loss(decoded, pixels), F.l1_loss(decoded, pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        figures = {"psnr": psnr(squared.detach()), "kl": kl.item()}
        return absolute + 5 * squared + KL_WEIGHT * kl, figures

    def pixels(self, step: int) -> Float[Tensor, "b 3 h w"]:
        """Half scenes, half references; mostly crops."""
        batch = batch_of(self.renderer, self.seed, step, self.batch_size)
        pixels = torch.cat([batch.target, batch.references])[:: 2 if step % WHOLE_EVERY == 0 else 1]
        if step % WHOLE_EVERY == 0:
            return pixels
        return random_crops(pixels, generator_of(self.seed, step, pixels.device))

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Pictures above their reconstructions."""
        pixels = self.example().target[:8]
        decoded = pixels_from_latents(self.model, latents_from_pixels(self.model, pixels))
        return picture_grid(torch.cat([pixels, decoded]), columns=8)

    def example(self) -> Batch:
        """A batch that is never trained on: its number is negative in effect."""
        return batch_of(self.renderer, self.seed + 1, 0, 8)

    def export(self, folder: Path) -> None:
        """Measure the latents' mean and deviation per channel, then save in bfloat16."""
        mean, deviation = self.statistics()
        self.model.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
        vae = new_vae()
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
        vae.load_state_dict(self.model.state_dict())
        vae.to(torch.bfloat16).save_pretrained(folder)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of raw latents per channel."""
        pixels = [batch_of(self.renderer, self.seed + 1, i, self.batch_size) for i in range(STATISTICS_BATCHES)]
        latents = torch.cat([self.model.encode(batch.target).latent_dist.mode() for batch in pixels])
        return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


def random_crops(pixels: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 crop crop"]:
    """One crop of each picture."""
    limit = pixels.shape[-1] - CROP + 1
    corners = torch.randint(limit, (len(pixels), 2), generator=generator, device=pixels.device).tolist()
    return torch.stack([p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(pixels, corners, strict=True)])


def psnr(squared_error: Tensor) -> float:
    """Peak signal to noise ratio in dB of pixels -1..1."""
    return (10 * torch.log10(4 / squared_error)).item()
