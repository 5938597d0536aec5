"""Prompts and references -> hidden states: a batch is a list of independent samples."""

import pytest
import torch

from subjectgen.generate.encode import encode


@pytest.fixture(scope="module")
def prefixes(reader, references):
    return [reader.read_references(references[:count]) for count in (2, 0, 3)]


def test_a_batch_equals_single_calls_with_mixed_numbers_of_references(reader, prefixes):
    prompts = ["a red cat", "on the ground", ""]
    hidden = encode(reader, prompts, prefixes)
    assert [h.is_image.sum().item() for h in hidden] == [8, 0, 12]
    for prompt, prefix, given in zip(prompts, prefixes, hidden, strict=True):
        [single] = encode(reader, [prompt], [prefix])
        assert torch.equal(single.states, given.states) and torch.equal(single.is_image, given.is_image)


def test_without_references_only_the_text_is_left(reader, prefixes):
    [hidden] = encode(reader, ["a red cat"], prefixes[1:2])
    num_tokens = len(reader.processor.tokenizer("a red cat")["input_ids"])
    assert hidden.states.shape[1] == num_tokens and not hidden.is_image.any()


def test_image_tokens_do_not_depend_on_the_prompt(reader, prefixes):
    one, two = encode(reader, ["a red cat", "on the blue ground"], [prefixes[0]] * 2)
    assert torch.equal(one.states[:, one.is_image], two.states[:, two.is_image])
    assert not torch.equal(one.states[:, ~one.is_image][:, :1], two.states[:, ~two.is_image][:, :1])


def test_prompts_and_references_must_match_in_number(reader, prefixes):
    with pytest.raises(ValueError, match="2 prompts with 3 sets of references"):
        encode(reader, ["a", "b"], prefixes)
