"""The Qwen-Image 2.1 adapter against the stock transformer: whatever was read in parts equals the whole."""

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from tiny_qwen import CHANNELS, random, references, tiny_qwen_transformer, words

from subjectgen.models.dit.qwen_image_2_1 import QwenImage21Denoiser
from subjectgen.types import Condition, SemanticTokens

GRID = (4, 6)
SIGMA = 0.7
LIKE = torch.zeros(0)


def stock(noise, semantic=None, identity=None, sigma=SIGMA, grid=GRID):
    """diffusers' own forward over the whole sequence of one picture."""
    transformer = tiny_qwen_transformer()
    slots = torch.ones(1, grid[0] * grid[1] // 4, dtype=torch.bool)
    latents = [] if identity is None else list(identity.tokens)
    grids = [] if identity is None else list(identity.grids)
    out = transformer(
        hidden_states=torch.cat([*latents, noise])[None],
        encoder_hidden_states=semantic.tokens[None],
        timestep=torch.tensor([sigma]),
        img_shapes=[[(1, *each) for each in [*grids, grid]]],
        img_mask=torch.cat([semantic.is_image[None], slots], dim=1),
        return_dict=False,
    )[0]
    return out[0, -len(noise) :]


def velocities(noise, conditions, semantic=1.0, identity=1.0, grid=GRID, denoiser=None):
    denoiser = denoiser or QwenImage21Denoiser(tiny_qwen_transformer())
    context = denoiser.prepare(conditions, grid, semantic, identity, LIKE)
    return denoiser.velocity(noise, SIGMA, context)


def a_noise(seed=99, grid=GRID):
    return random(grid[0] * grid[1], CHANNELS, seed=seed)


CASES = {
    "text only": ((7,), ()),
    "one reference": ((4, 4, 5), ((4, 4),)),
    "wide and tall": ((4, 2, 3, 6, 5), ((2, 4), (6, 4))),
    "three": ((2, 1, 1, 2, 1, 4, 5), ((2, 2), (4, 2), (4, 4))),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_one_picture_is_that_of_the_stock_transformer(name):
    runs, grids = CASES[name]
    semantic, identity = words(runs), references(*grids) if grids else None
    expected = stock(a_noise(), semantic, identity)
    (ours,) = velocities(a_noise()[None], [Condition(semantic=semantic, identity=identity)])
    assert (ours - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_batch_of_different_layouts_is_its_pictures_one_by_one():
    conditions = [
        Condition(semantic=words(runs, seed=k), identity=references(*grids, seed=20 * k) if grids else None)
        for k, (runs, grids) in enumerate(CASES.values())
    ]
    noise = torch.stack([a_noise(seed=k) for k in range(len(conditions))])
    together = velocities(noise, conditions)
    alone = torch.cat([velocities(noise[k : k + 1], [each]) for k, each in enumerate(conditions)])
    assert (together - alone).abs().max() < 1e-5


@torch.no_grad()
def test_without_identity_the_words_are_read_as_if_there_were_no_references():
    semantic, identity = words((4, 4, 5)), references((4, 4))
    expected = stock(a_noise(), words_alone(semantic))
    (ours,) = velocities(a_noise()[None], [Condition(semantic=semantic, identity=identity)], identity=0.0)
    assert (ours - expected).abs().max() < 1e-5


def words_alone(semantic):
    kept = ~semantic.is_image
    return type(semantic)(
        tokens=semantic.tokens[kept], pooled=semantic.pooled, is_image=torch.zeros(int(kept.sum())) > 0
    )


@torch.no_grad()
def test_without_semantics_words_have_no_influence():
    identity = references((4, 4))
    one, other = (
        velocities(a_noise()[None], [Condition(semantic=words((4, 4, 5), seed=s), identity=identity)], semantic=0.0)
        for s in (1, 2)
    )
    assert torch.equal(one, other)
    assert not torch.allclose(one, velocities(a_noise()[None], [Condition(identity=references((4, 4), seed=50))]))


@torch.no_grad()
def test_a_prompt_of_another_length_sees_the_same_kept_references():
    """The references are read with the first prompt and kept; the second prompt must not notice."""
    denoiser, identity = QwenImage21Denoiser(tiny_qwen_transformer()), references((4, 4))
    first, second = words((4, 4, 5), seed=1), words((4, 4, 9), seed=1)
    velocities(a_noise()[None], [Condition(semantic=first, identity=identity)], denoiser=denoiser)
    kept = identity.kv["in words"]
    (ours,) = velocities(a_noise()[None], [Condition(semantic=second, identity=identity)], denoiser=denoiser)
    assert identity.kv["in words"] is kept
    tokens = torch.cat([first.tokens[:8], second.tokens[8:]])
    whole = SemanticTokens(tokens=tokens, pooled=second.pooled, is_image=second.is_image)
    assert (ours - stock(a_noise(), whole, references((4, 4)))).abs().max() < 1e-5


@torch.no_grad()
def test_changed_weights_are_never_answered_from_what_others_left():
    denoiser, identity = QwenImage21Denoiser(tiny_qwen_transformer()), references((4, 4))
    condition = Condition(semantic=words((4, 4, 5)), identity=identity)
    before = velocities(a_noise()[None], [condition], denoiser=denoiser)
    denoiser.transformer.img_in.weight.mul_(2)
    after = velocities(a_noise()[None], [condition], denoiser=denoiser)
    fresh = velocities(
        a_noise()[None], [Condition(semantic=condition.semantic, identity=references((4, 4)))], denoiser=denoiser
    )
    assert torch.equal(after, fresh) and not torch.allclose(before, after)


@torch.no_grad()
def test_a_weight_between_scales_the_share_of_its_keys():
    """Weight w on all conditions equals w copies for 1/w: two equal references at half the weight are one."""
    single = Condition(identity=references((4, 4)))
    whole = velocities(a_noise()[None], [single])
    less = velocities(a_noise()[None], [single], identity=0.5)
    none = velocities(a_noise()[None], [Condition()])
    tiny = velocities(a_noise()[None], [single], identity=1e-9)
    assert not torch.allclose(less, whole, atol=1e-4)
    assert (less - whole).abs().max() < (none - whole).abs().max()
    assert tiny.isfinite().all()


def test_a_backend_that_was_set_before_stays():
    transformer = tiny_qwen_transformer()
    transformer.set_attention_backend("_native_math")
    QwenImage21Denoiser(transformer)
    backends = {processor._attention_backend for processor in transformer.attn_processors.values()}
    assert backends == {AttentionBackendName._NATIVE_MATH}


def test_refusals():
    with pytest.raises(ValueError, match="causal_condition"):
        QwenImage21Denoiser(tiny_qwen_transformer(causal_condition=False))
    denoiser = QwenImage21Denoiser(tiny_qwen_transformer())
    context = denoiser.prepare([Condition(semantic=words((3,)))], GRID, 1.0, 1.0, LIKE)
    with pytest.raises(ValueError, match="not guidance-distilled"):
        denoiser.velocity(a_noise()[None], SIGMA, context, guidance=3.5)


@torch.no_grad()
def test_packing_undone():
    latents = random(2, CHANNELS, 4, 6, seed=0)
    assert torch.equal(QwenImage21Denoiser.unpack(QwenImage21Denoiser.pack(latents), 4, 6), latents)
