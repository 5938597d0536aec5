"""What mini's MLLM learns to answer: plans of requests, questions about references, and judgements of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from subjectgen.data.indirect import riddle
from subjectgen.data.more_words import WORDINGS
from subjectgen.data.plans import decisions, plan, pose_words, view_words
from subjectgen.data.prompts import request
from subjectgen.data.sightings import Sighting, ground_words
from subjectgen.data.world import COLOURS, PATTERNS, Ground, Scene, choice, random_count, random_scene
from subjectgen.reasoning.questions import (
    NO,
    YES,
    departures_answer,
    departures_question,
    pose_question,
    scene_question,
    subject_question,
    view_question,
)

SHARE_OF_RIDDLES = 0.4  # of plans: requests that must be thought about
SHARE_OF_HARDER = 0.6  # of questions: about colours and pose, which heads on the same tokens know better than words do
SHARE_OF_DEPARTURES = 0.6  # of judgements: what is seen, and what departs; the others are answered by yes or no


@dataclass(frozen=True, kw_only=True)
class Talk:
    """One exchange with the MLLM."""

    user: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, and what it means: the scene, and for each of its placements which reference stands there."""

    text: str
    scene: Scene
    shown: tuple[int, ...]  # counted from 1


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A picture that is to be judged: what it should have shown and what it shows."""

    asked: Scene
    shows: Scene
    same_subject: bool  # the first one is


def random_asked(rng: np.random.Generator, seen: Sequence[Sighting]) -> Asked:
    """A request about these references, direct or not."""
    if rng.random() < SHARE_OF_RIDDLES:
        drawn = riddle(rng, seen)
        return Asked(text=drawn.text, scene=drawn.scene, shown=(drawn.shown,))
    scene = random_scene(rng, len(seen))
    text = request(rng, scene, [each.name for each in seen], choice(rng, WORDINGS))
    return Asked(text=text, scene=scene, shown=tuple(range(1, len(seen) + 1)))


def plan_talk(rng: np.random.Generator, seen: Sequence[Sighting]) -> Talk:
    """A request and its plan."""
    drawn = random_asked(rng, seen)
    return Talk(user=drawn.text, answer=plan(drawn.scene, seen, drawn.shown))


def question_talk(rng: np.random.Generator, seen: Sequence[Sighting]) -> Talk:
    """A question about one of the references."""
    which = int(rng.integers(len(seen)))
    name, each = f"image {which + 1}", seen[which]
    harder = (
        Talk(user=f"Which colours has {name}?", answer=", ".join(each.colours)),
        Talk(user=f"How does {name} stand?", answer=each.pose),
    )
    others = (
        Talk(user=f"What is in {name}?", answer=each.name),
        Talk(user=f"Where is the subject of {name}?", answer="box " + " ".join(map(str, each.box))),
        Talk(user=f"What is the ground of {name}?", answer=ground_words(each.ground)),
        Talk(user=f"Describe {name}.", answer=each.words()),
    )
    return choice(rng, harder if rng.random() < SHARE_OF_HARDER else others)


def random_painted(rng: np.random.Generator, count: int = 1) -> Painted:
    """A picture of so many subjects that is right half of the time in each respect."""
    asked = random_scene(rng, count)
    shows = asked
    if rng.random() < 0.4:
        shows = replace(shows, ground=random_scene(rng, 1).ground)
    if rng.random() < 0.4:
        shows = replace(shows, placements=random_scene(rng, count).placements)
    return Painted(asked=asked, shows=shows, same_subject=rng.random() < 0.6)


def judgement_talk(rng: np.random.Generator, painted: Painted, references: Sequence[Sighting]) -> Talk:
    """A question about a picture, the last image, which was painted after the plan of a request about the others."""
    asked, shows, wrong = painted.asked, painted.shows, departures(painted)
    picture, shown = len(references) + 1, tuple(range(1, len(references) + 1))
    if rng.random() < SHARE_OF_DEPARTURES:
        user = departures_question(decisions(asked, references, shown), picture)
        return Talk(user=user, answer=departures_answer(ground_words(shows.ground), view_words(shows, shown), wrong))
    questions = (
        (subject_question(references[0].name, reference=1, picture=picture), "subject"),
        (scene_question(ground_words(asked.ground), picture), "scene"),
        (view_question(view_words(asked, shown), picture), "view"),
        (pose_question(pose_words(asked, shown), picture), "pose"),
    )
    text, respect = choice(rng, questions)
    return Talk(user=text, answer=NO if respect in wrong else YES)


def departures(painted: Painted) -> list[str]:
    """In which respects a picture is not what was asked for."""
    asked, shows = painted.asked, painted.shows
    shown = range(1, len(asked.placements) + 1)
    differs = {
        "subject": not painted.same_subject,
        "scene": asked.ground != shows.ground,
        "view": view_words(asked, shown) != view_words(shows, shown),
        "pose": pose_words(asked, shown) != pose_words(shows, shown),
    }
    return [respect for respect, other in differs.items() if other]


def corpus(names: tuple[str, ...], seed: int = 0, size: int = 4000) -> list[str]:
    """Sentences for the tokenizer."""
    rng = np.random.default_rng(seed)
    lines = list(names)
    for _ in range(size):
        seen = [random_sighting(rng, names) for _ in range(random_count(rng))]
        talk = plan_talk(rng, seen)
        lines += [talk.user, talk.answer]
    return lines


def random_sighting(rng: np.random.Generator, names: tuple[str, ...]) -> Sighting:
    """Words that might describe a reference."""
    left, top, right, bottom = rng.integers(0, 101, size=4).tolist()
    colours = rng.permutation(list(COLOURS))[: 1 + int(rng.integers(3))].tolist()
    ground = Ground(colour=choice(rng, tuple(COLOURS)), pattern=choice(rng, PATTERNS))
    box, pose = (left, top, right, bottom), choice(rng, ("upright", "upside down", "tilted left", "tilted right"))
    return Sighting(name=choice(rng, names), colours=tuple(colours), box=box, pose=pose, ground=ground)
