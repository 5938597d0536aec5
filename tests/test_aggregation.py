"""LAP and DLA against plain loops over tokens and layers, and what each kind of token may and may not influence."""

import math

import pytest
import torch
from tiny import NUM_LAYERS, POOLED, WIDTH, tiny_aggregator

from subjectgen.models.aggregation import MODES, DualLayerAggregator, LayerwiseAttentionPooling


@pytest.fixture
def batch():
    """Two samples of 7 and 5 tokens, the first 3 of each from images; magnitudes grow with the layer."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, NUM_LAYERS, 7, WIDTH, generator=generator)
    states = states * 4.0 ** torch.arange(NUM_LAYERS).view(1, -1, 1, 1)
    is_image = (torch.arange(7) < 3).repeat(2, 1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    return states, is_image, mask


def randomised(module):
    """No parameter left at a value (zero, one, mean) that would hide a mistake."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def rms_norm(x, scale):
    return x / torch.sqrt((x * x).mean() + 1e-6) * scale


def block_by_loop(block, tokens):
    """Pre-norm attention and MLP over a list of vectors, head by head, query by query."""
    width, heads = len(tokens[0]), block.num_heads
    size = width // heads
    q, k, v = zip(*((block.qkv.weight @ rms_norm(x, block.norm1.weight)).split(width) for x in tokens), strict=True)
    out = []
    for i, x in enumerate(tokens):
        attended = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            weights = torch.stack([q[i][at] @ key[at] / math.sqrt(size) for key in k]).softmax(0)
            attended.append(sum(weight * value[at] for weight, value in zip(weights, v, strict=True)))
        x = x + block.out.weight @ torch.cat(attended) + block.out.bias
        up, _, down = block.mlp
        inner = torch.nn.functional.gelu(up.weight @ rms_norm(x, block.norm2.weight) + up.bias, approximate="tanh")
        out.append(x + down.weight @ inner + down.bias)
    return out


def pool_by_loop(pooling, layers):
    """LAP of one token: [layers, width] -> [width]."""
    x = [rms_norm(state, pooling.norm.scale[index]) for index, state in enumerate(layers)]
    for block in pooling.blocks:
        x = block_by_loop(block, x)
    return sum(weight * state for weight, state in zip(pooling.pool.weight[0], x, strict=True))


def aggregate_by_loop(aggregator, states, is_image, pool):
    """All after the pooling for one sample without padding; `pool(layers, is_image)` gives one vector per token."""
    norm, up, _, down = aggregator.project
    tokens = []
    for index, kind in enumerate(is_image):
        x = rms_norm(pool(states[:, index], kind), norm.weight)
        x = down.weight @ torch.nn.functional.gelu(up.weight @ x + up.bias, approximate="tanh") + down.bias
        tokens.append(x + aggregator.token_type.weight[int(kind)])
    for block in aggregator.refiner:
        tokens = block_by_loop(block, tokens)
    tokens = torch.stack([rms_norm(x, aggregator.final_norm.weight) for x in tokens])
    return tokens, aggregator.pooled.weight @ tokens.mean(0) + aggregator.pooled.bias


