"""What phrases of a prompt stand for."""

import pytest
import torch
from tiny_pipeline import picture, seeded_generators, tiny_pipeline
from tiny_plans import a_plan

from subjectgen import Binding, Subject
from subjectgen.binding import bind, numbered

SHOE_AND_CUP = ("red shoe", "cup")


def found(prompt, names):
    """Each phrase and its reference; spans must say the same."""
    bindings = bind(prompt, names)
    assert all(prompt[slice(*each.span)] == each.phrase for each in bindings)
    return [(each.phrase, each.reference) for each in bindings]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("image 2 on image 1", [("image 2", 2), ("image 1", 1)]),
        ("Image  1 left", [("Image  1", 1)]),
        ("the Red Shoe beside a cup", [("Red Shoe", 1), ("cup", 2)]),
        ("the red\nshoe", [("red\nshoe", 1)]),
        ("the red shoe's laces", [("red shoe", 1)]),
        ("the red shoe of image 1, again the red shoe", [("red shoe of image 1", 1), ("red shoe", 1)]),
        ("a red cat, shoes, cupboards and images 1", []),
        ("a hiccup, my_cup and image 1x", []),
        ("images 1 and 2 on green", [("images 1", 1), ("2", 2)]),
        ("Images\n2, 1, and 2", [("Images\n2", 2), ("1", 1), ("2", 2)]),
        ("images 1 & 2, images 2 or 1", [("images 1", 1), ("2", 2), ("images 2", 2), ("1", 1)]),
        ("images 1,2 and 2nd", [("images 1", 1), ("2", 2)]),
        ("my_images 1 and 2, images 1 and2, images 1 then 2, images 1 and 2x", []),
        ("image 1 and 2 dogs", [("image 1", 1)]),
        ("the cup of images 1 and 2", [("cup", 2), ("images 1", 1), ("2", 2)]),
        ("the cup of images", [("cup", 2)]),
        ("the cup of image 2nd", [("cup", 2)]),
    ],
)
def test_phrases(prompt, expected):
    assert found(prompt, SHOE_AND_CUP) == expected


def test_the_longer_of_two_names():
    assert found("a cup and a cup cake", ("cup", "cup cake")) == [("cup", 1), ("cup cake", 2)]
    assert found("a cup cake and a cup", ("cup cake", "cup")) == [("cup cake", 1), ("cup", 2)]


def test_names_are_words_and_no_patterns():
    assert found("the c++ book (old)", ("c++ book (old)", ".*")) == [("c++ book (old)", 1)]


def test_nothing_is_named():
    assert bind("a red shoe", (None, None)) == bind("a red shoe", ()) == ()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("the red shoe beside a cup", "the red shoe of image 1 beside a cup of image 2"),
        ("the red shoe's laces", "the red shoe of image 1's laces"),
        ("the cup of image 2 on image 1", "the cup of image 2 on image 1"),
        ("a red cat", "a red cat"),
        ("images 1, 2 and 1 beside a cup", "images 1, 2 and 1 beside a cup of image 2"),
    ],
)
def test_names_become_numbers(prompt, expected):
    once = numbered(prompt, bind(prompt, SHOE_AND_CUP))
    assert once == expected
    assert numbered(once, bind(once, SHOE_AND_CUP)) == once


