"""The grammar of plans, with mini's real tokenizer: what it lets an MLLM write, and what it does not."""

import random
from functools import lru_cache

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from subjectgen import SubjectProcessor
from subjectgen.binding import bind
from subjectgen.data.indirect import riddle
from subjectgen.data.plans import GROUND_SAID, plan
from subjectgen.data.sightings import Sighting
from subjectgen.data.world import COLOURS, PATTERNS, Ground, random_scene
from subjectgen.reasoning.decoding import GrammarPicker
from subjectgen.reasoning.grammar import MAX_PROMPT, parse_plan, plan_grammar
from subjectgen.weights import find_folder

SUBJECT = (
    "<subject>name: lady beetle; colours: red, black; box: 12 20 80 90; pose: upright; ground: white plain</subject>"
)
DECIDED = "<plan>scene: a; view: b, c; pose: d; changes: nothing; keeps: e</plan><prompt>the cat; red</prompt>"


@pytest.fixture(scope="module")
def tokenizer():
    return SubjectProcessor.from_pretrained(find_folder("weights") / "mini/processor").tokenizer


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return from_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def grammars():
    return {count: plan_grammar(count) for count in range(4)}


@lru_cache
def matcher_of(vocabulary, grammar):
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.get_error() and not matcher.get_grammar_warnings()
    return matcher


def admitted(vocabulary, grammar, ids):
    """Whether each token is allowed where it stands, and nothing may follow the last."""
    matcher = matcher_of(vocabulary, grammar).deep_copy()
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_stopped()


def random_sightings(rng, count):
    """References of any look, each in a box that is one."""
    seen = []
    for _ in range(count):
        (left, right), (top, bottom) = (sorted(rng.choice(101, 2, replace=False).tolist()) for _ in range(2))
        colours = tuple(rng.permutation(list(COLOURS))[: rng.integers(1, 4)].tolist())
        ground = Ground(colour=str(rng.choice(list(COLOURS))), pattern=str(rng.choice(PATTERNS)))
        pose = str(rng.choice(["upright", "upside down", "tilted left", "tilted right"]))
        name = str(rng.choice(["lady beetle", "face with tears of joy", "T-rex", "input symbol for latin letters"]))
        seen.append(Sighting(name=name, colours=colours, box=(left, top, right, bottom), pose=pose, ground=ground))
    return seen


