"""InternVLReader against a plain loop over decoder layers and against reading all in one pass."""

import pytest
import torch
from tiny import NUM_LAYERS, WIDTH, tiny_mllm
from transformers import InternVLProcessor

from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.models.mllm.processor import SubjectProcessor

PROMPTS = ["a red cat", " on the\nblue ground ", "\n\n a  cat", "\n a cat", "Überall 🐈‍⬛!", "user\n", "a"]


def states_by_loop(mllm, input_ids, pixel_values):
    """Hidden states of all layers of one sequence: embed, put the images in, and call each decoder layer in turn."""
    language_model = mllm.model.language_model
    x = language_model.embed_tokens(input_ids)
    if pixel_values is not None:
        features = mllm.model.get_image_features(pixel_values).pooler_output
        x = x.clone()
        x[:, input_ids[0] == mllm.config.image_token_id] = features.flatten(0, 1)
    positions = torch.arange(x.shape[1])[None]
    rotary = language_model.rotary_emb(x, positions)
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[None, None]
    states = [x]
    for layer in language_model.layers:
        states.append(layer(states[-1], attention_mask=causal, position_embeddings=rotary, position_ids=positions))
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("num_references", [0, 1, 3])
@torch.no_grad()
def test_hidden_states_are_the_raw_outputs_of_every_layer(reader, references, num_references):
    ids = reader.token_layout("a red cat", num_references).input_ids[None]
    pixels = reader.pixel_values(references[:num_references]) if num_references else None
    states = reader.hidden_states(ids, pixels)
    assert states.shape == (1, reader.num_layers, ids.shape[1], reader.width) == (1, NUM_LAYERS, ids.shape[1], WIDTH)
    torch.testing.assert_close(states, states_by_loop(reader.mllm, ids, pixels))


@torch.no_grad()
def test_the_last_layer_is_taken_before_the_final_norm(reader):
    ids = reader.token_layout("a red cat", 0).input_ids[None]
    normed = reader.mllm.model.language_model(input_ids=ids).last_hidden_state
    last = reader.hidden_states(ids)[:, -1]
    torch.testing.assert_close(reader.mllm.model.language_model.norm(last), normed)
    assert (last - normed).abs().max() > 0.1


@pytest.mark.parametrize("num_references", [0, 1, 3])
@pytest.mark.parametrize("prompt", [*PROMPTS, ""])
@torch.no_grad()
def test_prefix_and_continuation_equal_one_pass(reader, references, prompt, num_references):
    hidden = reader.read_prompt(prompt, reader.read_references(references[:num_references]))
    text = reader.template(prompt, num_references)
    ids = reader.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    pixels = reader.pixel_values(references[:num_references]) if num_references else None
    layout = reader.token_layout(prompt, num_references)
    whole = states_by_loop(reader.mllm, ids, pixels)[0, :, : len(layout.input_ids)]
    torch.testing.assert_close(hidden.states[:, hidden.is_image], whole[:, layout.is_image])
    torch.testing.assert_close(hidden.states[:, ~hidden.is_image], whole[:, layout.is_text])
    assert hidden.is_image.sum() == num_references * reader.processor.image_seq_length


@pytest.mark.parametrize("num_references", [0, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_layout_is_the_start_of_the_whole_text_tokenised(reader, prompt, num_references):
    layout = reader.token_layout(prompt, num_references)
    whole = reader.processor.tokenizer(reader.template(prompt, num_references), add_special_tokens=False)["input_ids"]
    count = len(layout.input_ids)
    assert layout.input_ids.tolist() == whole[:count]
    assert layout.is_text[-1] and not (layout.is_text & layout.is_image).any()
    decoded = reader.processor.tokenizer.decode(layout.input_ids[layout.is_text])
    assert decoded.endswith(prompt) and decoded[: -len(prompt)].strip() == ""


def test_a_token_may_belong_to_template_and_prompt(reader):
    """What the test above must survive: the pieces tokenised alone give other tokens than the whole."""
    prompt, tokenizer = "\n a cat", reader.processor.tokenizer
    head = reader.template(prompt, 1).partition(prompt)[0]
    layout = reader.token_layout(prompt, 1)
    assert len(layout.input_ids) < len(tokenizer(head)["input_ids"]) + len(tokenizer(prompt)["input_ids"])


def test_the_template_is_the_processors_own(reader, references):
    content = [{"type": "image"}] * 2 + [{"type": "text", "text": "a red cat"}]
    text = reader.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    by_processor = reader.processor(images=references[:2], text=[text], return_tensors="pt")
    by_reader = reader.processor.tokenizer(reader.template("a red cat", 2), return_tensors="pt")
    assert torch.equal(by_processor["input_ids"], by_reader["input_ids"])
    assert torch.equal(by_processor["pixel_values"], reader.pixel_values(references[:2]))


def test_the_released_processor_fits_too(mllm, processor, references, monkeypatch):
    monkeypatch.setattr(InternVLProcessor, "check_argument_for_proper_class", lambda *_: None)  # no torchvision here
    released = InternVLProcessor(
        processor.image_processor,
        processor.tokenizer,
        None,
        image_seq_length=processor.image_seq_length,
        chat_template=processor.chat_template,
    )
    ours, theirs = InternVLReader(mllm, processor), InternVLReader(mllm, released)
    expected = ours.read_prompt("a red cat", ours.read_references(references[:2]))
    hidden = theirs.read_prompt("a red cat", theirs.read_references(references[:2]))
    assert torch.equal(hidden.states, expected.states) and torch.equal(hidden.is_image, expected.is_image)


def test_another_template_with_a_system_message_moves_the_offsets(mllm, processor, references):
    system = "<|im_start|>system\nYou are a painter.<|im_end|>\n"
    template = "{{ " + repr(system) + " }}" + processor.chat_template
    other = SubjectProcessor(processor.image_processor, processor.tokenizer, processor.image_seq_length, template)
    reader = InternVLReader(mllm, other)
    layout = reader.token_layout("a red cat", 1)
    assert reader.template("a red cat", 1).startswith(system)
    assert other.tokenizer.decode(layout.input_ids[layout.is_text]) == "a red cat"
    assert layout.num_prefix > InternVLReader(mllm, processor).token_layout("a red cat", 1).num_prefix


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'][-1]['text'] * 2 }}", "changes the prompt"),
        ("fixed", "changes the prompt"),
        ("{{ messages[0]['content'][-1]['text'] }}<IMG_CONTEXT>", "0 images before the text"),
    ],
)
def test_a_template_that_cannot_work_is_refused(mllm, processor, template, message):
    other = SubjectProcessor(processor.image_processor, processor.tokenizer, processor.image_seq_length, template)
    with pytest.raises(ValueError, match=message):
        InternVLReader(mllm, other).token_layout("a red cat", 1)


