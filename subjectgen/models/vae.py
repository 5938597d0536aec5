"""Between pixels (-1..1) and normalised latents. The one place that knows how a VAE's latents are normalised."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from jaxtyping import Float
from torch import Tensor

try:
    from diffusers import AutoencoderKLQwenImage21
except ImportError:  # diffusers before 0.41
    AutoencoderKLQwenImage21 = AutoencoderKL  # type: ignore[assignment, misc]

Vae = AutoencoderKL | AutoencoderDC | AutoencoderKLQwenImage21


def latents_from_pixels(vae: Vae, pixels: Float[Tensor, "b channels h w"]) -> Float[Tensor, "b c rows columns"]:
    """Pixels -> normalised latents, without sampling (the mode of the posterior)."""
    shift, scale = _shift_and_scale(vae)
    encoded = vae.encode(_frames(vae, pixels.to(vae.dtype)))  # type: ignore[operator]
    latents = encoded.latent if isinstance(vae, AutoencoderDC) else encoded.latent_dist.mode()  # type: ignore[union-attr]
    return (_first_frame(vae, latents) - shift.to(latents)) * scale.to(latents)


def pixels_from_latents(vae: Vae, latents: Float[Tensor, "b c rows columns"]) -> Float[Tensor, "b channels h w"]:
    """Normalised latents -> pixels, not clipped; undoes `latents_from_pixels` as well as the VAE can."""
    shift, scale = _shift_and_scale(vae)
    latents = latents.to(vae.dtype)
    raw = latents / scale.to(latents) + shift.to(latents)
    return _first_frame(vae, vae.decode(_frames(vae, raw)).sample)  # type: ignore[union-attr, operator]


def _is_for_films(vae: Vae) -> bool:
    return "temperal_downsample" in vae.config  # (diffusers' spelling)


def _frames(vae: Vae, pictures: Tensor) -> Tensor:
    """Pictures as films of one frame, for a VAE of films."""
    return pictures[:, :, None] if _is_for_films(vae) else pictures


def _first_frame(vae: Vae, pictures: Tensor) -> Tensor:
    return pictures[:, :, 0] if _is_for_films(vae) else pictures


def _shift_and_scale(vae: Vae) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """normalised = (raw - shift) * scale: per channel if the VAE knows its means and deviations, else one for all."""
    config = vae.config
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift, scale = torch.tensor(config["latents_mean"]), 1 / torch.tensor(config["latents_std"])
    else:
        shift, scale = torch.tensor([config.get("shift_factor") or 0.0]), torch.tensor([config["scaling_factor"]])
    return shift.view(-1, 1, 1), scale.view(-1, 1, 1)


def pixels_per_latent(vae: Vae) -> int:
    """How many pixels a latent pixel covers, along each side."""
    if isinstance(vae, AutoencoderKL):
        return 2 ** (len(vae.config["block_out_channels"]) - 1)
    return vae.spatial_compression_ratio  # type: ignore[return-value]


def latent_channels(vae: Vae) -> int:
    """Channels of a latent pixel."""
    return vae.config["z_dim" if _is_for_films(vae) else "latent_channels"]


def reads_alpha(vae: Vae) -> bool:
    """Whether it takes transparency beside the colours."""
    return vae.config.get("in_channels") == 4


def full_size_channels(vae: Vae) -> int:
    """Channels of the widest feature map at the picture's full size, while decoding."""
    if isinstance(vae, AutoencoderDC):
        return vae.config["decoder_block_out_channels"][0]
    if _is_for_films(vae):
        return vae.config["decoder_base_dim"] or vae.config["base_dim"]
    channels = vae.config["block_out_channels"]
    return channels[min(1, len(channels) - 1)]  # the last upsampling leaves the second width at full size
