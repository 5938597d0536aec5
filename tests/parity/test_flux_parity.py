"""Whole denoises in joint mode against diffusers' own pipelines, on tiny random weights in float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from tiny_flux import CHANNELS, NULL, identity, noise, semantic, tiny_flux

from subjectgen.generate.guide import Guidance, guided
from subjectgen.generate.sample import sample, schedule
from subjectgen.generate.stages import resolve_stages, split_steps
from subjectgen.lora import LoraSettings, add_identity, identity_of, set_identity
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.vae import pixels_from_latents
from subjectgen.types import Condition

STEPS = 5
GRIDS = pytest.mark.parametrize("grid", [(3, 5), (4, 4), (7, 1)])
EVERYTHING = resolve_stages("faithful")


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0)


def pipeline(cls, transformer):
    """A diffusers pipeline of which only the denoising runs; two block widths make its VAE scale 2."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS // 4,
        norm_num_groups=4,
        scaling_factor=0.4,
        shift_factor=0.1,
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = cls(scheduler=scheduler(), vae=vae, transformer=transformer, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(grid, condition, **more):
    return {
        "height": grid[0] * 4,
        "width": grid[1] * 4,
        "num_inference_steps": STEPS,
        "latents": noise(1, grid),
        "prompt_embeds": condition.semantic.tokens[None],
        "pooled_prompt_embeds": condition.semantic.pooled[None],
        "guidance_scale": 3.5,
        "output_type": "latent",
        **more,
    }


def ours(denoiser, grid, condition, guidance=None, negatives=(), stages=EVERYTHING):
    steps = scheduler()
    schedule(steps, STEPS, grid[0] * grid[1])
    guidance = guidance or Guidance(embedded=3.5)
    return sample(noise(1, grid), steps, stages, guided(denoiser, [condition], negatives, guidance, grid, NULL))


@GRIDS
@pytest.mark.parametrize("distilled", [False, True])
def test_text_to_image_is_that_of_flux(grid, distilled):
    transformer, condition = tiny_flux(guidance_embeds=distilled), Condition(semantic=semantic(7, 1))
    expected = pipeline(FluxPipeline, transformer)(**arguments(grid, condition)).images
    assert torch.allclose(ours(FluxDenoiser(transformer, "joint"), grid, condition), expected, atol=1e-5)


def test_guidance_is_the_true_cfg_of_flux():
    transformer, grid = tiny_flux(), (3, 5)
    condition, negative = Condition(semantic=semantic(7, 1)), Condition(semantic=semantic(7, 3))
    expected = pipeline(FluxPipeline, transformer)(
        **arguments(grid, condition),
        negative_prompt_embeds=negative.semantic.tokens[None],
        negative_pooled_prompt_embeds=negative.semantic.pooled[None],
        true_cfg_scale=2.5,
    ).images
    result = ours(FluxDenoiser(transformer, "joint"), grid, condition, Guidance(scale=2.5), [negative])
    assert torch.allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(("embedded", "scale"), [(3.5, 2.5), (1.0, 2.5), (3.5, 1.0)])
def test_embedded_guidance_and_cfg_are_told_apart(embedded, scale):
    """What a distilled net is told, and the distance from the negative, are two numbers, as in diffusers."""
    transformer, grid = tiny_flux(guidance_embeds=True), (3, 5)
    condition, negative = Condition(semantic=semantic(7, 1)), Condition(semantic=semantic(7, 3))
    expected = pipeline(FluxPipeline, transformer)(
        **arguments(grid, condition, guidance_scale=embedded),
        negative_prompt_embeds=negative.semantic.tokens[None],
        negative_pooled_prompt_embeds=negative.semantic.pooled[None],
        true_cfg_scale=scale,
    ).images
    denoiser, guidance = FluxDenoiser(transformer, "joint"), Guidance(scale=scale, embedded=embedded)
    result = ours(denoiser, grid, condition, guidance, [negative])
    assert torch.allclose(result, expected, atol=1e-4)
    for other in (Guidance(scale=scale + 1, embedded=embedded), Guidance(scale=scale, embedded=embedded + 1)):
        assert (ours(denoiser, grid, condition, other, [negative]) - result).abs().max() > 1e-3


def test_a_distilled_net_that_nothing_is_told_is_told_one():
    transformer, grid, condition = tiny_flux(guidance_embeds=True), (3, 5), Condition(semantic=semantic(7, 1))
    expected = pipeline(FluxPipeline, transformer)(**arguments(grid, condition, guidance_scale=1.0)).images
    result = ours(FluxDenoiser(transformer, "joint"), grid, condition, Guidance())
    assert torch.allclose(result, expected, atol=1e-5)


def test_identity_lora_is_that_of_diffusers():
    """Its own loader, with its own attention processors, against ours."""
    grid, condition, rank = (3, 5), Condition(semantic=semantic(7, 1)), 2
    settings = LoraSettings(rank=rank, alpha=rank, targets=("to_q", "to_v", "to_out.0", "add_k_proj"))
    with_lora = tiny_flux()
    add_identity(with_lora, settings)
    _, state = identity_of(with_lora)
    generator = torch.Generator().manual_seed(3)
    state = {key: torch.randn(tensor.shape, generator=generator) * 0.3 for key, tensor in state.items()}

    mine, theirs = pipeline(FluxPipeline, tiny_flux()), pipeline(FluxPipeline, tiny_flux())
    set_identity(mine, settings, state)
    theirs.load_lora_weights({f"transformer.{key}": tensor for key, tensor in state.items()})
    expected = theirs(**arguments(grid, condition)).images
    result = ours(FluxDenoiser(mine.transformer, "joint"), grid, condition)
    assert torch.allclose(result, expected, atol=1e-5)
    assert (result - ours(FluxDenoiser(tiny_flux(), "joint"), grid, condition)).abs().max() > 1e-2


class KontextDenoiser(FluxDenoiser):
    """Ours, with the reference where Kontext has it: on the noise's own grid, told apart by the first axis."""

    def prepare(self, *args, **options):
        context = super().prepare(*args, **options)
        (share,) = context.shares
        rows, columns = args[1]
        ids = share.image_ids.clone()
        ids[rows * columns :] -= torch.tensor([-1, rows, columns])
        return replace(context, shares=(replace(share, image_ids=ids),))


def test_one_reference_is_that_of_kontext():
    transformer, grid = tiny_flux(), (3, 5)
    condition = Condition(semantic=semantic(7, 1), identity=identity((2, 3), seed=2))
    image = FluxDenoiser.unpack(condition.identity.tokens[0][None], 2, 3)
    expected = pipeline(FluxKontextPipeline, transformer)(
        image, max_area=12 * 20, _auto_resize=False, **arguments(grid, condition)
    ).images
    assert torch.allclose(ours(KontextDenoiser(transformer, "joint"), grid, condition), expected, atol=1e-5)


def test_cached_without_conditions_is_flux_without_text():
    """No condition is the one case in which both modes are the same network."""
    transformer, grid = tiny_flux(), (3, 5)
    nothing = replace(semantic(0, 1), pooled=NULL)
    expected = pipeline(FluxPipeline, transformer)(**arguments(grid, Condition(semantic=nothing))).images
    assert torch.allclose(ours(FluxDenoiser(transformer, "cached"), grid, Condition()), expected, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [15, 256, 4096])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_schedule_is_that_of_flux(num_tokens, steps):
    mine, theirs = scheduler(), scheduler()
    sigmas = schedule(mine, steps, num_tokens)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(num_tokens))
    assert torch.allclose(mine.timesteps, theirs.timesteps) and torch.allclose(mine.sigmas, theirs.sigmas)
    assert torch.allclose(sigmas, theirs.sigmas[:-1]) and sigmas[0] == 1


def test_pictures_are_those_of_flux():
    transformer, grid = tiny_flux(), (3, 5)
    condition = Condition(semantic=semantic(7, 1))
    pipe = pipeline(FluxPipeline, transformer)
    expected = pipe(**arguments(grid, condition, output_type="pt")).images
    latents = FluxDenoiser.unpack(ours(FluxDenoiser(transformer, "joint"), grid, condition), *grid)
    with torch.no_grad():
        pixels = pixels_from_latents(pipe.vae, latents)
    assert torch.allclose((pixels / 2 + 0.5).clamp(0, 1), expected, atol=1e-5)


def test_stages_split_25_steps_of_a_megapixel_as_published():
    steps = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = schedule(steps, 25, 64 * 64).tolist()
    assert split_steps(resolve_stages("paper"), sigmas) == [4, 5, 16]