@torch.no_grad()
def test_pooling_equals_a_loop_over_tokens_and_layers(batch):
    pooling = randomised(LayerwiseAttentionPooling(NUM_LAYERS, WIDTH, num_heads=2))
    layers = batch[0][0].transpose(0, 1)
    expected = torch.stack([pool_by_loop(pooling, token) for token in layers])
    torch.testing.assert_close(pooling(layers), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pooling_starts_as_the_mean_of_normalised_layers(batch):
    pooling = LayerwiseAttentionPooling(NUM_LAYERS, WIDTH, num_heads=2, num_blocks=0)
    layers = batch[0][0].transpose(0, 1)
    expected = (layers / layers.square().mean(-1, keepdim=True).sqrt()).mean(1)
    torch.testing.assert_close(pooling(layers), expected)


def pool_of(aggregator, mode):
    """What Table 6 calls each way to connect the MLLM, for one token's [layers, width]."""

    def pool(layers, is_image):
        if mode == "dual":
            return pool_by_loop(aggregator.image_pooling if is_image else aggregator.text_pooling, layers)
        if mode == "shared":
            return pool_by_loop(aggregator.text_pooling, layers)
        last = rms_norm(layers[-1], aggregator.norm.scale[0])
        if mode == "last" or not is_image:
            return last
        return (1 - aggregator.blend) * last + aggregator.blend * rms_norm(layers[0], aggregator.norm.scale[1])

    return pool


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_each_mode_equals_a_loop(batch, mode):
    aggregator = randomised(tiny_aggregator(mode))
    states, is_image, mask = batch
    tokens, pooled = aggregator(states, is_image, mask)
    assert tokens.shape == (2, 7, 32) and pooled.shape == (2, POOLED)
    for index, count in enumerate(mask.sum(1)):
        sample = states[index, :, :count], is_image[index, :count]
        expected_tokens, expected_pooled = aggregate_by_loop(aggregator, *sample, pool_of(aggregator, mode))
        torch.testing.assert_close(tokens[index, :count], expected_tokens, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pooled[index], expected_pooled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_padding_has_no_influence_and_comes_out_as_zeros(batch, mode):
    aggregator = randomised(tiny_aggregator(mode))
    states, is_image, mask = batch
    tokens, pooled = aggregator(states, is_image, mask)
    altered = torch.where(mask[:, None, :, None], states, 1e4)
    altered_tokens, altered_pooled = aggregator(altered, is_image | ~mask, mask)
    assert torch.equal(tokens, altered_tokens) and torch.equal(pooled, altered_pooled)
    assert not tokens[~mask].any()
    alone, alone_pooled = aggregator(states[1:, :, :5], is_image[1:, :5], mask[1:, :5])
    torch.testing.assert_close(tokens[1:, :5], alone)
    torch.testing.assert_close(pooled[1:], alone_pooled)


@torch.no_grad()
def test_each_kind_of_token_passes_through_its_own_pooling_only(batch):
    states, is_image, mask = batch
    aggregator = tiny_aggregator("dual")
    before = aggregator.pool_layers(states, is_image, mask)
    for pooling, changed in ((aggregator.text_pooling, ~is_image & mask), (aggregator.image_pooling, is_image & mask)):
        kept = {name: value.clone() for name, value in pooling.state_dict().items()}
        randomised(pooling)
        difference = (aggregator.pool_layers(states, is_image, mask) - before).abs().amax(-1)
        assert (difference > 1e-3).equal(changed)
        assert not difference[~changed].any()
        pooling.load_state_dict(kept)


@torch.no_grad()
def test_pooling_sees_one_token_at_a_time_and_refining_sees_all(batch):
    states, is_image, mask = batch
    aggregator = tiny_aggregator("dual")
    altered = states.clone()
    altered[0, :, 6] = altered[0, :, 6].flip(-1)
    difference = aggregator.pool_layers(states, is_image, mask) - aggregator.pool_layers(altered, is_image, mask)
    assert difference[0, 6].any() and not difference[0, :6].any()
    difference = aggregator(states, is_image, mask)[0] - aggregator(altered, is_image, mask)[0]
    assert difference[0].any(-1).all() and not difference[1].any()


@pytest.mark.parametrize(
    ("first", "last", "stride", "selected"),
    [(0, None, 1, {0, 1, 2, 3}), (1, 2, 1, {1, 2}), (0, 3, 3, {0, 3}), (2, 2, 1, {2})],
)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_only_the_selected_layers_are_read(batch, mode, first, last, stride, selected):
    aggregator = tiny_aggregator(mode, first_layer=first, last_layer=last, layer_stride=stride)
    read = {"last": {max(selected)}, "last_vit": {0, max(selected)}}.get(mode, selected)
    states, is_image, mask = batch
    tokens, _ = aggregator(states, is_image, mask)
    for layer in range(NUM_LAYERS):
        altered = states.clone()
        altered[:, layer] = altered[:, layer].flip(-1)
        assert (not torch.equal(aggregator(altered, is_image, mask)[0], tokens)) == (layer in read)


@torch.no_grad()
def test_a_sample_without_tokens_gets_the_null_vector(batch):
    states, is_image, mask = batch
    aggregator = randomised(tiny_aggregator())
    mask = mask.clone()
    mask[1] = False
    tokens, pooled = aggregator(states, is_image, mask)
    assert torch.equal(pooled[1], aggregator.null_pooled) and not tokens[1].any()
    assert not torch.equal(pooled[0], aggregator.null_pooled)


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_gets_a_finite_gradient(batch, mode):
    aggregator = tiny_aggregator(mode)
    states, is_image, mask = batch
    no_tokens = torch.zeros_like(mask[:1])
    rows = torch.cat((states, states[:1])), torch.cat((is_image, is_image[:1])), torch.cat((mask, no_tokens))
    tokens, pooled = aggregator(*rows)
    (tokens[..., 0].sum() + pooled[:, 0].sum()).backward()
    for name, parameter in aggregator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_bfloat16_weights_give_bfloat16_tokens(batch):
    states, is_image, mask = batch
    aggregator = tiny_aggregator()
    exact, _ = aggregator(states, is_image, mask)
    tokens, pooled = aggregator.to(torch.bfloat16)(states, is_image, mask)
    assert tokens.dtype == pooled.dtype == torch.bfloat16
    assert (tokens.float() - exact).abs().mean() < 0.05


def test_an_aggregator_is_saved_and_loaded(batch, tmp_path):
    aggregator = randomised(tiny_aggregator("last_vit", last_layer=2))
    aggregator.save_pretrained(tmp_path)
    loaded = DualLayerAggregator.from_pretrained(tmp_path)
    assert isinstance(loaded, DualLayerAggregator)
    for one, two in zip(aggregator(*batch), loaded(*batch), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "mean"}, "last, last_vit, shared, dual"),
        ({"first_layer": 3, "last_layer": 2}, "first_layer=3, last_layer=2"),
        ({"last_layer": NUM_LAYERS}, f"<= {NUM_LAYERS - 1}"),
        ({"layer_stride": 0}, "layer_stride=0"),
        ({"num_heads": 5}, "not divisible by num_heads 5"),
    ],
)
def test_an_impossible_configuration_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        tiny_aggregator(**config)


def test_states_of_another_mllm_are_refused(batch):
    states, is_image, mask = batch
    with pytest.raises(ValueError, match=f"3 layers of width {WIDTH}, this aggregator reads {NUM_LAYERS} layers"):
        tiny_aggregator()(states[:, :3], is_image, mask)
    with pytest.raises(ValueError, match="4 layers of width 16"):
        tiny_aggregator()(states[..., :16], is_image, mask)
