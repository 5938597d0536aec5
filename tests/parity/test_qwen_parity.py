"""The whole path on Qwen-Image 2.1 against diffusers' own pipeline, on the same tiny random weights, in float32."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_qwen import CHANNELS, random, tiny_qwen_components, tiny_qwen_pipeline

PROMPT, NEGATIVE = "a red cat on the blue ground", "the ground"
SIZE = {"height": 64, "width": 96}
STEPS = 3


def picture(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels, mode)


REFERENCES = {
    "text only": [],
    "one": [picture(64, 64)],
    "three, wide and tall": [picture(100, 50, seed=1), picture(64, 64, seed=2), picture(40, 90, seed=3)],
    "transparent": [picture(64, 96, "RGBA", seed=4)],
}


@pytest.fixture(scope="module")
def theirs():
    components = tiny_qwen_components()
    pipe = diffusers.QwenImage21Pipeline(text_encoder=components.pop("mllm"), **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours():
    pipe = tiny_qwen_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def a_noise(seed=0, height=64, width=96):
    return random(1, CHANNELS, height // 16, width // 16, seed=seed)


def expected(theirs, images, noise, **options):
    tokens = noise.flatten(2).transpose(1, 2)
    options = {"num_inference_steps": STEPS, "output_resolution": 64, **SIZE, **options}
    return theirs(PROMPT, images or None, latents=tokens, output_type="latent", **options).images


@pytest.mark.parametrize("use_kv_cache", [True, False])
@pytest.mark.parametrize("name", REFERENCES)
def test_latents_are_those_of_diffusers(ours, theirs, name, use_kv_cache):
    images, noise = REFERENCES[name], a_noise()
    want = expected(theirs, images, noise, use_kv_cache=use_kv_cache)
    have = ours(PROMPT, images, latents=noise, num_inference_steps=STEPS, output_type="latent", **SIZE).images
    assert (have.flatten(2).transpose(1, 2) - want).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["text only", "one"])
def test_guidance_is_true_cfg(ours, theirs, name):
    images, noise = REFERENCES[name], a_noise()
    want = expected(theirs, images, noise, negative_prompt=NEGATIVE, true_cfg_scale=3.0)
    options = {"negative_prompt": NEGATIVE, "guidance_scale": 3.0, "num_inference_steps": STEPS, **SIZE}
    have = ours(PROMPT, images, latents=noise, output_type="latent", **options).images
    assert (have.flatten(2).transpose(1, 2) - want).abs().max() < 1e-5


def test_pictures_are_those_of_diffusers(ours, theirs):
    images, noise = REFERENCES["one"], a_noise()
    (want,) = theirs(
        PROMPT,
        images,
        latents=noise.flatten(2).transpose(1, 2),
        num_inference_steps=STEPS,
        output_resolution=64,
        **SIZE,
    ).images
    (have,) = ours(PROMPT, images, latents=noise, num_inference_steps=STEPS, **SIZE).images
    assert have.size == want.size == (96, 64) and have.mode == want.mode
    assert np.abs(np.asarray(have).astype(int) - np.asarray(want)).max() <= 1


def test_prompts_with_other_references_do_not_notice_one_another(ours):
    """What diffusers refuses: references of different counts and sizes in one batch."""
    prompts, noise = [PROMPT, "a cat", "the blue ground, a red cat"], torch.cat([a_noise(seed) for seed in range(3)])
    images = [REFERENCES["one"], [], REFERENCES["three, wide and tall"]]
    options = {"num_inference_steps": STEPS, "output_type": "latent", **SIZE}
    together = ours(prompts, images, latents=noise, **options).images
    for k, (prompt, references) in enumerate(zip(prompts, images, strict=True)):
        alone = ours(prompt, references, latents=noise[k : k + 1], **options).images
        assert (together[k] - alone[0]).abs().max() < 1e-5


def test_subjects_read_once_serve_every_prompt_and_survive_a_file(ours, tmp_path):
    subject = ours.encode_subjects(REFERENCES["three, wide and tall"])
    subject.save(tmp_path / "subject.safetensors")
    loaded = type(subject).load(tmp_path / "subject.safetensors")
    options = {"num_inference_steps": STEPS, "output_type": "latent", "latents": a_noise(), **SIZE}
    for prompt in (PROMPT, "a cat"):
        fresh = ours(prompt, REFERENCES["three, wide and tall"], **options).images
        assert (ours(prompt, subject, **options).images - fresh).abs().max() < 1e-5
        assert (ours(prompt, loaded, **options).images - fresh).abs().max() < 1e-5


def test_stages_see_what_they_say(ours):
    """Meaning first: the references' latents have no influence on a stage without identity, then they have."""
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    noise, options = a_noise(), {"num_inference_steps": STEPS, "output_type": "latent", **SIZE}
    late = ours(PROMPT, [red], latents=noise, stages="free", **options).images
    always = ours(PROMPT, [red], latents=noise, stages="faithful", **options).images
    other = ours(PROMPT, [blue], latents=noise, stages="free", **options).images
    assert not torch.allclose(late, always, atol=1e-4) and not torch.allclose(late, other, atol=1e-4)


def test_saved_and_loaded(ours, tmp_path):
    ours.save_pretrained(tmp_path / "model")
    config = (tmp_path / "model/model_index.json").read_text()
    assert '"aggregator": [\n    null' in config


def test_several_pictures_of_a_prompt(ours):
    noise = torch.cat([a_noise(seed) for seed in range(2)])
    options = {"num_inference_steps": STEPS, "output_type": "latent", **SIZE}
    both = ours(PROMPT, REFERENCES["one"], latents=noise, num_images_per_prompt=2, **options).images
    second = ours(PROMPT, REFERENCES["one"], latents=noise[1:], **options).images
    assert (both[1] - second[0]).abs().max() < 1e-5


def test_sizes_off_the_grid_name_the_nearest(ours):
    with pytest.raises(ValueError, match="multiples of 32"):
        ours(PROMPT, height=80, width=64)


def test_estimate_counts_what_is_read(ours):
    told = ours.estimate(PROMPT, REFERENCES["three, wide and tall"], **SIZE)
    hidden = ours.encode_subjects(REFERENCES["three, wide and tall"])
    (stage,) = told.stages
    assert stage.noise_tokens == 4 * 6
    assert stage.identity_tokens == sum(len(tokens) for tokens in hidden.identity.tokens)
