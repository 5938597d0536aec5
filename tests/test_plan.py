"""Plans as values: read from text, printed, edited, kept as JSON. All texts here are written by hand."""

import json

import numpy as np
import pytest

from subjectgen import Plan, PlanError, PlannedSubject
from subjectgen.reasoning.grammar import parse_plan

BEETLE = (
    "<subject>name: lady beetle; colours: red, black; box: 12 20 80 90; pose: upright; ground: white plain</subject>"
)
MUG = (
    "<subject>name: mug; colours: white; details: a chip on the rim, glazed; text: HELLO; box: 0 5 100 99; "
    "pose: tilted left; ground: wood</subject>"
)
DECIDED = (
    "<plan>scene: teal dotted; view: 1 of image 2 top left small; pose: image 2 upside down; changes: ground, pose; "
    "keeps: shape, colours</plan><prompt>small image 2 upside down in the top left; teal dots</prompt>"
)
ASKED = "the thing of image 2 on its head"

A_BEETLE = PlannedSubject(
    name="lady beetle", colours=("red", "black"), box=(12, 20, 80, 90), pose="upright", ground="white plain"
)
A_MUG = PlannedSubject(
    name="mug",
    colours=("white",),
    details="a chip on the rim, glazed",
    text="HELLO",
    box=(0, 5, 100, 99),
    pose="tilted left",
    ground="wood",
)
PLAN = Plan(
    subjects=(A_BEETLE, A_MUG),
    scene="teal dotted",
    view="1 of image 2 top left small",
    pose="image 2 upside down",
    changes="ground, pose",
    keeps="shape, colours",
    prompt="small image 2 upside down in the top left; teal dots",
    asked=ASKED,
)
PRINTED = """\
asked    the thing of image 2 on its head
image 1  lady beetle; red, black; box 12 20 80 90; upright; on white plain
image 2  mug; white; a chip on the rim, glazed; "HELLO"; box 0 5 100 99; tilted left; on wood
scene    teal dotted
view     1 of image 2 top left small
pose     image 2 upside down
changes  ground, pose
keeps    shape, colours
prompt   small image 2 upside down in the top left; teal dots"""
# sha256 of the five decisions, a line each, and of the prompt, by sha256sum: the first 16 digits
DECISIONS, PROMPT = "db8eda695634f7de", "30d3dbc2d8b816a9"
DICT = {
    "format": "subjectgen.Plan/2",
    "subjects": [
        {"name": "lady beetle", "colours": ["red", "black"], "box": [12, 20, 80, 90], "pose": "upright",
         "ground": "white plain", "details": "", "text": ""},
        {"name": "mug", "colours": ["white"], "box": [0, 5, 100, 99], "pose": "tilted left", "ground": "wood",
         "details": "a chip on the rim, glazed", "text": "HELLO"},
    ],
    "scene": "teal dotted",
    "view": "1 of image 2 top left small",
    "pose": "image 2 upside down",
    "changes": "ground, pose",
    "keeps": "shape, colours",
    "prompt": "small image 2 upside down in the top left; teal dots",
    "asked": ASKED,
    "written": {"decisions": DECISIONS, "prompt": PROMPT},
}  # fmt: skip


def test_text_is_read():
    assert parse_plan(BEETLE + MUG + DECIDED, 2, ASKED) == PLAN


def test_a_plan_of_nothing_seen_is_read():
    text = DECIDED.replace("image 2", "a cat")
    assert parse_plan(text, 0, ASKED).subjects == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "<subject> 1 of 2"),
        (BEETLE + DECIDED, "<subject> 2 of 2"),
        (BEETLE + MUG + MUG + DECIDED, "<plan>"),
        (BEETLE + MUG, "<plan>"),
        (BEETLE + MUG + DECIDED + " Done.", "nothing else"),
        (BEETLE + MUG + DECIDED.replace("; keeps: shape, colours", ""), "fields"),
        (BEETLE.replace("12 20 80 90", "80 20 12 90") + MUG + DECIDED, r"box=\(80, 20, 12, 90\)"),
        (BEETLE + MUG + DECIDED.replace("image 2 upside down in", "image 3 in"), "image 3"),
    ],
)
def test_other_text_is_refused_and_kept(text, words):
    with pytest.raises(PlanError, match=words) as refused:
        parse_plan(text, 2, ASKED)
    assert refused.value.written == text and repr(text) in str(refused.value)


