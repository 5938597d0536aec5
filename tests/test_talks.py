"""What mini's MLLM is taught to see, to plan, to answer and to judge: read and solved here by other means."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from prompt_reader import understood
from tiny_subjects import blob, quarters, subjects_from

from subjectgen.data.indirect import riddle
from subjectgen.data.plans import direct, plan
from subjectgen.data.render import Look, ReferencePose, Renderer
from subjectgen.data.sightings import POSES_SEEN, Sighting, overlap, sighting
from subjectgen.data.talks import Painted, corpus, judgement_talk, plan_talk, question_talk, random_painted
from subjectgen.data.world import COLOURS, PATTERNS, PLACES, SIDE, Ground, Placement, Scene, random_scene

NAMES = ("brick", "teapot", "lemon")


@pytest.fixture(scope="module")
def renderer():
    red = Image.new("RGBA", (80, 80), (*COLOURS["red"], 255))
    return Renderer(subjects_from(brick=red, quarters=quarters(), blob=blob(3)))


def random_sightings(rng, count):
    seen = []
    for name in NAMES[:count]:
        left, top = (int(edge) for edge in rng.integers(0, 60, 2))
        box = (left, top, left + int(rng.integers(20, 41)), top + int(rng.integers(20, 41)))
        colours = tuple(rng.permutation(list(COLOURS))[: rng.integers(1, 4)].tolist())
        ground = Ground(colour=str(rng.choice(list(COLOURS))), pattern=str(rng.choice(PATTERNS)))
        seen.append(Sighting(name=name, colours=colours, box=box, pose=str(rng.choice(POSES_SEEN)), ground=ground))
    return seen


def place_of(box):
    """Of 3 x 3 places, where the middle of a box is."""
    column, row = ((box[axis] + box[axis + 2]) / 2 for axis in (0, 1))
    names = ("top", "", "bottom")[int(row // 33.5)], ("left", "", "right")[int(column // 33.5)]
    return " ".join(filter(None, names)) or "middle"


class TestSightings:
    def test_words_are_what_is_to_be_seen(self, renderer):
        pose = ReferencePose(scale=0.5, x=0.5, y=-0.5)
        words = "name: brick; colours: red; box: 50 0 100 50; pose: upright; ground: white plain"
        assert sighting(renderer, Look(subject=0), pose).words() == words

    @pytest.mark.parametrize(
        ("degrees", "words"),
        [(9, "upright"), (187, "upside down"), (-172, "upside down"), (43, "tilted left"), (-30, "tilted right")],
    )
    def test_how_it_stands(self, renderer, degrees, words):
        assert sighting(renderer, Look(subject=0), ReferencePose(degrees=float(degrees))).pose == words

    def test_tilted_left_leans_left(self, renderer):
        """The red quarter, top left when upright, comes to lie at the bottom left after a quarter turn to the left."""
        turned = renderer.references([Look(subject=1)], [ReferencePose(degrees=90.0, scale=0.9)])[0]
        red = (turned[0] > 0.8) & (turned[1] < -0.8) & (turned[2] < -0.8)
        rows, columns = torch.nonzero(red, as_tuple=True)
        assert rows.float().mean() > SIDE / 2 > columns.float().mean()
        assert sighting(renderer, Look(subject=1), ReferencePose(degrees=90.0)).pose == "tilted left"

    def test_a_look_has_colours_of_its_own(self, renderer):
        assert sighting(renderer, Look(subject=0), ReferencePose()).colours == ("red",)
        green = Renderer(subjects_from(brick=Image.new("RGBA", (80, 80), (230, 0, 0, 255))))
        assert sighting(green, Look(subject=0, hue=120.0), ReferencePose()).colours == ("green",)
        four = sighting(renderer, Look(subject=1), ReferencePose()).colours
        assert set(four) < {"red", "green", "blue", "white"} and len(four) == 3

    def test_a_ground_is_painted_and_told(self, renderer):
        ground = Ground(colour="teal", pattern="hills")
        pose = ReferencePose(scale=0.3, ground=ground)
        (picture,) = renderer.references([Look(subject=0)], [pose])
        (empty,) = renderer.scenes([Scene(ground=ground)], [[]])
        corner = slice(0, SIDE // 4)
        torch.testing.assert_close(picture[:, corner, corner], empty[:, corner, corner])
        assert sighting(renderer, Look(subject=0), pose).words().endswith("ground: teal hills")

    def test_a_second_thing_stands_away_from_the_subject(self, renderer):
        pose = ReferencePose(scale=0.4, x=0.5, y=0.5, beside=Look(subject=0, hue=120.0))
        (picture,) = renderer.references([Look(subject=0)], [pose])
        other = (picture[1] > picture[0] + 0.3).nonzero().float().mean(0)
        assert (other < SIDE / 2).all()
        assert sighting(renderer, Look(subject=0), pose).box == (55, 55, 95, 95)

    def test_overlap_counts_squares(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            masks, boxes = np.zeros((2, 100, 100), bool), []
            for mask in masks:
                (left, right), (top, bottom) = (sorted(rng.choice(101, 2, replace=False).tolist()) for _ in "xy")
                mask[top:bottom, left:right] = True
                boxes.append((left, top, right, bottom))
            assert overlap(*boxes) == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())

    @pytest.mark.parametrize("place", PLACES)
    def test_places(self, place):
        row, column = divmod(PLACES.index(place), 3)
        box = (column * 33, row * 33, column * 33 + 33, row * 33 + 33)
        seen = Sighting(name="x", colours=("red",), box=box, pose="upright", ground=Ground(colour="white"))
        assert seen.place == place == place_of(box)


def parts(text):
    """(tag, fields or text) of everything in a plan's text; nothing may stand between."""
    found = re.findall(r"<(\w+)>(.*?)</\1>", text)
    assert "".join(f"<{tag}>{body}</{tag}>" for tag, body in found) == text
    return [
        (tag, body if tag == "prompt" else dict(field.split(": ", 1) for field in body.split("; ")))
        for tag, body in found
    ]