def test_all_that_mini_is_taught_is_admitted_and_read(tokenizer, vocabulary, grammars):
    rng = np.random.default_rng(0)
    for index in range(300):
        count = 1 + index % 3
        seen = random_sightings(rng, count)
        if index % 2:
            asked = riddle(rng, seen)
            scene, shown = asked.scene, (asked.shown,)
        else:
            scene, shown = random_scene(rng, count), range(1, count + 1)
        text = plan(scene, seen, shown)
        assert admitted(vocabulary, grammars[count], tokenizer(text, add_special_tokens=False)["input_ids"]), text
        read = parse_plan(text, count, "")
        assert [(each.name, each.colours, each.box, each.pose) for each in read.subjects] == [
            (each.name, each.colours, each.box, each.pose) for each in seen
        ]
        assert read.scene == f"{scene.ground.colour} {scene.ground.pattern}"
        assert read.prompt.endswith(GROUND_SAID[scene.ground.pattern].format(c=scene.ground.colour))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (SUBJECT + DECIDED, 1),
        (DECIDED, 0),
        (SUBJECT * 3 + DECIDED, 3),
        (SUBJECT.replace("; box", "; details: six legs; text: 7 UP; box") + DECIDED, 1),
        (SUBJECT.replace("; box", "; text: 7 UP; box") + DECIDED, 1),
        (SUBJECT.replace("lady beetle", "Käfer 甲虫 🐞") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "0 0 100 100") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "99 99 100 100") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "1 2 10 100") + DECIDED, 1),
        (SUBJECT.replace("lady beetle", "x") + DECIDED, 1),
        (SUBJECT + DECIDED.replace("the cat; red", "x" * MAX_PROMPT), 1),
    ],
)
def test_admits(tokenizer, vocabulary, grammars, text, count):
    assert admitted(vocabulary, grammars[count], tokenizer(text, add_special_tokens=False)["input_ids"])
    parse_plan(text, count, "")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("Sure! " + DECIDED, 0),
        (DECIDED + "\n", 0),
        (DECIDED[:-1], 0),
        (SUBJECT + DECIDED, 2),
        (SUBJECT * 2 + DECIDED, 1),
        (DECIDED.replace("scene: a; ", ""), 0),
        (DECIDED.replace("scene: a", "scene: "), 0),
        (DECIDED.replace("scene: a", "scene:  a"), 0),
        (DECIDED.replace("scene: a", "scene: a\n"), 0),
        (DECIDED.replace("scene: a", "scene: <b>"), 0),
        (DECIDED.replace("the cat; red", ""), 0),
        (DECIDED.replace("the cat; red", "x" * (MAX_PROMPT + 1)), 0),
        (SUBJECT.replace("12 20 80 90", "12 20 12 90") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "12 20 80 20") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "90 20 80 90") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "12 20 80 101") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "12 20 80") + DECIDED, 1),
        (SUBJECT.replace("12 20 80 90", "012 20 80 90") + DECIDED, 1),
        (SUBJECT.replace("; pose: upright", "") + DECIDED, 1),
        (SUBJECT.replace("red, black", "red,, black") + DECIDED, 1),
    ],
)
def test_refuses(tokenizer, vocabulary, grammars, text, count):
    assert not admitted(vocabulary, grammars[count], tokenizer(text, add_special_tokens=False)["input_ids"])


def test_every_box_of_a_sample_is_admitted_if_and_only_if_it_is_one(tokenizer, vocabulary, grammars):
    draw = random.Random(0)
    boxes = [tuple(draw.randrange(103) for _ in range(4)) for _ in range(300)]
    found = set()
    for left, top, right, bottom in boxes:
        text = SUBJECT.replace("12 20 80 90", f"{left} {top} {right} {bottom}") + DECIDED
        is_box = left < right <= 100 and top < bottom <= 100
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert admitted(vocabulary, grammars[1], ids) == is_box, (left, top, right, bottom)
        found.add(is_box)
    assert found == {True, False}


def speaks_of_known_images(text, count):
    """As the pipeline reads it."""
    try:
        bind(text, [None] * count)
    except ValueError:
        return False
    return True


STARTS = [
    "image",
    "IMAGE",
    "\u0131mage",
    "i image",
    "images 1, 2,\u00a0or",
    "Ima\u017f, image\u017f 1 &",
    "image 2 image",
    "a images 2 and",
]
NUMBERS = [f"{space}{number}" for number in ("0", "1", "2", "3", "9", "10", "12", "123") for space in (" ", "\u00a0 ")]
ENDS = ["", " on red", ", a cat", " and 1 more", " and images"]