def test_print():
    assert str(PLAN) == PRINTED


def test_json_is_what_it_should_be_and_comes_back():
    assert json.loads(PLAN.to_json()) == PLAN.to_dict() == DICT
    assert Plan.from_json(json.dumps(DICT)) == Plan.from_dict(DICT) == PLAN
    assert Plan.from_json(PLAN.replace(prompt="un café 茶").to_json()).prompt == "un café 茶"


def test_images_are_neither_compared_nor_printed_nor_written():
    shown = PLAN.replace(subject_images=["red.png", "mug.png"])
    assert shown == PLAN and hash(shown) == hash(PLAN) and str(shown) == PRINTED and "png" not in repr(shown)
    assert json.loads(shown.to_json()) == DICT
    assert shown.subject_images == ("red.png", "mug.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "subjectgen.Plan/0"}, r"Plan/0.*expected 'subjectgen.Plan/2'.*pipe.reason"),
        ({"format": None}, "None"),
        ({"sceen": "x"}, r"unknown \['sceen'\]"),
        ({"subjects": 3}, "subjects=3"),
        ({"subjects": ["mug"]}, "'mug'"),
        ({"subjects": [{"name": "mug"}]}, r"lacks \['box', 'colours'"),
        ({"subjects": [{**DICT["subjects"][0], "box": [0, 0, 101, 100]}]}, r"box=\(0, 0, 101, 100\).*percent"),
        ({"subjects": [{**DICT["subjects"][0], "box": [0, 0, 0.5, 1]}]}, "box="),
        ({"subjects": [{**DICT["subjects"][0], "box": None}]}, "box=None"),
        ({"subjects": [{**DICT["subjects"][0], "colours": "red"}]}, "colours='red'"),
        ({"subjects": DICT["subjects"][:1]}, "image 2.*1 reference"),
        ({"subjects": [{**DICT["subjects"][0], "colours": ["red", 7]}]}, "colours, number 2=7"),
        ({"scene": None}, "scene=None"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": "Image 0"}, "Image 0"),
        ({"scene": "red"}, "scene or view or .*teal dots.*Change the prompt as well"),
        ({"written": None}, "written=None"),
        ({"written": {"prompt": PROMPT}}, "written="),
    ],
)
def test_bad_dicts(change, words):
    with pytest.raises(ValueError, match=words):
        Plan.from_dict({**DICT, **change})


def test_edited_json_with_its_prompt_or_the_prompt_alone():
    edited = Plan.from_dict({**DICT, "scene": "red", "prompt": "small image 2 on red"})
    assert (edited.scene, edited.prompt) == ("red", "small image 2 on red")
    assert Plan.from_dict({**DICT, "prompt": "image 1"}).prompt == "image 1"
    with pytest.raises(ValueError, match="contradict itself"):  # an edited plan is written as what it is now
        Plan.from_dict({**edited.to_dict(), "view": "from above"})


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"plan"', "[" * 100_000], ids=lambda text: text[:6])
def test_bad_json(text):
    with pytest.raises(ValueError, match="a plan"):
        Plan.from_json(text)


def test_half_a_character():
    text = PLAN.to_json().replace('"teal dotted"', r'"teal \ud800"')
    with pytest.raises(ValueError, match=r"scene='teal \\ud800' holds half a character"):
        Plan.from_json(text)