def view_of(words):
    """`1 of image 2 top left small` => image, number, place, size."""
    number, image, place, size = re.fullmatch(r"(\d) of image (\d) (.+) (\w+)", words).groups()
    return int(image), int(number), place, size


class TestPlans:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_a_plan_says_what_the_scene_is(self, count):
        rng = np.random.default_rng(count)
        for _ in range(100):
            seen, scene = random_sightings(rng, count), random_scene(rng, count)
            *subjects, (tag, decided), (last, prompt) = parts(plan(scene, seen, range(1, count + 1)))
            assert (tag, last) == ("plan", "prompt")
            for (_, told), each in zip(subjects, seen, strict=True):
                assert told["colours"].split(", ") == list(each.colours)
                assert [int(edge) for edge in told["box"].split()] == list(each.box)
                assert (told["name"], told["pose"]) == (each.name, each.pose)
                assert told["ground"].split() == [each.ground.colour, each.ground.pattern]
            assert decided["scene"].split() == [scene.ground.colour, scene.ground.pattern]
            stands = [(k, p.number, p.place, p.size) for k, p in enumerate(scene.placements, start=1)]
            assert [view_of(words) for words in decided["view"].split(", ")] == stands
            poses = dict(re.fullmatch(r"image (\d) (.+)", words).groups() for words in decided["pose"].split(", "))
            assert poses == {str(k): p.pose for k, p in enumerate(scene.placements, start=1)}
            assert decided["changes"] == self.changed(scene, seen)
            if count == 1:
                assert understood(prompt) == scene and "image 1" in prompt

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_every_ground_has_its_colour_after_one_word(self, pattern):
        rng = np.random.default_rng(1)
        scene = replace(random_scene(rng, 1), ground=Ground(colour="teal", pattern=pattern))
        assert re.search(r" on a teal [a-z ]+$", direct(scene, (1,)))

    def changed(self, scene, seen):
        pairs = list(zip(scene.placements, seen, strict=True))
        changes = [
            ("ground", any(each.ground != scene.ground for each in seen)),
            ("place", any(placement.place != place_of(each.box) for placement, each in pairs)),
            ("pose", any(placement.pose != each.pose for placement, each in pairs)),
            ("number", any(placement.number > 1 for placement, _ in pairs)),
        ]
        return ", ".join(name for name, is_changed in changes if is_changed) or "nothing"

    def test_one_of_two_references(self):
        rng = np.random.default_rng(0)
        seen, scene = random_sightings(rng, 2), random_scene(rng, 1)
        told = parts(plan(scene, seen, (2,)))
        assert [tag for tag, _ in told] == ["subject", "subject", "plan", "prompt"]
        assert "image 2" in told[-1][1] and "image 1" not in str(told[-2:])

    def test_several_in_the_prompt(self):
        placements = (
            Placement(place="top left", size="small", pose="mirrored"),
            Placement(place="right", size="small"),
        )
        scene = Scene(ground=Ground(colour="teal", pattern="dotted"), placements=placements)
        prompt = parts(plan(scene, random_sightings(np.random.default_rng(0), 2), (1, 2)))[-1][1]
        assert (
            prompt
            == "small image 1 mirrored in the top left and small image 2 on the right on a teal dotted background"
        )