class TestImagesBeyondTheReferences:
    def written(self, where, text):
        if where == "prompt":
            return DECIDED.replace("the cat; red", text)
        return DECIDED.replace({"scene": "scene: a", "view": "b, c", "pose": "pose: d"}[where], f"{where}: {text}")

    @pytest.mark.parametrize("count", [0, 1, 2, 3])
    def test_a_prompt_may_say_what_can_be_bound(self, tokenizer, vocabulary, grammars, count):
        texts = [start + number + end for start in STARTS for number in NUMBERS for end in ENDS]
        found = {text: speaks_of_known_images(text, count) for text in texts}
        allowed = {}
        for text in texts:
            ids = tokenizer(SUBJECT * count + self.written("prompt", text), add_special_tokens=False)["input_ids"]
            allowed[text] = admitted(vocabulary, grammars[count], ids)
        assert allowed == found and any(found.values()) == (count > 0)

    @pytest.mark.parametrize("count", [0, 1, 2, 3])
    def test_words_like_it_are_free(self, tokenizer, vocabulary, grammars, count):
        for text in (
            "an image", "images", "image of 12 cats", "images and 7 cats", "Imagine 7 imps in 2 images",
            "iimag 3", "image  x3", "imagery 4", "a 12 image", "image i 3", "IMAGE, 4", "im 3", "images of image",
            "\u2170mage 9",
        ):  # fmt: skip
            assert speaks_of_known_images(text, count)
            ids = tokenizer(SUBJECT * count + self.written("prompt", text), add_special_tokens=False)["input_ids"]
            assert admitted(vocabulary, grammars[count], ids), text

    @pytest.mark.parametrize("text", ["a pilgrimage 7", "image 7th", "images 7", "image 01", "image ٣", "imaimage 2"])
    def test_stricter_than_what_is_bound(self, tokenizer, vocabulary, grammars, text):
        """So that it is the number that cannot be written, and not the space or the letter behind it that must be."""
        assert not admitted(
            vocabulary,
            grammars[1],
            tokenizer(SUBJECT + self.written("prompt", text), add_special_tokens=False)["input_ids"],
        )

    def test_as_many_as_there_are(self, tokenizer, vocabulary):
        grammar = plan_grammar(12)
        for number in range(1, 130):
            text = SUBJECT * 12 + self.written("prompt", f"images 1, 12 and {number} beside image {number}")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert admitted(vocabulary, grammar, ids) == (number <= 12), number

    @pytest.mark.parametrize("where", ["scene", "view", "pose"])
    def test_decisions_which_reflection_says_again(self, tokenizer, vocabulary, grammars, where):
        for count in (0, 1):
            for number in (1, 2):
                text = SUBJECT * count + self.written(where, f"the image {number} one")
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert admitted(vocabulary, grammars[count], ids) == (number <= count)

    def test_colours_which_it_says_too(self, tokenizer, vocabulary, grammars):
        for colours, allowed in (("image 1, red", True), ("red, image 2", False), ("images 1, 2", False)):
            text = SUBJECT.replace("red, black", colours) + DECIDED
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert admitted(vocabulary, grammars[1], ids) == allowed

    def test_what_is_seen_is_told_as_it_is(self, tokenizer, vocabulary, grammars):
        text = SUBJECT.replace("lady beetle", "image 7").replace("; box", "; text: image 9; box") + DECIDED
        assert admitted(vocabulary, grammars[1], tokenizer(text, add_special_tokens=False)["input_ids"])

    @pytest.mark.parametrize("count", [0, 2])
    def test_an_mllm_that_wants_nothing_else_comes_to_an_end(self, tokenizer, grammars, count):
        """It is for "image 7" wherever it may; the regular expressions stay within what llguidance computes."""
        wanted = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" image 7", "image", " images 12")
        ]
        logits = torch.zeros(len(tokenizer))
        logits[[token for ids in wanted for token in ids]] = 8.0
        picker = GrammarPicker(
            tokenizer, grammars[count], temperature=1.0, generator=torch.Generator().manual_seed(count)
        )
        ids = []
        while not picker.finished:
            ids += picker(logits, 99)
        prompt = parse_plan(tokenizer.decode(ids), count, "").prompt
        assert "image" in prompt and speaks_of_known_images(prompt, count)


