"""The step caches of diffusers on every kind of denoiser: what they leave out, and what they never may."""

import itertools
import json
from contextlib import contextmanager

import diffusers
import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    FluxPipeline,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from parity.test_flux_parity import STEPS as FEW
from parity.test_flux_parity import arguments, ours, pipeline
from tiny_flux import semantic, tiny_flux
from tiny_pipeline import picture, tiny_pipeline
from tiny_qwen import CHANNELS, random, tiny_qwen_components, tiny_qwen_pipeline
from tiny_runs import CFG, KINDS, MEANING_FIRST, STAGE_STEPS, STEPS, THREE_TERMS, smooth, tiny_qwen_transformer

from subjectgen.generate.guide import Guidance
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.types import Condition

EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
MANY = 40  # steps, so that neighbours differ little
NAME_OF = {"ids": lambda config: type(config).__name__.removesuffix("Config")}
ONCE = FirstBlockCacheConfig(threshold=1e9)  # a pass is computed at the first step, and never again


def taylor_seer(interval):
    warm_up = {"disable_cache_before_step": 2, "taylor_factors_dtype": torch.float32}
    return TaylorSeerCacheConfig(cache_interval=interval, **warm_up)


def mag_cache(threshold, steps=STEPS):
    return MagCacheConfig(threshold, max_skip_steps=1, num_inference_steps=steps, mag_ratios=FLUX_MAG_RATIOS)


def cached(config, transformer):
    transformer.enable_cache(config)
    return transformer


def counted(transformer) -> list[int]:
    """Grows with every forward that comes as far as the last block."""
    forwards: list[int] = []
    last = [module for name, module in transformer.named_modules() if name.endswith("attn.to_k")][-1]
    last.register_forward_pre_hook(lambda *_: forwards.append(1))
    return forwards


@EVERY
@pytest.mark.parametrize("guidance", [CFG, THREE_TERMS], ids=["cfg", "three terms"])
def test_a_cache_that_skips_nothing_changes_nothing(kind, guidance):
    expected = kind.run(stages=MEANING_FIRST, guidance=guidance)
    for config in (FirstBlockCacheConfig(threshold=-1.0), taylor_seer(1), mag_cache(-1.0)):
        latents = kind.run(cached(config, kind.transformer()), stages=MEANING_FIRST, guidance=guidance)
        assert torch.allclose(latents, expected, atol=1e-5)


@EVERY
@pytest.mark.parametrize("config", [FirstBlockCacheConfig(0.05), taylor_seer(2), mag_cache(9.0, MANY)], **NAME_OF)
def test_steps_are_skipped_and_the_latents_stay_near(kind, config):
    """Near: off by less than a fiftieth of the way from noise to picture."""
    plain, transformer = kind.transformer(), cached(config, kind.transformer())
    every, some = counted(plain), counted(transformer)
    expected, latents = (kind.run(each, Guidance(), num_steps=MANY) for each in (plain, transformer))
    assert len(some) < 0.8 * len(every)
    assert 0 < (latents - expected).abs().mean() < 0.02 * (expected - kind.noise).abs().mean()


FORWARDS = {  # of the passes of three stages, once each, and of readings: semantic tokens and references
    "flux joint": 2 * 1 + (3 + 1) + (3 + 1),  # a pass with references has a forward for each of three layouts
    "flux cached": 3 * 2 + 2 + 3,
    "qwen": 3 * 2 + 10,  # with and without references, and each references' words twice
}


@pytest.mark.parametrize("name", KINDS)
def test_a_stage_begins_with_a_step_that_is_computed(name):
    """Nothing that other conditions left behind stands for it, and nothing is taken for the reading of another."""
    transformer = cached(ONCE, KINDS[name].transformer())
    forwards = counted(transformer)
    KINDS[name].run(transformer, stages=MEANING_FIRST)
    assert len(forwards) == FORWARDS[name]