# The solver: what each indirect phrase means, in direct words, of the references and the one that is to be painted.
OPPOSITE = {frozenset(pair) for pair in (("red", "green"), ("orange", "blue"), ("yellow", "purple"), ("teal", "pink"),
                                         ("black", "white"), ("brown", "gray"))}  # fmt: skip
KNOWN = {
    "blood": "red", "ripe tomatoes": "red", "a fire engine": "red", "carrots": "orange", "a pumpkin": "orange",
    "tangerines": "orange", "lemons": "yellow", "a banana": "yellow", "the sun": "yellow", "grass": "green",
    "spring leaves": "green", "a frog": "green", "a lagoon": "teal", "tropical water": "teal", "the deep sea": "blue",
    "a clear evening sky": "blue", "blueberries": "blue", "violets": "purple", "an aubergine": "purple",
    "lavender": "purple", "a flamingo": "pink", "a piglet": "pink", "cherry blossom": "pink", "chocolate": "brown",
    "coffee": "brown", "tree bark": "brown", "coal": "black", "a moonless night": "black", "tar": "black",
    "ashes": "gray", "concrete": "gray", "rain clouds": "gray", "snow": "white", "milk": "white",
    "fresh linen": "white",
}  # fmt: skip
GROUND = {"plain": "{}", "striped": "{} stripes", "checkered": "{} checks", "dotted": "{} dots",
          "gradient": "{} gradient", "hills": "{} hills", "room": "{} room"}  # fmt: skip
POSE = {"upright": "", "upside down": "upside down", "tilted left": "leaning left", "tilted right": "leaning right"}
MANY = {1: "", 2: "two of", 3: "three of"}
TURNED = {"upright": "upside down", "upside down": ""}


def opposite(colour):
    (pair,) = (pair for pair in OPPOSITE if colour in pair)
    return next(iter(pair - {colour}))


def ground_of(seen):
    return GROUND[seen.ground.pattern].format(seen.ground.colour)


SOLUTIONS = {
    "the colour opposite to its own": lambda seen, own, k: opposite(own.colours[0]),
    "the opposite of its main colour": lambda seen, own, k: opposite(own.colours[0]),
    "its own main colour": lambda seen, own, k: own.colours[0],
    "a ground of its own colour": lambda seen, own, k: own.colours[0],
    r"the ground of image (\d)": lambda seen, own, k: ground_of(seen[int(k) - 1]),
    "its own ground": lambda seen, own, k: ground_of(own),
    r"what is behind the thing of image (\d)": lambda seen, own, k: ground_of(seen[int(k) - 1]),
    f"the colour of ({'|'.join(KNOWN)})": lambda seen, own, thing: KNOWN[thing],
    "in the place where it is in its picture": lambda seen, own, k: place_of(own.box),
    "where it stands in its own picture": lambda seen, own, k: place_of(own.box),
    "where the sky would be": lambda seen, own, k: "top",
    "under the ceiling": lambda seen, own, k: "top",
    "where the floor would be": lambda seen, own, k: "bottom",
    "at our feet": lambda seen, own, k: "bottom",
    "standing as in its picture": lambda seen, own, k: POSE[own.pose],
    "turned as it is in its picture": lambda seen, own, k: POSE[own.pose],
    "the other way up than in its picture": lambda seen, own, k: TURNED[own.pose],
    "turned over from how it is shown": lambda seen, own, k: TURNED[own.pose],
    "as many of it as it has colours": lambda seen, own, k: MANY[len(own.colours)],
    "one of it for each of its colours": lambda seen, own, k: MANY[len(own.colours)],
    "as many of it as there are pictures": lambda seen, own, k: MANY[len(seen)],
    "one of it for every picture given": lambda seen, own, k: MANY[len(seen)],
}