class TestEdits:
    def test_the_prompt(self):
        edited = PLAN.replace(prompt="image 1 on red", scene="red")
        assert (edited.prompt, edited.scene, edited.view) == ("image 1 on red", "red", PLAN.view)
        assert PLAN.scene == "teal dotted"

    def test_one_subject(self):
        edited = PLAN.replace_subject(2, name="cup", box=(1, 2, 3, 4))
        assert edited.subjects[0] == A_BEETLE
        assert (edited.subjects[1].name, edited.subjects[1].box, edited.subjects[1].text) == (
            "cup",
            (1, 2, 3, 4),
            "HELLO",
        )

    def test_numbers_of_a_detector(self):
        edited = PLAN.replace_subject(np.int64(2), box=tuple(np.array([1, 2, 3, 4])))
        assert edited == PLAN.replace_subject(2, box=(1, 2, 3, 4))
        assert Plan.from_json(edited.to_json()) == edited

    @pytest.mark.parametrize("number", [0, 3, "1", 1.0, True])
    def test_of_a_subject_that_is_not_there(self, number):
        with pytest.raises(ValueError, match=f"subject {number!r}: expected a number from 1 to 2"):
            PLAN.replace_subject(number, name="cup")

    def test_decisions_that_contradict_the_prompt(self):
        with pytest.raises(ValueError, match=r"scene, view is changed.*teal dots.*Change the prompt as well"):
            PLAN.replace(view="from above", scene="red")
        assert PLAN.replace(scene="teal dotted") == PLAN
        with pytest.raises(ValueError, match="scene is changed"):
            PLAN.replace(scene="red", prompt=PLAN.prompt + " ")
        with pytest.raises(ValueError, match="contradict itself"):
            Plan.from_dict({**DICT, "scene": "red", "prompt": DICT["prompt"] + "\n"})

    def test_a_prompt_about_a_subject_that_is_not_there(self):
        with pytest.raises(ValueError, match="image 3"):
            PLAN.replace(prompt="image 3 on red")

    def test_a_box_that_is_none(self):
        with pytest.raises(ValueError, match=r"box=\(5, 5, 5, 9\).*left before right"):
            PLAN.replace_subject(1, box=(5, 5, 5, 9))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"prompt": None}, "prompt=None: expected words"),
            ({"scene": 3, "prompt": "red"}, "scene=3: expected words"),
            ({"subjects": [1, 2]}, r"subjects=\[1, 2\]: expected a tuple with a PlannedSubject"),
            ({"subjects": (A_BEETLE, 2)}, "expected a tuple with a PlannedSubject"),
            ({"subjects": (A_BEETLE,)}, "image 2.*1 reference"),
            ({"promt": "image 1"}, "a plan has no promt: expected any of .*prompt"),
            ({"written": {}}, "a plan has no written"),
        ],
    )
    def test_what_is_no_plan(self, change, words):
        with pytest.raises(ValueError, match=words):
            PLAN.replace(**change)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"colours": "red"}, "colours='red': expected a tuple"),
            ({"colours": ["red"]}, r"colours=\['red'\]: expected a tuple"),
            ({"colours": ("red", 7)}, "colours, number 2=7"),
            ({"name": None}, "name=None: expected words"),
            ({"nam": "cup"}, "a subject has no nam: expected any of name, colours"),
        ],
    )
    def test_what_is_no_subject(self, change, words):
        with pytest.raises(ValueError, match=words):
            PLAN.replace_subject(1, **change)


class TestStaleDecisions:
    """A prompt that was edited alone may say something else than the decisions that it was the sum of."""

    EDITED = PLAN.replace(prompt="image 1 on a teal ground")

    def test_none_as_written(self):
        assert PLAN.stale_decisions == {} == Plan.from_dict(DICT).stale_decisions
        assert PLAN.replace(subject_images=["a.png", "b.png"], asked="x").stale_decisions == {}

    def test_all_of_a_prompt_that_was_edited(self):
        decisions = {name: DICT[name] for name in ("scene", "view", "pose", "changes", "keeps")}
        assert self.EDITED.stale_decisions == decisions
        assert Plan.from_dict({**DICT, "prompt": "image 1"}).stale_decisions == decisions
        assert self.EDITED.replace_subject(1, name="bug").stale_decisions == decisions

    def test_they_stay_so_as_json(self):
        assert Plan.from_json(self.EDITED.to_json()).stale_decisions == self.EDITED.stale_decisions
        again = Plan.from_dict({**self.EDITED.to_dict(), "scene": "teal plain"})
        assert again.stale_decisions == {} and Plan.from_json(again.to_json()).stale_decisions == {}

    def test_none_where_decisions_were_given_with_it_or_after(self):
        assert PLAN.replace(prompt="image 1 on red", scene="red").stale_decisions == {}
        after = self.EDITED.replace(scene="teal plain")
        assert (after.scene, after.prompt, after.stale_decisions) == ("teal plain", self.EDITED.prompt, {})
        assert self.EDITED.replace(view=PLAN.view).stale_decisions == {}  # the old one still holds
        assert after.replace(prompt="image 1 on red").stale_decisions["scene"] == "teal plain"

    def test_none_where_the_prompt_is_what_it_was(self):
        assert self.EDITED.replace(prompt=PLAN.prompt).stale_decisions == {}
        assert PLAN.replace(prompt=f" {PLAN.prompt}\n").stale_decisions == {}