@EVERY
@pytest.mark.parametrize("config", [taylor_seer(3), mag_cache(9.0)], **NAME_OF)
def test_a_batch_is_its_pictures_one_by_one(kind, config):
    """FirstBlockCache alone decides for a batch as a whole."""
    transformer = cached(config, kind.transformer())
    together = kind.run(transformer, stages=MEANING_FIRST)
    alone = [kind.run(transformer, stages=MEANING_FIRST, rows=slice(k, k + 1)) for k in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


@EVERY
@pytest.mark.parametrize("config", [ONCE, taylor_seer(3), mag_cache(9.0)], **NAME_OF)
def test_nothing_is_left_for_the_next_run(kind, config):
    """Not by a run, not by one that broke off, and nothing at all once the cache is disabled."""
    transformer = kind.transformer()
    expected = kind.run(transformer)
    transformer.enable_cache(config)
    first, second = kind.run(transformer), kind.run(transformer)
    assert torch.equal(first, second) and not torch.equal(first, expected)
    with interrupted_at(transformer, 5), pytest.raises(KeyboardInterrupt):
        kind.run(transformer)
    assert torch.equal(kind.run(transformer), first)
    transformer.disable_cache()
    assert torch.equal(kind.run(transformer), expected)


@contextmanager
def interrupted_at(transformer, forward):
    """The user presses Ctrl-C in a later step, in the midst of a pass."""
    counts = itertools.count()

    def interrupt(*_):
        if next(counts) == forward * 2:
            raise KeyboardInterrupt

    handle = transformer.proj_out.register_forward_pre_hook(interrupt)
    yield
    handle.remove()


STOCK = pytest.mark.parametrize("config", [FirstBlockCacheConfig(0.4), taylor_seer(3), mag_cache(0.3, FEW)], **NAME_OF)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@STOCK
def test_flux_with_a_cache_is_that_of_diffusers(config, scale):
    condition, negative = Condition(semantic=semantic(7, 1)), Condition(semantic=semantic(7, 3))
    transformer, stock = (cached(config, smooth(tiny_flux(depth=3))) for _ in range(2))
    mine, theirs = counted(transformer), counted(stock)
    expected = pipeline(FluxPipeline, stock)(
        **arguments((3, 5), condition),
        negative_prompt_embeds=negative.semantic.tokens[None],
        negative_pooled_prompt_embeds=negative.semantic.pooled[None],
        true_cfg_scale=scale,
    ).images
    result = ours(FluxDenoiser(transformer, "joint"), (3, 5), condition, Guidance(scale=scale), [negative])
    assert torch.allclose(result, expected, atol=1e-4)
    assert len(mine) == len(theirs) < FEW * (1 if scale == 1.0 else 2)


@pytest.mark.parametrize("images", [[], [picture((200, 30, 40), (64, 64))]], ids=["text", "a reference"])
@pytest.mark.parametrize("config", [ONCE, taylor_seer(3), mag_cache(9.0, 6)], **NAME_OF)
def test_qwen_with_a_cache_is_that_of_diffusers(config, images):
    """The sequence of diffusers is whole in each step (no K/V cache), ours is the noise: both skip the same steps."""
    components = tiny_qwen_components()
    theirs = diffusers.QwenImage21Pipeline(text_encoder=components.pop("mllm"), **components)
    mine = tiny_qwen_pipeline()
    for pipe in (theirs, mine):
        pipe.transformer.load_state_dict(tiny_qwen_transformer().state_dict())
        pipe.transformer.enable_cache(config)
        pipe.set_progress_bar_config(disable=True)
    noise = random(1, CHANNELS, 4, 6, seed=0)
    options = {
        "height": 64,
        "width": 96,
        "num_inference_steps": 6,
        "output_type": "latent",
        "negative_prompt": "ground",
    }
    expected = theirs(
        "a red cat",
        images or None,
        latents=noise.flatten(2).transpose(1, 2),
        true_cfg_scale=3.0,
        output_resolution=64,
        use_kv_cache=False,
        **options,
    ).images
    latents = mine("a red cat", images, latents=noise, guidance_scale=3.0, **options).images
    assert torch.allclose(latents.flatten(2).transpose(1, 2), expected, atol=1e-4)


def test_ratios_are_calibrated_as_by_diffusers(capsys):
    """Of a run with one stage."""
    condition, config = Condition(semantic=semantic(7, 1)), MagCacheConfig(calibrate=True, num_inference_steps=FEW)
    pipeline(FluxPipeline, cached(config, tiny_flux()))(**arguments((3, 5), condition))
    expected = capsys.readouterr().out
    ours(FluxDenoiser(cached(config, tiny_flux()), "joint"), (3, 5), condition)
    assert "mag_ratios" in expected and capsys.readouterr().out == expected


def test_ratios_of_stages_are_those_of_the_longest(capsys):
    """A stage is as a run: with the steps of the longest, each of its passes tells its ratios when it is done."""
    config = MagCacheConfig(calibrate=True, num_inference_steps=max(STAGE_STEPS))
    KINDS["qwen"].run(cached(config, KINDS["qwen"].transformer()), stages=MEANING_FIRST)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]
    assert [len(ratios) for ratios in told] == [max(STAGE_STEPS)] * 2


def test_a_cache_that_takes_passes_for_steps_is_refused():
    config = PyramidAttentionBroadcastConfig(2, current_timestep_callback=lambda: 500)
    for kind in KINDS.values():
        with pytest.raises(ValueError, match="PyramidAttentionBroadcastConfig: expected a step cache that tells"):
            kind.run(cached(config, kind.transformer()))


@pytest.mark.parametrize("build", [tiny_pipeline, tiny_qwen_pipeline], ids=["flux", "qwen"])
def test_a_pipeline_with_a_cache_paints_the_same_picture_again(build):
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.enable_cache(ONCE)
    images = [picture((200, 30, 40)), picture((20, 30, 240))]

    def latents(callback=None):
        options = {"stages": "free", "num_inference_steps": 6, "output_type": "latent", "height": 64, "width": 64}
        generator = torch.Generator().manual_seed(3)
        return pipe("a cat", images, generator=generator, callback_on_step_end=callback, **options).images

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step == 2

    first = latents()
    assert not torch.equal(latents(interrupt), first)
    assert torch.equal(latents(), first)
