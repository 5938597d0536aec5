"""Pixels <-> normalised latents <-> pictures."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image

from subjectgen.generate.identity import identity_tokens
from subjectgen.generate.to_image import to_image
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.vae import latents_from_pixels, pixels_from_latents, pixels_per_latent

PIXELS = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tiny_vae(**config) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        **config,
    )
    return vae.eval().requires_grad_(False)


PER_CHANNEL = {"latents_mean": [0.1, -0.2, 0.3], "latents_std": [0.5, 2.0, 1.5]}


def test_one_shift_and_scale_as_flux_has_it():
    vae = tiny_vae(shift_factor=0.1, scaling_factor=0.4)
    raw = vae.encode(PIXELS).latent_dist.mode()
    latents = latents_from_pixels(vae, PIXELS)
    assert torch.allclose(latents, (raw - 0.1) * 0.4, atol=1e-6)
    assert torch.allclose(pixels_from_latents(vae, latents), vae.decode(raw).sample, atol=1e-5)


def test_per_channel_means_and_deviations_come_first():
    vae = tiny_vae(**PER_CHANNEL, shift_factor=7.0)
    raw = vae.encode(PIXELS).latent_dist.mode()
    mean, deviation = (torch.tensor(PER_CHANNEL[name]).view(1, 3, 1, 1) for name in ("latents_mean", "latents_std"))
    latents = latents_from_pixels(vae, PIXELS)
    assert torch.allclose(latents, (raw - mean) / deviation, atol=1e-6)
    assert torch.allclose(pixels_from_latents(vae, latents), vae.decode(raw).sample, atol=1e-5)


def test_a_vae_without_shift():
    vae = tiny_vae(scaling_factor=0.2)
    assert torch.allclose(latents_from_pixels(vae, PIXELS), vae.encode(PIXELS).latent_dist.mode() * 0.2, atol=1e-6)


def test_encoding_is_deterministic():
    vae = tiny_vae()
    assert torch.equal(latents_from_pixels(vae, PIXELS), latents_from_pixels(vae, PIXELS))


def test_identity_tokens_have_their_grids():
    latents = [torch.randn(2, 6, 10), torch.randn(2, 4, 4)]
    tokens = identity_tokens(FluxDenoiser, latents)
    assert tokens.grids == ((3, 5), (2, 2))
    for packed, grid, latent in zip(tokens.tokens, tokens.grids, latents, strict=True):
        assert torch.equal(FluxDenoiser.unpack(packed[None], *grid)[0], latent)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_pictures_in_every_form(output_type):
    vae = tiny_vae()
    latents = latents_from_pixels(vae, PIXELS)
    expected = (pixels_from_latents(vae, latents) / 2 + 0.5).clamp(0, 1)
    result = to_image(vae, latents, output_type)
    if output_type == "pil":
        assert all(isinstance(picture, Image.Image) and picture.size == (20, 12) for picture in result)
        result = torch.tensor(np.stack([np.asarray(picture) for picture in result])).permute(0, 3, 1, 2) / 255
        assert (result - expected).abs().max() <= 0.5 / 255 + 1e-6
    elif output_type == "np":
        assert np.allclose(result, expected.permute(0, 2, 3, 1), atol=1e-6)
    else:
        assert torch.allclose(result, latents if output_type == "latent" else expected, atol=1e-6)


def test_a_deep_compression_autoencoder():
    torch.manual_seed(0)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )
    vae.requires_grad_(False)
    raw = vae.encode(PIXELS).latent
    latents = latents_from_pixels(vae, PIXELS)
    assert torch.allclose(latents, raw * 0.4, atol=1e-6)
    assert torch.allclose(pixels_from_latents(vae, latents), vae.decode(raw).sample, atol=1e-5)
    assert latents.shape[-2:] == (12 // pixels_per_latent(vae), 20 // pixels_per_latent(vae))


def test_pixels_per_latent_of_a_kl_autoencoder():
    vae = tiny_vae()
    assert latents_from_pixels(vae, PIXELS).shape[-2:] == (12 // pixels_per_latent(vae), 20 // pixels_per_latent(vae))