class TestPicker:
    """On a grammar of two words; logits favour a token that it does not allow."""

    GRAMMAR = 'start: "red" | "black"'

    def logits(self, tokenizer):
        return torch.randn(len(tokenizer) + 40, generator=torch.Generator().manual_seed(0))  # 40 rows of padding

    def written(self, tokenizer, **options):
        picker, ids = GrammarPicker(tokenizer, self.GRAMMAR, **options), []
        while not picker.finished:
            ids += picker(self.logits(tokenizer), 1)
        return tokenizer.decode(ids)

    def test_likeliest(self, tokenizer):
        starts = {word: self.starts(tokenizer, word) for word in ("red", "black")}
        logits = self.logits(tokenizer)
        best = max(starts["red"] + starts["black"], key=lambda token: logits[token])
        picker = GrammarPicker(tokenizer, self.GRAMMAR)
        assert picker(logits, 1) == [best] != [int(logits.argmax())]
        assert self.written(tokenizer) in {"red", "black"}

    def starts(self, tokenizer, word):
        return [
            token for token in range(len(tokenizer)) if (text := tokenizer.decode([token])) and word.startswith(text)
        ]

    def test_draws_follow_the_chances(self, tokenizer):
        starts = self.starts(tokenizer, "red") + self.starts(tokenizer, "black")
        logits = torch.full((len(tokenizer),), 5.0)
        logits[starts[0]] = 6.0
        generator = torch.Generator().manual_seed(0)
        draws = [
            GrammarPicker(tokenizer, self.GRAMMAR, temperature=0.5, generator=generator)(logits, 1)[0]
            for _ in range(600)
        ]
        expected = np.exp(2) / (np.exp(2) + len(starts) - 1)  # e^(1 / .5) against e^0 for each other
        assert set(draws) <= set(starts)
        assert draws.count(starts[0]) / len(draws) == pytest.approx(expected, abs=0.06)

    @pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
    def test_near_zero_it_is_the_likeliest(self, tokenizer, temperature):
        logits = self.logits(tokenizer) * 40
        cold = GrammarPicker(tokenizer, self.GRAMMAR, temperature=temperature, generator=torch.Generator())
        assert cold(logits, 1) == GrammarPicker(tokenizer, self.GRAMMAR)(logits, 1)

    def test_at_a_huge_temperature_all_are_equal(self, tokenizer):
        starts, generator = self.starts(tokenizer, "red") + self.starts(tokenizer, "black"), torch.Generator()
        pickers = [GrammarPicker(tokenizer, self.GRAMMAR, temperature=1e300, generator=generator) for _ in range(200)]
        assert {picker(self.logits(tokenizer), 1)[0] for picker in pickers} == set(starts)

    @pytest.mark.parametrize("at_most", [1, 3, 99])
    def test_what_the_grammar_forces_needs_no_logits(self, tokenizer, at_most):
        """Nothing but the first digit is open: the same text in fewer steps, and never more than is asked for."""
        grammar = 'start: "<subject>the name: " /[0-9]/ " is a number</subject>"'
        picker, steps = GrammarPicker(tokenizer, grammar), []
        while not picker.finished:
            steps.append(picker(self.logits(tokenizer), at_most))
        text = tokenizer.decode([token for step in steps for token in step])
        digit = text.removeprefix("<subject>the name: ")[0]
        assert text == f"<subject>the name: {digit} is a number</subject>" and digit.isdigit()
        assert max(map(len, steps)) <= at_most and (at_most == 1) == (max(map(len, steps)) == 1)

    def test_two_texts_of_one_grammar(self, tokenizer):
        """The grammar is read once; each text goes its own way through it."""
        first, second = (GrammarPicker(tokenizer, self.GRAMMAR) for _ in range(2))
        while not first.finished:
            first(self.logits(tokenizer), 1)
        assert not second.finished and self.written(tokenizer) in {"red", "black"}

    def test_a_seed_is_a_text(self, tokenizer):
        texts = [
            self.written(tokenizer, temperature=3.0, generator=torch.Generator().manual_seed(seed))
            for seed in range(20)
        ]
        again = self.written(tokenizer, temperature=3.0, generator=torch.Generator().manual_seed(4))
        assert texts[4] == again and set(texts) == {"red", "black"}