def solved(text, seen, shown):
    """The scene that a riddle asks for, and which phrases it was solved by."""
    used = []
    for phrase, solve in SOLUTIONS.items():
        if found := re.search(phrase, text):
            used.append(phrase)
            direct = solve(seen, seen[shown - 1], found[1] if found.groups() else None)
            text = text.replace(found[0], direct)
    return understood(text), used, text


class TestRiddles:
    def test_solved_independently(self):
        rng, used = np.random.default_rng(0), set()
        for index in range(600):
            seen = random_sightings(rng, 1 + index % 3)
            asked = riddle(rng, seen)
            scene, phrases, direct = solved(asked.text, seen, asked.shown)
            assert scene == asked.scene, (asked.text, direct)
            assert 1 <= len(phrases) <= 2 and re.findall(r"image (\d)", direct) == [str(asked.shown)]
            used |= set(phrases)
        assert used == set(SOLUTIONS)


class TestTalks:
    def test_plans_of_requests_and_riddles(self):
        rng, indirect = np.random.default_rng(0), 0
        for _ in range(300):
            seen = random_sightings(rng, 1)
            talk = plan_talk(rng, seen)
            scene, phrases, _ = solved(talk.user, seen, 1)
            indirect += bool(phrases)
            assert understood(parts(talk.answer)[-1][1]) == scene
        assert 0.3 < indirect / 300 < 0.5

    def test_questions_are_answered_by_what_is_seen(self):
        rng, kinds = np.random.default_rng(0), set()
        for _ in range(200):
            seen = random_sightings(rng, 2)
            talk = question_talk(rng, seen)
            (number,) = re.findall(r"image (\d)", talk.user)
            each, kind = seen[int(number) - 1], talk.user.replace(number, "k")
            kinds.add(kind)
            assert (
                talk.answer
                == {
                    "What is in image k?": each.name,
                    "Which colours has image k?": ", ".join(each.colours),
                    "Where is the subject of image k?": "box {} {} {} {}".format(*each.box),
                    "How does image k stand?": each.pose,
                    "What is the ground of image k?": f"{each.ground.colour} {each.ground.pattern}",
                    "Describe image k.": each.words(),
                }[kind]
            )
        assert len(kinds) == 6

    def test_judgements(self):
        """Yes if and only if the picture is what is asked in that respect; both answers to every question."""
        rng, answers = np.random.default_rng(0), set()
        for _ in range(600):
            count = int(rng.integers(1, 4))
            painted, references = random_painted(rng, count), random_sightings(rng, count)
            talk = judgement_talk(rng, painted, references)
            wrong = self.departures(painted)
            assert f"image {count + 1}" in talk.user
            if talk.user.startswith("What are scene and view"):
                ground, seen = painted.shows.ground, enumerate(painted.shows.placements, start=1)
                view = ", ".join(f"{p.number} of image {k} {p.place} {p.size}" for k, p in seen)
                shows = f"scene: {ground.colour} {ground.pattern}; view: {view}"
                assert talk.answer == f"{shows}; departs: {', '.join(wrong) or 'nothing'}"
                answers.add(("departs", bool(wrong)))
                continue
            respect = "subject" if "Does" in talk.user else re.findall("scene|view|pose", talk.user)[0]
            assert talk.answer == ("no" if respect in wrong else "yes"), talk
            answers.add((respect, talk.answer))
        assert len(answers) == 10

    def departures(self, painted: Painted):
        stands = [[(p.place, p.size, p.number) for p in each.placements] for each in (painted.asked, painted.shows)]
        poses = [[p.pose for p in each.placements] for each in (painted.asked, painted.shows)]
        different = {
            "subject": not painted.same_subject,
            "scene": painted.asked.ground != painted.shows.ground,
            "view": stands[0] != stands[1],
            "pose": poses[0] != poses[1],
        }
        return [respect for respect, is_other in different.items() if is_other]

    def test_the_tokenizers_corpus_names_everything(self):
        lines = corpus(NAMES, size=50)
        assert lines[:3] == list(NAMES) and len(lines) == 3 + 2 * 50
        assert all(parts(answer) for answer in lines[4::2])