def test_special_tokens_in_a_prompt_are_only_text(reader, references):
    prompt = "a <IMG_CONTEXT><|im_end|> cat"
    layout = reader.token_layout(prompt, 1)
    assert layout.is_image.sum() == reader.processor.image_seq_length
    assert reader.processor.tokenizer.decode(layout.input_ids[layout.is_text]) == prompt
    reader.read_prompt(prompt, reader.read_references(references[:1]))


def test_reading_a_prompt_leaves_the_prefix_alone_and_is_repeatable(reader, references):
    prefix = reader.read_references(references[:2])
    keys, values, states = prefix.keys.clone(), prefix.values.clone(), prefix.states.clone()
    first = reader.read_prompt("a red cat", prefix)
    reader.read_prompt("on the blue ground", prefix)
    second = reader.read_prompt("a red cat", prefix)
    assert torch.equal(first.states, second.states)
    assert torch.equal(prefix.keys, keys) and torch.equal(prefix.values, values) and torch.equal(prefix.states, states)


def test_swapped_references_change_the_text(reader, references):
    one = reader.read_prompt("a red cat", reader.read_references(references[:2]))
    two = reader.read_prompt("a red cat", reader.read_references(references[1::-1]))
    assert (one.states[-1, ~one.is_image] - two.states[-1, ~two.is_image]).abs().max() > 0.05


@torch.no_grad()
def test_padding_to_the_right_has_no_influence(reader):
    ids = reader.token_layout("a red cat", 0).input_ids[None]
    padded = torch.cat((ids, torch.zeros(1, 5, dtype=torch.long)), dim=1)
    attention_mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long()[None]
    states = reader.hidden_states(padded, attention_mask=attention_mask)[:, :, : ids.shape[1]]
    torch.testing.assert_close(states, reader.hidden_states(ids))


def test_a_long_prompt_is_cut_with_a_warning_that_says_what(mllm, processor):
    reader = InternVLReader(mllm, processor, max_prompt_tokens=5)
    message = r"12 tokens and 5 can be read: the last 7 tokens \(7 words\) were cut, from ' ground blue"
    with pytest.warns(UserWarning, match=message):
        layout = reader.token_layout("a red on the" + " blue ground" * 4, 1)
    assert processor.tokenizer.decode(layout.input_ids[layout.is_text]) == "a red on the blue"


def test_the_positions_of_the_mllm_limit_a_prompt_too(processor, references):
    reader = InternVLReader(tiny_mllm(max_position_embeddings=40), processor)
    with pytest.warns(UserWarning, match="were cut"):
        assert len(reader.token_layout("a cat " * 100, 2).input_ids) == 40
    with pytest.raises(ValueError, match="use fewer references"):
        reader.read_prompt("a cat", reader.read_references(references * 2))


def test_a_processor_is_saved_and_loaded(processor, references, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = SubjectProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == processor.chat_template
    assert loaded.image_seq_length == processor.image_seq_length
    text = "<IMG_CONTEXT> a red cat<|im_end|>"
    one, two = (p(images=references[:1], text=[text], return_tensors="pt") for p in (processor, loaded))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_an_image_becomes_one_tile_in_minus_one_to_one(reader, references):
    pixels = reader.pixel_values(references)
    assert pixels.shape == (3, 3, 32, 32) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[0, 1], torch.tensor(128 / 127.5 - 1), atol=1e-5)
    assert pixels[0, 0, 0].mean() < -0.9 < 0.9 < pixels[0, 0, -1].mean()
