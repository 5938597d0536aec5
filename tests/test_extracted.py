"""Pictures of extracted subjects: what is outside a box or mask has no influence and costs nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_mllm, tiny_processor
from tiny_flux import CHANNELS, GRID, NULL, WIDTH, identity, noise, semantic, tiny_flux
from tiny_pipeline import seeded_generators, tiny_pipeline
from tiny_qwen import references as qwen_references
from tiny_qwen import tiny_qwen_pipeline, tiny_qwen_transformer, words

from subjectgen import Subject, SubjectEmbeds
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.kept import weighed
from subjectgen.models.dit.positions import grid_ids
from subjectgen.models.dit.qwen_image_2_1 import QwenImage21Denoiser
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.types import Condition

PROMPT = "a red cat"
SIDE = 64
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
OTHER = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
BOX = (8, 16, 40, 56)
CORNER = np.zeros((SIDE, SIDE), dtype=bool)
CORNER[:20, :30] = True  # of the upper left tokens
WHOLE = np.ones_like(CORNER)


@pytest.fixture(scope="module", params=["cached", "joint", "qwen"])
def pipe(request):
    if request.param == "qwen":
        pipe = tiny_qwen_pipeline(num_inference_steps=2)
        pipe.set_progress_bar_config(disable=True)
        return pipe
    return tiny_pipeline(conditions=request.param, reference_size=SIDE, num_inference_steps=2, stages="faithful")


@pytest.fixture(scope="module", params=["cached", "joint"])
def flux(request):
    return tiny_pipeline(conditions=request.param, reference_size=SIDE, num_inference_steps=2, stages="faithful")


def paint(pipe, subjects, prompt=PROMPT, seeds=(0,), **options):
    return pipe(prompt, subjects, generator=seeded_generators(*seeds), output_type="latent", **options).images


def changed(outside):
    """The picture with other pixels where `outside` is True."""
    return Image.fromarray(np.where(outside[..., None], OTHER, PIXELS))


PICTURE = Image.fromarray(PIXELS)


class TestOutsideHasNoInfluence:
    def test_a_box_is_its_crop(self, pipe):
        assert torch.equal(paint(pipe, Subject(PICTURE, box=BOX)), paint(pipe, PICTURE.crop(BOX)))

    def test_of_a_box(self, pipe):
        outside = WHOLE.copy()
        outside[BOX[1] : BOX[3], BOX[0] : BOX[2]] = False
        once, again = (paint(pipe, Subject(image, box=BOX)) for image in (PICTURE, changed(outside)))
        assert torch.equal(once, again)

    def test_of_a_mask(self, pipe):
        once, again = (paint(pipe, Subject(image, mask=CORNER)) for image in (PICTURE, changed(~CORNER)))
        assert torch.equal(once, again)

    @pytest.mark.parametrize("options", [{"mask": CORNER}, {"box": BOX}])
    def test_but_the_inside_has(self, pipe, options):
        inside = np.zeros_like(CORNER)
        inside[17:19, 9:25] = True
        once, again = (paint(pipe, Subject(image, **options)) for image in (PICTURE, changed(inside)))
        assert (once - again).abs().max() > 1e-4

    def test_a_mask_that_touches_every_token_is_none(self, pipe):
        assert torch.equal(paint(pipe, Subject(PICTURE, mask=WHOLE)), paint(pipe, PICTURE))


class TestBatches:
    SUBJECTS = ([Subject(PICTURE, mask=CORNER)], [Subject(PICTURE, mask=CORNER.T), PICTURE], [PICTURE], [])

    def test_equal_single_calls(self, pipe):
        seeds = range(4)
        prompts = [PROMPT, "on the blue ground, a cat", PROMPT, "cat"]
        together = paint(pipe, list(self.SUBJECTS), prompts, seeds)
        alone = [
            paint(pipe, [subjects], prompt, (seed,))
            for prompt, subjects, seed in zip(prompts, self.SUBJECTS, seeds, strict=True)
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
        assert (together[0] - paint(pipe, PICTURE)).abs().max() > 1e-4

    @pytest.mark.parametrize("subjects", SUBJECTS[:2], ids=["one", "two"])
    def test_encoded_once_saved_and_loaded(self, pipe, subjects, tmp_path):
        expected = paint(pipe, subjects)
        encoded = pipe.encode_subjects(subjects)
        encoded.save(tmp_path / "subject.safetensors")
        assert torch.equal(paint(pipe, encoded), expected)
        assert torch.equal(paint(pipe, SubjectEmbeds.load(tmp_path / "subject.safetensors")), expected)


class TestCost:
    """64 px are 4 x 4 identity tokens and 2 x 2 image tokens of the MLLM; the mask sees 2 x 2 and 1 of them."""

    def test_estimate(self, flux):
        whole, masked = (flux.estimate(PROMPT, each).stages[0] for each in (PICTURE, Subject(PICTURE, mask=CORNER)))
        assert (whole.identity_tokens, masked.identity_tokens) == (16, 4)
        assert whole.semantic_tokens - masked.semantic_tokens == 3

    def test_of_what_is_encoded(self, pipe):
        subjects = [Subject(PICTURE, mask=CORNER), PICTURE]
        assert pipe.estimate(PROMPT, pipe.encode_subjects(subjects)).stages == pipe.estimate(PROMPT, subjects).stages

    def test_what_the_transformer_is_given(self, flux, monkeypatch):
        given, forward = [], flux.transformer.forward
        monkeypatch.setattr(flux.transformer, "forward", lambda **call: given.append(call) or forward(**call))
        subject = Subject(PICTURE, mask=CORNER)
        paint(flux, subject)
        told = flux.estimate(PROMPT, subject).stages[0]
        sizes = [(call["encoder_hidden_states"].shape[1], call["hidden_states"].shape[1]) for call in given]
        if flux.config["conditions"] == "joint":
            assert sizes == [(told.semantic_tokens, told.noise_tokens + 4)] * 2
        else:  # the prompt and the reference once, then the noise alone
            assert sorted(sizes[:2]) == sorted([(told.semantic_tokens, 0), (0, 4)])
            assert sizes[2:] == [(0, told.noise_tokens)] * 2

    def test_qwen(self):
        """64 px: 4 x 4 latents, which stand in the places of image tokens and are counted as identity."""
        pipe = tiny_qwen_pipeline()
        whole, masked = (pipe.estimate(PROMPT, each).stages[0] for each in (PICTURE, Subject(PICTURE, mask=CORNER)))
        assert (whole.identity_tokens, masked.identity_tokens) == (16, 4)
        assert whole.semantic_tokens == masked.semantic_tokens


def masked(tokens, *masks):
    return replace(tokens, masks=tuple(torch.tensor(mask) for mask in masks), kv={})


@torch.no_grad()
def flux_velocity(mode, identity):
    denoiser = FluxDenoiser(tiny_flux(), mode)
    context = denoiser.prepare([Condition(semantic=semantic(5, 1), identity=identity)], GRID, 1.0, 1.0, NULL)
    return denoiser.velocity(noise(), 0.7, context)


class TestFlux:
    @pytest.mark.parametrize("mode", ["joint", "cached"])
    def test_the_upper_left_of_a_grid_is_a_smaller_grid(self, mode):
        """Its positions start where those of the whole start."""
        whole = identity((4, 3), seed=2)
        corner = [row < 2 and column < 2 for row in range(4) for column in range(3)]
        small = replace(whole, tokens=(whole.tokens[0][torch.tensor(corner)],), grids=((2, 2),))
        difference = flux_velocity(mode, masked(whole, corner)) - flux_velocity(mode, small)
        assert difference.abs().max() < 1e-5

    @torch.no_grad()
    def test_joint_is_the_stock_transformer_without_these_tokens(self):
        whole = identity((2, 3), (2, 2), seed=3)
        masks = [True, False, False, True, True, False], [False, True, True, True]
        ids = torch.cat([grid_ids((2, 3), (3, 5)), grid_ids((2, 2), (5, 8))])
        kept, text = torch.tensor([*masks[0], *masks[1]]), semantic(5, 1)
        (expected,) = tiny_flux()(
            hidden_states=torch.cat([noise()[0], torch.cat(whole.tokens)[kept]])[None],
            encoder_hidden_states=text.tokens[None],
            pooled_projections=text.pooled[None],
            timestep=torch.tensor([0.7]),
            img_ids=torch.cat([grid_ids(GRID), ids[kept]]),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )
        difference = flux_velocity("joint", masked(whole, *masks)) - expected[:, : noise().shape[1]]
        assert difference.abs().max() < 1e-5

    @torch.no_grad()
    def test_cached_reads_what_the_stock_transformer_reads_of_these_tokens(self):
        """Keys before rotation, of the first block: they tell the tokens; of the last: they tell their positions."""
        whole, mask = identity((2, 3), seed=4), torch.tensor([False, True, False, True, True, False])
        transformer = tiny_flux()
        keys = {}
        blocks = {0: transformer.transformer_blocks[0], 3: transformer.single_transformer_blocks[-1]}
        for index, block in blocks.items():
            block.attn.norm_k.register_forward_hook(lambda _m, _i, out, index=index: keys.update({index: out}))
        transformer(
            hidden_states=whole.tokens[0][mask][None],
            encoder_hidden_states=torch.zeros(1, 0, WIDTH),
            pooled_projections=NULL[None],
            timestep=torch.zeros(1),
            img_ids=grid_ids((2, 3))[mask],
            txt_ids=torch.zeros(0, 3),
        )
        kept = FluxDenoiser(tiny_flux()).reference_kv(whole.tokens[0][None], (2, 3), NULL, mask)
        assert all((kept.keys[index] - keys[index]).abs().max() < 1e-5 for index in blocks)


class TestQwen:
    @torch.no_grad()
    def test_a_token_that_does_not_count_is_one_the_noise_cannot_see(self):
        """Minus infinity on the logits of its key says the same."""
        whole, mask = qwen_references((4, 4)), [k % 3 == 0 for k in range(16)]
        denoiser, like = QwenImage21Denoiser(tiny_qwen_transformer()), torch.zeros(0)
        tokens = torch.randn(1, 24, CHANNELS, generator=torch.Generator().manual_seed(0))

        def context_of(identity):
            condition = Condition(semantic=words((4, 4, 5)), identity=identity)
            return denoiser.prepare([condition], (4, 6), 1.0, 1.0, like)

        unmasked, ours = context_of(whole), context_of(masked(whole, mask))
        assert unmasked.kept.keys.shape[2] - ours.kept.keys.shape[2] == 16 - sum(mask)
        seen = torch.cat([torch.ones(24 + 9, dtype=torch.bool), torch.tensor(mask)])[None]
        expected = denoiser.velocity(tokens, 0.7, replace(unmasked, bias=weighed(seen)))
        assert (denoiser.velocity(tokens, 0.7, ours) - expected).abs().max() < 1e-5
        assert (denoiser.velocity(tokens, 0.7, unmasked) - expected).abs().max() > 1e-4


class TestMllm:
    def test_image_tokens_are_those_that_see_the_subject(self):
        """Without the layers that mix them, a token of the MLLM changes only with its own pixels."""
        mllm = tiny_mllm()
        mllm.model.vision_tower.encoder.layer = torch.nn.ModuleList()
        reader = InternVLReader(mllm, tiny_processor())
        white = Image.new("RGB", (SIDE, SIDE), "white")
        for corner in ((0, 0), (32, 0), (0, 32), (32, 32)):
            dotted = white.copy()
            dotted.paste("black", (corner[0] + 8, corner[1] + 8, corner[0] + 24, corner[1] + 24))
            before, after = (reader.read_references([image]).states[0] for image in (white, dotted))
            mask = torch.from_numpy(np.array(dotted)[..., 0] == 0)
            seen = reader.read_references([dotted], [mask]).states[0]
            assert torch.equal(seen, after[(before != after).any(dim=1)]) and len(seen) == 1

    def test_text_reads_on_as_before(self, reader):
        """Only fewer image tokens go to the DiT."""
        mask = torch.from_numpy(CORNER)
        whole = reader.read_prompt(PROMPT, reader.read_references([PICTURE] * 2))
        hidden = reader.read_prompt(PROMPT, reader.read_references([PICTURE] * 2, [None, mask]))
        assert torch.equal(hidden.states[:, ~hidden.is_image], whole.states[:, ~whole.is_image])
        assert torch.equal(hidden.states[:, hidden.is_image], whole.states[:, :5])
