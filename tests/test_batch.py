"""A batch is its single calls; encoding once is encoding every time; what a caller may pass, change and stop."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import picture, seeded_generators, tiny_pipeline

from subjectgen import Guidance, Stage

RED, BLUE, GREEN = picture("red"), picture("blue", (30, 40)), picture("green")
PROMPTS = ["a red cat", "on the blue ground, a cat and a cat", "cat"]
SUBJECTS = [[RED], [BLUE, GREEN, RED], []]


@pytest.fixture(scope="module", params=["cached", "joint"])
def pipe(request):
    return tiny_pipeline(conditions=request.param)


@pytest.fixture(scope="module")
def cached():
    return tiny_pipeline()


def paint(pipe, prompt, subjects=None, seeds=(0,), **options):
    """Latents, since 8-bit pictures hide small differences."""
    options = {"output_type": "latent", "generator": seeded_generators(*seeds), **options}
    return pipe(prompt, subjects, **options).images


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def assert_differ(one, other):
    assert (one - other).abs().max() > 1e-2


class TestBatch:
    @pytest.mark.parametrize("scale", [1.0, 2.5])
    def test_equals_single_calls(self, pipe, scale):
        together = paint(pipe, PROMPTS, SUBJECTS, seeds=(1, 2, 3), guidance_scale=scale)
        alone = [
            paint(pipe, prompt, [subjects], seeds=(seed,), guidance_scale=scale)
            for prompt, subjects, seed in zip(PROMPTS, SUBJECTS, (1, 2, 3), strict=True)
        ]
        assert_equal(together, torch.cat(alone))

    def test_one_generator_gives_picture_k_at_any_batch_size(self, cached):
        def shared():
            return torch.Generator().manual_seed(5)

        three = paint(cached, PROMPTS, SUBJECTS, generator=shared())
        assert_equal(paint(cached, PROMPTS[:2], SUBJECTS[:2], generator=shared()), three[:2])
        assert_equal(paint(cached, PROMPTS[0], SUBJECTS[0], seeds=(5,)), three[:1])
        assert_differ(three[0], three[1])

    def test_several_images_per_prompt_stand_together(self, cached):
        many = paint(cached, PROMPTS[:2], SUBJECTS[:2], seeds=(1, 2, 3, 4), num_images_per_prompt=2)
        assert_equal(many[:2], paint(cached, [PROMPTS[0]] * 2, SUBJECTS[0], seeds=(1, 2)))
        assert_equal(many[2:], paint(cached, [PROMPTS[1]] * 2, SUBJECTS[1], seeds=(3, 4)))

    def test_flat_list_goes_to_every_prompt(self, cached):
        flat = paint(cached, PROMPTS[:2], [RED, BLUE], seeds=(1, 2))
        assert_equal(flat, paint(cached, PROMPTS[:2], [[RED, BLUE], [RED, BLUE]], seeds=(1, 2)))

    def test_other_sizes(self, cached):
        wide = paint(cached, PROMPTS[0], RED, height=48, width=96)
        assert wide.shape == (1, 4, 6, 12)
        assert cached(PROMPTS[0], RED, height=48, width=96).images[0].size == (96, 48)


class TestReadOnce:
    def count(self, pipe, monkeypatch):
        counts = {"mllm": 0, "vae": 0}
        mllm, encode = pipe.mllm.forward, pipe.vae.encode

        def reads(*args, **kwargs):
            counts["mllm"] += kwargs.get("pixel_values") is not None
            return mllm(*args, **kwargs)

        def encodes(pixels):
            counts["vae"] += len(pixels)
            return encode(pixels)

        monkeypatch.setattr(pipe.mllm, "forward", reads)
        monkeypatch.setattr(pipe.vae, "encode", encodes)
        return counts

    def test_equal_references_of_a_batch(self, cached, monkeypatch):
        counts = self.count(cached, monkeypatch)
        paint(cached, PROMPTS, [[RED, BLUE], [RED.copy(), BLUE.copy()], [BLUE, RED]], seeds=(1, 2, 3))
        assert counts == {"mllm": 2, "vae": 2}  # the MLLM reads each order once, the VAE each picture

    def test_embeds_pay_nothing_for_their_references(self, cached, monkeypatch):
        subject = cached.encode_subjects([RED, BLUE])
        paint(cached, PROMPTS[0], subject)
        counts = self.count(cached, monkeypatch)
        transformer, forwards = cached.transformer.forward, []
        monkeypatch.setattr(
            cached.transformer, "forward", lambda **kwargs: forwards.append(kwargs) or transformer(**kwargs)
        )
        paint(cached, PROMPTS[1], subject, stages="faithful")
        assert counts == {"mllm": 0, "vae": 0}
        noise = [each["hidden_states"].shape[1] for each in forwards]
        assert noise == [0, *[16] * 4]  # the new prompt once, then each step; never the references

    @pytest.mark.parametrize("prompt", PROMPTS[:2])
    def test_embeds_equal_images(self, pipe, prompt):
        subject = pipe.encode_subjects([RED, BLUE])
        images = paint(pipe, prompt, [RED, BLUE], guidance_scale=2.0)
        assert torch.equal(paint(pipe, prompt, subject, guidance_scale=2.0), images)
        assert torch.equal(
            paint(pipe, prompt, subject, guidance_scale=2.0), images
        )  # and leave the embeds as they were

    def test_embeds_in_a_list_per_prompt(self, cached):
        subject = cached.encode_subjects(RED)
        mixed = paint(cached, PROMPTS, [subject, [BLUE, GREEN], None], seeds=(1, 2, 3))
        assert_equal(mixed, paint(cached, PROMPTS, [[RED], [BLUE, GREEN], []], seeds=(1, 2, 3)))
        assert_equal(paint(cached, PROMPTS[0], [subject], seeds=(1,)), mixed[:1])


class TestConditions:
    @pytest.mark.parametrize("scale", [1.0, 2.5])
    def test_without_references_the_prompt_is_heard_to_the_end(self, pipe, scale):
        """Identity alone would be nothing at all: "paper" paints a prompt without references as "faithful" does."""
        both = [paint(pipe, PROMPTS[0], None, stages=stages, guidance_scale=scale) for stages in ("paper", "faithful")]
        assert_equal(*both)
        among_others = paint(pipe, PROMPTS, SUBJECTS, seeds=(1, 2, 0), stages="paper", guidance_scale=scale)
        alone = paint(pipe, PROMPTS[2], None, stages="faithful", guidance_scale=scale)
        assert_equal(among_others[2:], alone)

    def test_where_nothing_is_to_act_no_prompt_does(self, pipe):
        nothing = [Stage(0.0, semantic=0.0, identity=0.0)]
        assert torch.equal(*(paint(pipe, prompt, None, stages=nothing) for prompt in PROMPTS[:2]))

    def test_text_only_is_no_references(self, pipe):
        assert torch.equal(paint(pipe, PROMPTS[0]), paint(pipe, PROMPTS[0], []))
        assert torch.equal(paint(pipe, PROMPTS[0]), paint(pipe, PROMPTS[0], [None]))

    def test_identity_off_keeps_what_the_mllm_saw(self, pipe):
        off = [Stage(0.0, identity=0.0)]
        assert_differ(paint(pipe, PROMPTS[0], RED, stages=off), paint(pipe, PROMPTS[0], stages=off))

    def test_each_condition_has_influence(self, pipe):
        base = paint(pipe, PROMPTS[0], [RED, BLUE])
        assert_differ(base, paint(pipe, PROMPTS[1], [RED, BLUE]))
        assert_differ(base, paint(pipe, PROMPTS[0], [RED, GREEN]))
        assert_differ(base, paint(pipe, PROMPTS[0], [BLUE, RED]))

    def test_a_stage_without_a_condition_does_not_hear_it(self, pipe):
        only_identity = [Stage(0.0, semantic=0.0)]
        one, other = (paint(pipe, prompt, RED, stages=only_identity) for prompt in PROMPTS[:2])
        assert torch.equal(one, other)

    def test_negative_prompt(self, pipe):
        free = {"stages": "free", "guidance_scale": 2.0}
        empty = paint(pipe, PROMPTS[0], RED, **free)
        assert torch.equal(empty, paint(pipe, PROMPTS[0], RED, negative_prompt="", **free))
        assert_differ(empty, paint(pipe, PROMPTS[0], RED, negative_prompt="blue", **free))

    def test_the_prompt_as_its_own_negative_is_no_guidance(self, pipe):
        same = paint(pipe, PROMPTS[0], RED, negative_prompt=PROMPTS[0], guidance_scale=3.0)
        assert torch.equal(same, paint(pipe, PROMPTS[0], RED))

    def test_three_terms_with_equal_scales_skip_the_middle(self, pipe):
        stages = "faithful"
        three = paint(pipe, PROMPTS[0], RED, stages=stages, guidance=Guidance(identity=2.0, text=2.0))
        assert_equal(
            three, paint(pipe, PROMPTS[0], RED, stages=stages, guidance_scale=2.0, negative="no_condition")
        )  # fmt: skip


class TestOutputs:
    def test_types_agree(self, cached):
        pil, array, tensor = (
            cached(PROMPTS[0], RED, generator=seeded_generators(0), output_type=kind).images
            for kind in ("pil", "np", "pt")
        )
        assert isinstance(pil[0], Image.Image) and pil[0].size == (64, 64)
        assert array.shape == (1, 64, 64, 3) and tensor.shape == (1, 3, 64, 64)
        np.testing.assert_allclose(array[0], tensor[0].permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(np.array(pil[0]), (array[0] * 255).round().astype(np.uint8))

    def test_latents_decode_to_the_picture(self, cached):
        latents = paint(cached, PROMPTS[0], RED)
        raw = latents / cached.vae.config.scaling_factor + cached.vae.config.shift_factor
        decoded = (cached.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(decoded, paint(cached, PROMPTS[0], RED, output_type="pt"))

    def test_tuple(self, cached):
        (images,) = cached(PROMPTS[0], return_dict=False)
        assert images[0].size == (64, 64)

    def test_image_is_another_name(self, cached):
        assert torch.equal(paint(cached, PROMPTS[0], image=[RED]), paint(cached, PROMPTS[0], [RED]))

    def test_latents_are_the_noise(self, cached):
        noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in seeded_generators(1, 2)])
        given = paint(cached, PROMPTS[:2], SUBJECTS[:2], latents=noise, generator=None)
        assert torch.equal(given, paint(cached, PROMPTS[:2], SUBJECTS[:2], seeds=(1, 2)))

    def test_unseeded_calls_differ(self, cached):
        assert_differ(paint(cached, PROMPTS[0], generator=None), paint(cached, PROMPTS[0], generator=None))


class TestCallback:
    def test_sees_every_step_in_order(self, cached):
        seen = []

        def record(pipe, step, timestep, tensors):
            seen.append((pipe, step, float(timestep), tensors["latents"].shape))
            return tensors

        paint(cached, PROMPTS[0], callback_on_step_end=record, callback_on_step_end_tensor_inputs=["latents"])
        assert [step for _, step, _, _ in seen] == list(range(cached.num_timesteps)) == [0, 1, 2, 3]
        assert all(pipe is cached and shape == (1, 4, 8, 8) for pipe, _, _, shape in seen)
        times = [time for _, _, time, _ in seen]
        assert times[0] == 1000 and times == sorted(times, reverse=True)

    def test_last_latents_are_the_result(self, cached):
        kept = {}
        latents = paint(cached, PROMPTS[0], callback_on_step_end=lambda p, i, t, tensors: kept.update(tensors) or {})
        assert torch.equal(kept["latents"], latents)

    def test_changed_latents_are_used(self, cached):
        constant = torch.full((1, 4, 8, 8), 0.25)

        def replace(pipe, step, timestep, tensors):
            return {"latents": constant} if step == 3 else tensors

        assert torch.equal(paint(cached, PROMPTS[0], callback_on_step_end=replace), constant)

    def test_a_change_halfway_is_what_the_next_step_starts_from(self, cached):
        other = paint(cached, PROMPTS[0], seeds=(9,))

        def from_start_of(source):
            """Replaces the latents of step 1 by those another seed has there."""
            return lambda p, step, t, tensors: {"latents": source} if step == 1 else tensors

        halfway = {}
        keep = lambda p, step, t, tensors: halfway.setdefault(step, tensors["latents"]) is None or tensors  # noqa: E731
        paint(cached, PROMPTS[0], seeds=(9,), callback_on_step_end=keep)
        assert torch.equal(paint(cached, PROMPTS[0], callback_on_step_end=from_start_of(halfway[1])), other)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (torch.zeros(1, 4, 8, 8), r"the torch tensor of shape \[1, 4, 8, 8\].*Return \{'latents': latents\}"),
            (True, r"True .*expected None, or a mapping"),
            (
                {"latents": torch.zeros(1, 4, 8, 4)},
                r"shape \[1, 4, 8, 4\].*expected the torch tensor of shape \[1, 4, 8",
            ),
            ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.int64)}, r"type int64: expected .*type float32"),
            ({"latents": None}, r"latents that are None"),
        ],
    )
    def test_what_is_no_latents_is_refused(self, cached, given, words):
        with pytest.raises(ValueError, match=rf"^callback_on_step_end gave .*{words}"):
            paint(cached, PROMPTS[0], callback_on_step_end=lambda *_: given)

    def test_interrupt_stops_after_the_step(self, cached):
        steps = []

        def stop(pipe, step, timestep, tensors):
            steps.append(tensors["latents"])
            pipe._interrupt = step == 1
            return tensors

        latents = paint(cached, PROMPTS[0], callback_on_step_end=stop)
        assert len(steps) == 2 and cached.interrupt and torch.equal(latents, steps[-1])
        paint(cached, PROMPTS[0])
        assert not cached.interrupt  # the next call is not stopped
