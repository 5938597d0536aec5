"""What a call refuses, what it resolves to, and what diffusers can do with the pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny_pipeline import picture, seeded_generators, tiny_pipeline

from subjectgen import Guidance, Stage, SubjectPipeline
from subjectgen.generate.stages import STAGE_PRESETS
from subjectgen.references import read_images
from subjectgen.request import Limits, Request, resolve

RED, BLUE = picture("red"), picture("blue")
PROMPT = "a red cat"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def latents(pipe, subjects=RED, **options):
    return pipe(PROMPT, subjects, generator=seeded_generators(0), output_type="latent", **options).images


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"prompt": ""}, ("empty", "words")),
            ({"prompt": ["a cat", "  "]}, ("empty",)),
            ({"prompt": []}, ("empty",)),
            ({"prompt": 5}, ("prompt=5", "string")),
            ({"prompt": ["a cat", None]}, ("None", "strings")),
            ({"subject_images": [RED] * 9}, ("9 references", "at most 3")),
            ({"subject_images": [[RED], [BLUE]]}, ("2 lists", "1 prompt")),
            ({"subject_images": 5}, ("5", "path")),
            ({"subject_images": "https://example.org/cat.png"}, ("URL",)),
            ({"subject_images": "none.png"}, ("none.png", "does not exist")),
            ({"subject_images": RED, "image": BLUE}, ("subject_images and image",)),
            ({"height": 60}, ("64x60", "64x48", "64x64")),
            ({"height": 50, "width": 70}, ("70x50", "64x48", "80x64")),
            ({"width": 0}, ("width=0",)),
            ({"width": 64.0}, ("width=64.0",)),
            ({"num_inference_steps": 0}, ("num_inference_steps=0", "at least 1")),
            ({"num_inference_steps": "many"}, ("many",)),
            ({"num_images_per_prompt": 0}, ("num_images_per_prompt=0",)),
            ({"guidance_scale": "high"}, ("guidance_scale='high'", "number")),
            ({"guidance_scale": float("nan")}, ("guidance_scale=nan", "finite")),
            ({"stages": [Stage(0.0), {"until": 0.0, "guidance": float("inf")}]}, ("guidance=inf", "finite")),
            ({"negative": ""}, ("negative=''", "empty_text")),
            ({"negative": "no_text"}, ("no_text", "empty_text", "no_identity", "no_condition")),
            ({"negative_prompt": ["a", "b"]}, ("2 negative prompts", "1 prompts")),
            ({"negative_prompt": 3}, ("negative_prompt=3",)),
            ({"guidance": 2.5}, ("guidance=2.5", "Guidance")),
            ({"guidance": Guidance(scale=2), "guidance_scale": 3}, ("guidance_scale", "give one")),
            ({"guidance": Guidance(embedded=3.5)}, ("embedded=3.5", "None", "scale")),
            ({"stages": "mild"}, ("mild", *STAGE_PRESETS)),
            ({"stages": [Stage(0.5)]}, ("0.5", "expected 0")),
            ({"generator": 7}, ("generator=7", "manual_seed")),
            ({"generator": seeded_generators(1, 2)}, ("2 generators", "1 pictures")),
            ({"latents": torch.zeros(1, 4, 8, 4)}, ("[1, 4, 8, 4]", "[1, 4, 8, 8]")),
            ({"latents": np.zeros((1, 4, 8, 8))}, ("ndarray", "[1, 4, 8, 8]")),
            ({"output_type": "jpeg"}, ("jpeg", "pil", "latent")),
            ({"callback_on_step_end_tensor_inputs": ["noise"]}, ("noise", "latents")),
            ({"callback_on_step_end_tensor_inputs": "latents"}, ("='latents'", "expected a list", "['latents']")),
            ({"callback_on_step_end_tensor_inputs": None}, ("=None", "expected a list")),
            ({"num_inference_steps": np.float64(2)}, ("num_inference_steps=", "at least 1")),
            ({"num_images_per_prompt": True}, ("num_images_per_prompt=True",)),
            ({"prompt": "a \udcff cat"}, ("prompt='a \\udcff cat'", "half a character", "UTF-8")),
            ({"prompt": ["a", "\ud800"]}, ("prompt='\\ud800'", "half a character")),
            ({"negative_prompt": "\udcff"}, ("negative_prompt='\\udcff'", "half a character")),
            ({"negative_prompt": ["\udcff"]}, ("negative_prompt='\\udcff'", "half a character")),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
    )
    def test_before_anything_is_computed(self, pipe, monkeypatch, options, words):
        monkeypatch.setattr(SubjectPipeline, "adapters", lambda self: pytest.fail("work has begun"))
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            pipe(**{"prompt": PROMPT, **options})
        for word in words:
            assert word in str(refused.value)

    def test_schedulers_of_others_and_noise_of_their_own(self):
        pipe = tiny_pipeline()
        for scheduler, words in (
            (DDIMScheduler(), "scheduler is a DDIMScheduler: expected a FlowMatchEulerDiscreteScheduler"),
            (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling=True.*expected False"),
        ):
            pipe.scheduler = scheduler
            with pytest.raises(ValueError, match=words):
                pipe(PROMPT)

    def test_no_aggregator_where_one_is_needed(self, monkeypatch):
        pipe = tiny_pipeline()
        pipe.register_modules(aggregator=None)
        monkeypatch.setattr(SubjectPipeline, "adapters", lambda self: pytest.fail("work has begun"))
        with pytest.raises(ValueError, match="aggregator is None, and a FluxTransformer2DModel paints nothing without"):
            pipe(PROMPT)

    def test_misspelt_argument(self, pipe):
        with pytest.raises(TypeError, match="heigth"):
            pipe(PROMPT, heigth=64)

    def test_very_long_prompt_says_what_was_cut(self, pipe):
        with pytest.warns(UserWarning, match=r"tokens.*words.*cut"):
            pipe("cat " * 10_000, output_type="latent", num_inference_steps=1)

    def test_stages_of_a_checkpoint(self):
        with pytest.raises(ValueError, match="stages='mild'"):
            tiny_pipeline(stages="mild")

    def test_conditions_of_a_checkpoint(self):
        with pytest.raises(ValueError, match=r"conditions='both'.*joint.*cached"):
            tiny_pipeline(conditions="both")
        with pytest.raises(ValueError, match=r"negative='nothing'.*empty_text.*no_condition"):
            tiny_pipeline(negative="nothing")

    @pytest.mark.parametrize("value", [-1, True])
    def test_number_of_references_of_a_checkpoint(self, value):
        with pytest.raises(ValueError, match=rf"max_references={value!r}: expected a whole number, 0"):
            tiny_pipeline(max_references=value)

    @pytest.mark.parametrize(
        ("value", "words"), [(30, "multiple of 16 .*nearest is 32"), (0, "pixels"), (-16, "pixels"), (True, "pixels")]
    )
    def test_size_of_references_of_a_checkpoint(self, value, words):
        with pytest.raises(ValueError, match=rf"reference_size={value!r}: expected a .*{words}"):
            tiny_pipeline(reference_size=value)

    def test_references_of_their_own_shape_are_about_so_large(self):
        assert tiny_pipeline(reference_shape="own", reference_size=30)(PROMPT, RED).images


class TestRequest:
    limits = Limits(
        image_size=64,
        pixels_per_latent=8,
        pixels_per_token=16,
        size_multiple=16,
        latent_channels=4,
        reference_size=32,
        reference_shape="square",
        reads_alpha=False,
        max_references=3,
        num_inference_steps=4,
        guidance_scale=1.5,
        negative="no_condition",
        stages="free",
    )

    def test_whole_numbers_of_numpy(self):
        counts = dict.fromkeys(("num_inference_steps", "num_images_per_prompt", "best_of"), np.int64(3))
        resolved = resolve(Request(prompt=PROMPT, height=np.int64(32), **counts), self.limits)
        assert (resolved.height, resolved.num_inference_steps, resolved.num_images_per_prompt) == (32, 3, 9)
        assert type(resolved.num_inference_steps) is int

    def test_a_negative_prompt_is_read_whatever_the_checkpoint_goes_away_from(self):
        resolved = resolve(Request(prompt=PROMPT, negative_prompt="blue"), self.limits)
        assert resolved.guidance == Guidance(scale=1.5, negative="empty_text")

    def test_empty_ones_in_a_list_are_none(self):
        resolved = resolve(Request(prompt=["a", "b"], negative_prompt=["", ""]), self.limits)
        assert resolved.guidance == Guidance(scale=1.5, negative="no_condition")

    def test_a_batch_goes_away_from_one_thing(self):
        request = Request(prompt=["a", "b"], negative_prompt=["blue", ""])
        with pytest.raises(ValueError, match=r"some are empty.*no_condition.*Give negative='empty_text'"):
            resolve(request, self.limits)
        assert resolve(replace(request, negative="empty_text"), self.limits).guidance.negative == "empty_text"

    def test_what_is_left_out_is_the_checkpoints_choice(self):
        resolved = resolve(Request(prompt=PROMPT), self.limits)
        assert (resolved.height, resolved.width, resolved.num_inference_steps) == (64, 64, 4)
        assert resolved.guidance == Guidance(scale=1.5, negative="no_condition")
        assert resolved.stages == STAGE_PRESETS["free"]
        assert (resolved.prompts, resolved.negative_prompts, resolved.num_pictures) == ((PROMPT,), ("",), 1)

    def test_what_is_given_wins(self):
        request = Request(
            prompt=["a", "b"], height=16, width=32, guidance_scale=3, stages="paper", negative="no_identity"
        )
        resolved = resolve(request, self.limits)
        assert (resolved.height, resolved.width) == (16, 32)
        assert resolved.guidance == Guidance(scale=3.0, negative="no_identity")
        assert resolved.stages == STAGE_PRESETS["paper"]

    @pytest.mark.parametrize("kind", [np.array, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)])
    def test_kinds_of_images_are_one(self, kind):
        assert read_images([kind(RED)], self.limits).key == read_images([RED], self.limits).key

    @pytest.mark.parametrize("size", [(40, 20), (20, 40), (7, 7), (100, 1)])
    def test_references_are_whole_on_white(self, size):
        (square,) = read_images([Image.new("RGB", size, (200, 0, 0))], self.limits).images
        assert square.size == (32, 32)
        inside = np.array(square)[..., 1] == 0
        height, width = (max(round(32 * side / max(size)), 1) for side in reversed(size))
        assert inside.sum() == height * width and inside[15:17, 15:17].any()
        assert (np.array(square)[~inside] == 255).all()


class TestWithDiffusers:
    def test_attention_backend(self, pipe):
        plain = latents(pipe)
        pipe.transformer.set_attention_backend("_native_math")
        try:
            torch.testing.assert_close(latents(pipe), plain, atol=1e-4, rtol=0)
        finally:
            pipe.transformer.reset_attention_backend()

    def test_fused_projections(self):
        pipe = tiny_pipeline()
        plain = latents(pipe)
        pipe.transformer.fuse_qkv_projections()
        torch.testing.assert_close(latents(pipe), plain, atol=1e-4, rtol=0)

    def test_model_offload_reaches_every_network(self):
        """`enable_model_cpu_offload` moves a network when its hook is called: each must be, in the stated order."""
        pipe, order = tiny_pipeline(), []
        for name in ("mllm", "aggregator", "transformer", "vae"):
            add_hook_to_module(getattr(pipe, name), Recorder(name, order))
        pipe(PROMPT, RED)
        assert list(dict.fromkeys(order)) == ["mllm", "aggregator", "vae", "transformer"] and order[-1] == "vae"

    def test_step_cache(self):
        from diffusers import FirstBlockCacheConfig

        plain, cached = tiny_pipeline(num_inference_steps=6), tiny_pipeline(num_inference_steps=6)
        cached.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
        expected, found = (latents(pipe, stages="faithful", guidance_scale=2.0) for pipe in (plain, cached))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    def test_bfloat16(self, pipe):
        half = tiny_pipeline().to(torch.bfloat16)
        assert (latents(half).float() - latents(pipe)).abs().max() < 0.1

    def test_no_gradients_are_kept(self, pipe):
        assert not latents(pipe).requires_grad


class Recorder(ModelHook):
    def __init__(self, name, order):
        self.name, self.order = name, order

    def pre_forward(self, module, *args, **kwargs):
        self.order.append(self.name)
        return args, kwargs