class TestRefusals:
    @pytest.mark.parametrize("prompt", ["image 3 on a hill", "image 0"])
    def test_a_number_without_a_reference(self, prompt):
        with pytest.raises(ValueError, match=rf"'{prompt[:7]}' and comes with 2 reference.*image 1 to image 2"):
            bind(prompt, (None, None))

    def test_a_number_without_any_reference(self):
        with pytest.raises(ValueError, match=r"comes with 0 reference.*no number.*missing image"):
            bind("image 1 on a hill", ())

    @pytest.mark.parametrize("phrase", ["images 1 and 7", "images 3, 1", "images 1, 2, or 0"])
    def test_a_number_of_a_list_without_a_reference(self, phrase):
        with pytest.raises(ValueError, match=rf"'{phrase}' and comes with 2 reference.*image 1 to image 2"):
            bind(f"{phrase} on green", (None, None))
        with pytest.raises(ValueError, match=rf"'{phrase}' and comes with 0 reference.*no number"):
            bind(f"{phrase} on green", ())

    def test_a_name_that_two_share(self):
        with pytest.raises(ValueError, match=r"'dog' could be image 1 and image 3.*'dog of image 1'"):
            bind("a dog runs", ("dog", "cat", "Dog"))
        assert found("the dog of image 3 and a cat", ("dog", "cat", "Dog")) == [("dog of image 3", 3), ("cat", 2)]
        assert found("a cat sleeps", ("dog", "cat", "Dog")) == [("cat", 2)]

    def test_a_name_with_the_number_of_another(self):
        with pytest.raises(ValueError, match=r"'cup of image 1'.*'cup' is image 2"):
            bind("the cup of image 1", SHOE_AND_CUP)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def painted(pipe, prompt, subjects, **options):
    return pipe(prompt, subjects, generator=seeded_generators(0), output_type="latent", **options)


class TestPipeline:
    def test_a_name_is_read_as_its_number(self, pipe):
        cat, dog = Subject(picture("red"), name="cat"), Subject(picture("blue"), name="dog")
        named = painted(pipe, "a cat", [dog, cat])
        told = painted(pipe, "a cat of image 2", [dog, cat])
        assert torch.equal(named.images, told.images)
        assert named.bindings == ((Binding(phrase="cat", span=(2, 5), reference=2),),)
        assert str(named.bindings[0][0]) == "'cat' is image 2"

    def test_a_list(self, pipe):
        references = [picture("red"), picture("blue")]
        bindings = painted(pipe, "images 1 and 2", references).bindings[0]
        assert [str(each) for each in bindings] == ["'images 1' is image 1", "'2' is image 2"]
        with pytest.raises(ValueError, match="'images 1 and 7' and comes with 2 reference"):
            pipe("images 1 and 7 on green", references)

    def test_a_list_of_a_plan(self, pipe):
        plan = a_plan(3, "images 1 and 3 on red", subject_images=[picture(name) for name in ("red", "blue", "teal")])
        assert [each.reference for each in pipe(plan, output_type="latent").bindings[0]] == [1, 3]
        with pytest.raises(ValueError, match="'images 1 and 3' and comes with 2 reference"):
            a_plan(2, "images 1 and 3 on red")

    def test_every_prompt_has_its_own(self, pipe):
        cat, dog = Subject(picture("red"), name="cat"), Subject(picture("blue"), name="dog")
        bindings = pipe(["a cat", "a red ground", "a cat"], [[dog, cat], [cat], [cat]], output_type="latent").bindings
        assert [[each.reference for each in bound] for bound in bindings] == [[2], [], [1]]

    def test_encoded_subjects_keep_their_names(self, pipe, tmp_path):
        subject = pipe.encode_subjects([picture("blue"), Subject(picture("red"), name="cat")])
        subject.save(tmp_path / "subject.safetensors")
        loaded = type(subject).load(tmp_path / "subject.safetensors")
        assert loaded.names == subject.names == (None, "cat")
        assert pipe("a cat", loaded, output_type="latent").bindings[0][0].reference == 2

    def test_the_negative_prompt_calls_subjects_alike(self, pipe):
        cat = Subject(picture("red"), name="cat")
        options = {"guidance_scale": 2.0, "stages": "faithful"}
        named = painted(pipe, "a red ground", cat, negative_prompt="a cat", **options)
        told = painted(pipe, "a red ground", cat, negative_prompt="a cat of image 1", **options)
        plain = painted(pipe, "a red ground", picture("red"), negative_prompt="a cat", **options)
        assert torch.equal(named.images, told.images) and not torch.equal(named.images, plain.images)

    def test_before_anything_is_computed(self, pipe, monkeypatch):
        monkeypatch.setattr(pipe.mllm, "forward", None)
        with pytest.raises(ValueError, match="image 2"):
            pipe("image 2 on a hill", picture("red"))
