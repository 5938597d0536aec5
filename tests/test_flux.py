"""FluxDenoiser on a tiny random transformer: packing, positions, joint and cached conditions."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from tiny_flux import CHANNELS, GRID, NULL, WIDTH, identity, noise, semantic, tiny_flux

from subjectgen.models.dit import processor
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.kept import beside_noise, joined, key_bias
from subjectgen.models.dit.positions import grid_ids, position_features, reference_offsets
from subjectgen.types import Condition

MODES = pytest.mark.parametrize("mode", ["joint", "cached"])


def velocity(denoiser, tokens, conditions, semantic=1.0, identity=1.0, sigma=0.7, **options):
    context = denoiser.prepare(conditions, GRID, semantic, identity, NULL, **options)
    return denoiser.velocity(tokens, sigma, context)


def mixed_batch() -> list[Condition]:
    return [
        Condition(semantic=semantic(7, 1), identity=identity((3, 4), (2, 3), seed=2)),
        Condition(semantic=semantic(4, 3), identity=identity((4, 2), seed=4)),
        Condition(semantic=None, identity=identity((3, 4), (2, 3), seed=5)),
        Condition(semantic=semantic(5, 6), identity=None),
        Condition(),
    ]


def test_packing_is_that_of_diffusers():
    latents = torch.randn(2, 2, 6, 10)
    packed = FluxDenoiser.pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 2, 6, 10))
    assert torch.equal(FluxDenoiser.unpack(packed, 3, 5), FluxPipeline._unpack_latents(packed, 48, 80, 8))


def test_noise_positions_are_those_of_diffusers():
    expected = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(grid_ids((3, 5)), expected)


def test_references_stand_on_the_diagonal():
    assert reference_offsets((3, 5), [(4, 2), (1, 1), (2, 2)]) == [(3, 5), (7, 7), (8, 8)]
    assert grid_ids((2, 2), (3, 5)).tolist() == [[0, 3, 5], [0, 3, 6], [0, 4, 5], [0, 4, 6]]


def test_position_features_against_a_loop():
    features = position_features(2, 3, 8)
    for row in range(2):
        for column in range(3):
            y, x = math.pi * (row + 0.5) / 2, math.pi * (column + 0.5) / 3
            expected = [f(a * s) for a in (y, x) for f in (math.sin, math.cos) for s in (0.5, 1.0)]
            assert torch.allclose(features[row * 3 + column], torch.tensor(expected), atol=1e-6)
    with pytest.raises(ValueError, match="6 position features"):
        position_features(2, 3, 6)


def test_one_layout_of_processors_for_any_number_of_denoisers():
    transformer = tiny_flux()
    FluxDenoiser(transformer)
    before = transformer.attn_processors
    FluxDenoiser(transformer)
    assert transformer.attn_processors == before
    with pytest.raises(ValueError, match="conditions='both'"):
        FluxDenoiser(transformer, "both")  # type: ignore[arg-type]


def test_joint_without_masks_is_stock_to_the_last_bit():
    transformer = tiny_flux()
    condition = Condition(semantic=semantic(7, 1), identity=identity((3, 4), (2, 3), seed=2))
    ours = velocity(FluxDenoiser(transformer, "joint"), noise(), [condition])
    transformer.set_attn_processor(FluxAttnProcessor())
    ids = [grid_ids(GRID), grid_ids((3, 4), GRID), grid_ids((2, 3), (6, 9))]
    (stock,) = transformer(
        hidden_states=torch.cat([noise(), *(tokens[None] for tokens in condition.identity.tokens)], dim=1),
        encoder_hidden_states=condition.semantic.tokens[None],
        pooled_projections=condition.semantic.pooled[None],
        timestep=torch.tensor([0.7]),
        img_ids=torch.cat(ids),
        txt_ids=torch.zeros(7, 3),
        return_dict=False,
    )
    assert torch.equal(ours, stock[:, : GRID[0] * GRID[1]])


@MODES
@pytest.mark.parametrize("surplus", [0, 8])
def test_batch_equals_singles(mode, surplus):
    denoiser = FluxDenoiser(tiny_flux(surplus), mode)
    conditions = mixed_batch()
    batch = velocity(denoiser, noise(len(conditions)), conditions, semantic=0.5)
    for row, condition in enumerate(conditions):
        single = velocity(denoiser, noise(len(conditions))[row : row + 1], [condition], semantic=0.5)
        assert torch.allclose(batch[row : row + 1], single, atol=1e-5)


@MODES
def test_each_sample_has_its_own_sigma(mode):
    denoiser = FluxDenoiser(tiny_flux(), mode)
    conditions = [Condition(semantic=semantic(7, 1)), Condition(semantic=semantic(4, 3))]
    both = velocity(denoiser, noise(2), conditions, sigma=torch.tensor([0.9, 0.1]))
    assert torch.allclose(both[1:], velocity(denoiser, noise(2)[1:], conditions[1:], sigma=0.1), atol=1e-5)


@MODES
def test_no_references_equals_identity_off_equals_text_only(mode):
    denoiser = FluxDenoiser(tiny_flux(), mode)
    text, references = semantic(7, 1), identity((3, 4), seed=2)
    none = velocity(denoiser, noise(), [Condition(semantic=text, identity=identity(seed=2))])
    off = velocity(denoiser, noise(), [Condition(semantic=text, identity=references)], identity=0.0)
    text_only = velocity(denoiser, noise(), [Condition(semantic=text)])
    assert torch.equal(none, off) and torch.equal(off, text_only)
    on = velocity(denoiser, noise(), [Condition(semantic=text, identity=references)])
    assert (on - off).abs().max() > 1e-2


@MODES
def test_a_condition_at_weight_zero_has_no_influence(mode):
    denoiser = FluxDenoiser(tiny_flux(), mode)
    references = identity((3, 4), seed=2)
    one = velocity(denoiser, noise(), [Condition(semantic=semantic(7, 1), identity=references)], semantic=0.0)
    other = velocity(denoiser, noise(), [Condition(semantic=semantic(5, 8), identity=references)], semantic=0.0)
    assert torch.equal(one, other)


@MODES
def test_swapping_two_references_changes_the_result(mode):
    denoiser = FluxDenoiser(tiny_flux(), mode)
    references = identity((3, 4), (3, 4), seed=2)
    swapped = replace(references, tokens=references.tokens[::-1], kv={})
    first = velocity(denoiser, noise(), [Condition(identity=references)])
    second = velocity(denoiser, noise(), [Condition(identity=swapped)])
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("surplus", [0, 8])
def test_cached_equals_recomputed_with_explicit_positions(surplus):
    """The reference computation reads each group by hand, at its own ids, in a stock net that records its keys."""
    denoiser = FluxDenoiser(tiny_flux(surplus))
    condition = Condition(semantic=semantic(7, 1), identity=identity((3, 4), (2, 3), seed=2))
    cached = velocity(denoiser, noise(), [condition])
    recomputed = _by_hand(tiny_flux(surplus), condition, surplus)
    assert torch.allclose(cached, recomputed, atol=1e-5)


class _Recorder(FluxAttnProcessor):
    """Stock attention; what it passes to the attention function is recorded, or extended by a record."""

    def __init__(self, record, extend):
        self.record, self.extend = record, extend

    def __call__(self, attn, *args, **kwargs):
        import diffusers.models.transformers.transformer_flux as flux

        stock = flux.dispatch_attention_fn

        def attend(query, key, value, **options):
            if self.extend is None:
                self.record.append((key, value))
            else:
                more = [group.pop(0) for group in self.extend]
                key = torch.cat([key, *(k for k, _ in more)], dim=1)
                value = torch.cat([value, *(v for _, v in more)], dim=1)
            return stock(query, key, value, **options)

        flux.dispatch_attention_fn = attend
        try:
            return super().__call__(attn, *args, **kwargs)
        finally:
            flux.dispatch_attention_fn = stock


def _by_hand(transformer, condition, surplus):
    def run(image, text, pooled, sigma, ids, extend=None):
        record = []
        transformer.set_attn_processor(_Recorder(record, extend))
        (out,) = transformer(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=pooled[None],
            timestep=torch.tensor([sigma]),
            img_ids=ids,
            txt_ids=torch.zeros(text.shape[1], 3),
            return_dict=False,
        )
        return out if extend else record

    def image(tokens, grid):
        return torch.cat([tokens, position_features(*grid, surplus)[None]], dim=-1)

    none = torch.zeros(1, 0, WIDTH)
    groups = [run(torch.zeros(1, 0, CHANNELS + surplus), condition.semantic.tokens[None], NULL, 0.0, torch.zeros(0, 3))]
    for tokens, grid, offset in zip(condition.identity.tokens, condition.identity.grids, [(3, 5), (6, 9)], strict=True):
        groups.append(run(image(tokens[None], grid), none, NULL, 0.0, grid_ids(grid, offset)))
    return run(image(noise(), GRID), none, condition.semantic.pooled, 0.7, grid_ids(GRID), groups)


def test_a_subject_is_read_once_for_all_prompts_sizes_and_stages():
    transformer = tiny_flux()
    denoiser = FluxDenoiser(transformer)
    calls = []
    transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    subject, memo = identity((3, 4), (2, 3), seed=2), {}
    condition = Condition(semantic=semantic(7, 1), identity=subject)
    first = denoiser.prepare([condition, condition], GRID, 1.0, 1.0, NULL, memo=memo)
    assert len(calls) == 3
    again = denoiser.prepare([condition, condition], GRID, 1.0, 1.0, NULL, memo=memo)
    assert len(calls) == 3
    assert all(map(torch.equal, first.shares[0].kept.keys, again.shares[0].kept.keys))
    denoiser.prepare([Condition(semantic=semantic(5, 8), identity=subject)], (4, 4), 1.0, 1.0, NULL)
    assert len(calls) == 4


def test_changed_weights_read_a_subject_again():
    transformer = tiny_flux()
    denoiser = FluxDenoiser(transformer)
    subject = Condition(identity=identity((3, 4), seed=2))
    before = velocity(denoiser, noise(), [subject])
    transformer.single_transformer_blocks[0].attn.to_v.weight.mul_(2.0)
    fresh = Condition(identity=replace(subject.identity, kv={}))
    after = velocity(denoiser, noise(), [subject])
    assert torch.equal(after, velocity(denoiser, noise(), [fresh]))
    assert not torch.allclose(before, after)


def test_another_null_vector_reads_a_subject_again():
    """The references are read with it, though no weight of the transformer has changed."""
    denoiser, null = FluxDenoiser(tiny_flux()), NULL.clone()
    subject = Condition(identity=identity((3, 4), seed=2))

    def kept(condition):
        return denoiser.prepare([condition], GRID, 1.0, 1.0, null).shares[0].kept.keys

    before = kept(subject)
    null.mul_(-1)
    fresh = Condition(identity=replace(subject.identity, kv={}))
    assert torch.equal(kept(subject), kept(fresh)) and not torch.allclose(kept(subject), before)


def test_padded_batches_of_training_equal_lists_of_sampling():
    denoiser = FluxDenoiser(tiny_flux(8))
    conditions = [Condition(semantic=semantic(n, n), identity=identity((3, 4), (3, 4), seed=n)) for n in (7, 4)]
    text = torch.nn.utils.rnn.pad_sequence([each.semantic.tokens for each in conditions], batch_first=True)
    text_mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    references = torch.stack([torch.stack(each.identity.tokens) for each in conditions])
    kept = joined([denoiser.semantic_kv(text, text_mask, NULL), denoiser.identity_kv(references, (3, 4), GRID, NULL)])
    mask = torch.cat([text_mask, torch.ones(2, 24, dtype=torch.bool)], dim=1)
    pooled = torch.stack([each.semantic.pooled for each in conditions])
    padded = denoiser.denoise_with_kv(noise(2), torch.tensor([0.7]), pooled, GRID, kept, mask)
    assert torch.allclose(padded, velocity(denoiser, noise(2), conditions), atol=1e-5)


def test_gradients_reach_every_weight_and_both_conditions():
    transformer = tiny_flux().requires_grad_(True)
    denoiser = FluxDenoiser(transformer)
    text, references = torch.randn(2, 7, WIDTH, requires_grad=True), torch.randn(2, 1, 12, CHANNELS, requires_grad=True)
    null = NULL.clone().requires_grad_(True)
    kept = joined([denoiser.semantic_kv(text, None, null), denoiser.identity_kv(references, (3, 4), GRID, null)])
    denoiser.denoise_with_kv(
        noise(2), torch.tensor([0.3, 0.6]), null.expand(2, -1), GRID, kept
    ).square().sum().backward()
    for tensor in (text, references, null, *transformer.parameters()):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_gradient_checkpointing_changes_no_gradient():
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        transformer = tiny_flux().requires_grad_(True).train()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        denoiser = FluxDenoiser(transformer)
        kept = joined(
            [
                denoiser.semantic_kv(semantic(7, 1).tokens[None], None, NULL),
                denoiser.identity_kv(identity((3, 4), seed=2).tokens[0][None, None], (3, 4), GRID, NULL),
            ]
        )
        denoiser.denoise_with_kv(noise(), torch.tensor([0.3]), NULL[None], GRID, kept).square().sum().backward()
        return [weight.grad for weight in transformer.parameters()]

    assert all(map(torch.allclose, gradients(True), gradients(False)))


def test_compiled_blocks_share_one_graph_per_kind(unchecked):
    """compile_repeated_blocks pays for the first block and for each kind, not for every block."""
    transformer = tiny_flux(depth=4)
    denoiser = FluxDenoiser(transformer)
    condition = Condition(semantic=semantic(7, 1), identity=identity((3, 4), seed=2))
    expected = velocity(denoiser, noise(), [condition])
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    fresh = replace(condition, identity=replace(condition.identity, kv={}))
    assert torch.allclose(velocity(denoiser, noise(), [fresh]), expected, atol=1e-5)
    assert graphs["unique_graphs"] - before <= 3


def test_key_bias_is_the_log_of_the_weight():
    real = torch.tensor([[True, True, False]])
    assert key_bias([(torch.ones(1, 2, dtype=torch.bool), 1.0)]) is None
    bias = key_bias([(real, 0.25), (torch.ones(1, 2, dtype=torch.bool), 1.0)])
    assert bias is not None and bias.exp().tolist() == [[0.25, 0.25, 0.0, 1.0, 1.0]]
    with pytest.raises(ValueError, match="identity weight"):
        FluxDenoiser(tiny_flux()).prepare([Condition()], GRID, 1.0, 1.5, NULL)


def watched(monkeypatch) -> list[dict]:
    """What goes into and comes out of every attention from here on."""
    seen, stock = [], processor.dispatch_attention_fn

    def attend(query, key, value, **options):
        out = stock(query, key, value, **options)
        seen.append({"query": query, "key": key, "value": value, "out": out, "backend": options["backend"]})
        return out

    monkeypatch.setattr(processor, "dispatch_attention_fn", attend)
    return seen


@MODES
def test_a_fractional_weight_scales_its_share_of_the_softmax(mode, monkeypatch):
    """The last attention by hand: softmax shares of the weighted keys are multiplied by the weight."""
    seen = watched(monkeypatch)
    condition = Condition(semantic=semantic(4, 1), identity=identity((2, 3), seed=2))
    velocity(FluxDenoiser(tiny_flux(), mode), noise(), [condition], identity=0.25)
    query, key, value, out, _ = seen[-1].values()
    weights = torch.ones(key.shape[1])
    weights[-6:] = 0.25
    shares = (torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(16)).exp() * weights
    expected = torch.einsum("bhqk,bkhd->bqhd", shares / shares.sum(-1, keepdim=True), value)
    assert torch.allclose(out, expected, atol=1e-4)
    assert (
        out
        - torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(
            1, 2
        )
    ).abs().max() > 1e-3


def test_guidance_is_told_only_to_distilled_nets():
    condition = Condition(semantic=semantic(4, 1))
    for distilled in (False, True):
        denoiser = FluxDenoiser(tiny_flux(guidance_embeds=distilled), "joint")
        context = denoiser.prepare([condition], GRID, 1.0, 1.0, NULL)
        weak, strong = (denoiser.velocity(noise(), 0.7, context, guidance) for guidance in (1.0, 4.0))
        assert torch.equal(weak, strong) is not distilled


@MODES
def test_attention_backend_is_honoured(mode, monkeypatch):
    seen, transformer = watched(monkeypatch), tiny_flux()
    denoiser = FluxDenoiser(transformer, mode)
    expected = velocity(denoiser, noise(), [Condition(semantic=semantic(4, 1))])
    transformer.set_attention_backend("_native_math")
    result = velocity(denoiser, noise(), [Condition(semantic=semantic(4, 1))])
    assert [seen[0]["backend"], seen[-1]["backend"]] == [None, AttentionBackendName._NATIVE_MATH]
    assert torch.allclose(result, expected, atol=1e-5)


def test_a_backend_that_was_set_before_stays():
    transformer = tiny_flux()
    transformer.set_attention_backend("_native_math")
    FluxDenoiser(transformer)
    backends = {processor._attention_backend for processor in transformer.attn_processors.values()}
    assert backends == {AttentionBackendName._NATIVE_MATH}


@MODES
def test_fused_projections_change_nothing(mode):
    transformer = tiny_flux()
    denoiser = FluxDenoiser(transformer, mode)
    conditions = mixed_batch()
    expected = velocity(denoiser, noise(5), conditions)
    transformer.fuse_qkv_projections()
    fresh = [replace(each, identity=each.identity and replace(each.identity, kv={})) for each in conditions]
    assert torch.allclose(velocity(denoiser, noise(5), fresh), expected, atol=1e-5)


@MODES
def test_first_block_cache_skips_steps_but_never_a_reading(mode):
    conditions = mixed_batch()
    expected = velocity(FluxDenoiser(tiny_flux(), mode), noise(5), conditions)
    transformer, runs = tiny_flux(), []
    denoiser = FluxDenoiser(transformer, mode)
    transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    transformer.single_transformer_blocks[0].attn.register_forward_pre_hook(lambda *_: runs.append(1))
    fresh = [replace(each, identity=each.identity and replace(each.identity, kv={})) for each in conditions]
    context = denoiser.prepare(fresh, GRID, 1.0, 1.0, NULL)
    assert torch.allclose(denoiser.velocity(noise(5), 0.7, context), expected, atol=1e-5)
    computed = len(runs)
    denoiser.velocity(noise(5), 0.6, context)
    assert len(runs) == computed


def test_kept_keys_are_stacked_padded_and_biased():
    denoiser = FluxDenoiser(tiny_flux())
    kept = denoiser.semantic_kv(semantic(4, 1).tokens[None], None, NULL)
    stack, bias = beside_noise([([kept, None, kept.sample(0, 2)], 1.0)], num_noise=3)
    seen = [[True] * 4, [False] * 4, [True, True, False, False]]
    assert (bias == 0).tolist() == [[True] * 3 + row for row in seen]
    assert torch.equal(stack.keys[0][0], kept.keys[0][0]) and torch.equal(stack.values[1][2, :2], kept.values[1][0, :2])
    assert stack.keys.shape[0] == len(kept.keys) and not stack.keys[:, 1].any()
    same, bias = beside_noise([([kept, kept], 1.0), ([kept, kept], 1.0)], num_noise=3)
    assert bias is None
    assert all(torch.equal(same.keys[1][row], kept.keys[1][0].repeat(2, 1, 1)) for row in range(2))


def test_a_lora_reads_a_subject_again():
    peft = pytest.importorskip("peft")
    transformer, subject = tiny_flux(), Condition(identity=identity((3, 4), seed=2))
    denoiser = FluxDenoiser(transformer)
    before = velocity(denoiser, noise(), [subject])
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    fresh = Condition(identity=replace(subject.identity, kv={}))
    with_lora = velocity(denoiser, noise(), [subject])
    assert torch.equal(with_lora, velocity(denoiser, noise(), [fresh])) and not torch.allclose(with_lora, before)
    transformer.disable_lora()
    assert torch.allclose(velocity(denoiser, noise(), [subject]), before, atol=1e-5)
