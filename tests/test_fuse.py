"""Hidden states -> semantic tokens: padding a batch changes nothing."""

import torch
from tiny import POOLED

from subjectgen.generate.encode import encode
from subjectgen.generate.fuse import fuse


@torch.no_grad()
def test_a_batch_equals_single_calls(reader, aggregator, references):
    prefixes = [reader.read_references(references[:count]) for count in (1, 0, 3, 0)]
    hidden = encode(reader, ["a red cat on the blue ground", "a", "", ""], prefixes)
    fused = fuse(aggregator, hidden)
    for given, h in zip(fused, hidden, strict=True):
        [single] = fuse(aggregator, [h])
        assert given.tokens.shape == (h.states.shape[1], 32) and given.pooled.shape == (POOLED,)
        torch.testing.assert_close(given.tokens, single.tokens)
        torch.testing.assert_close(given.pooled, single.pooled)


@torch.no_grad()
def test_a_sample_equals_the_aggregator_alone(reader, aggregator, references):
    [hidden] = encode(reader, ["a red cat"], [reader.read_references(references[:2])])
    [fused] = fuse(aggregator, [hidden])
    mask = torch.ones_like(hidden.is_image)[None]
    tokens, pooled = aggregator(hidden.states[None], hidden.is_image[None], mask)
    assert torch.equal(fused.tokens, tokens[0]) and torch.equal(fused.pooled, pooled[0])


@torch.no_grad()
def test_no_tokens_give_the_null_vector(reader, aggregator):
    [fused] = fuse(aggregator, encode(reader, [""], [reader.read_references([])]))
    assert fused.tokens.shape == (0, 32) and torch.equal(fused.pooled, aggregator.null_pooled)


def test_nothing_gives_nothing(aggregator):
    assert fuse(aggregator, []) == []
