"""The reasoning benchmark: the truth is read and painted perfectly, and each kind of mistake costs what it should."""

import json

import pytest
from tiny_pipeline import reasoning_pipeline, shorten_plans
from tiny_subjects import cutout_folder

from subjectgen import Plan, PlannedSubject
from subjectgen.data.world import COLOURS, PLACES
from subjectgen.evaluate import emoji
from subjectgen.evaluate.reasoning import ReasoningBenchmark, evaluate, read_by


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=3, unseen=emoji.NUM_SUBJECTS)


@pytest.fixture(scope="module")
def benchmark(folder):
    return ReasoningBenchmark(6, 12, folder)


def said(sighting, **changes):
    values = {"name": sighting.name, "colours": sighting.colours, "box": sighting.box, "pose": sighting.pose}
    return PlannedSubject(**{**values, "ground": "white plain", **changes})


def test_what_is_read(benchmark):
    case = benchmark.cluttered[0]
    (true,) = seen = benchmark.seen(case.looks, case.poses)
    words = dict.fromkeys(("scene", "view", "pose", "changes", "keeps", "asked"), "x")
    wrong = next(colour for colour in COLOURS if colour != true.colours[0])
    for subject, expected in (
        (said(true), (True, True, 1.0)),
        (said(true, colours=(wrong, *true.colours)), (False, True, 1.0)),
        (said(true, pose="sideways"), (True, False, 1.0)),
        (said(true, box=(0, 0, 1, 1)), (True, True, pytest.approx(0.0, abs=0.01))),
    ):
        (read,) = read_by(Plan(subjects=(subject,), prompt="image 1", **words), seen)
        assert (read.colour, read.pose, read.box_iou) == expected and read.turned == (true.pose != "upright")


def test_references_are_cluttered(benchmark):
    for case in benchmark.cluttered:
        (box,), (pose,) = [each.box for each in benchmark.seen(case.looks, case.poses)], case.poses
        assert pose.ground is not None and pose.beside is not None
        assert not box[0] <= 50 - 10 <= 50 + 10 <= box[2] or not box[1] <= 40 <= 60 <= box[3]


def rendered(benchmark, question, scene):
    return benchmark.renderer.scenes([scene], [[question.looks[question.riddle.shown - 1]]])[0]


def test_the_truth_is_right_and_other_scenes_are_not(benchmark):
    for question in benchmark.questions:
        scene = question.riddle.scene
        assert benchmark.scene_right(question, rendered(benchmark, question, scene))
        colour = next(name for name in COLOURS if name != scene.ground.colour)
        assert not benchmark.scene_right(question, rendered(benchmark, question, scene.with_colour(colour)))
        if scene.placements[0].number == 1:
            place = next(name for name in PLACES if name != scene.placements[0].place)
            assert not benchmark.scene_right(question, rendered(benchmark, question, scene.with_place(place)))


def test_end_to_end(folder, tmp_path, monkeypatch):
    """Random weights: every plan parses, hardly anything is right, and all files are there."""
    shorten_plans(monkeypatch)
    means = evaluate(reasoning_pipeline(image_size=128), 2, 3, tmp_path, folder)
    assert means["reading"]["plan"]["parsed"].mean == 1 and means["indirect"]["with a plan"]["scene"].count == 3
    assert list(means["clutter"]) == ["whole reference", "planned box"]
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["parts"]["reading"]["plan"]["parsed"]["mean"] == 1
    assert (tmp_path / "sheet.png").exists() and (tmp_path / "report.html").exists()
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    references = 2 + sum(len(question.looks) for question in ReasoningBenchmark(2, 3, folder).questions)
    assert sum(line["part"] == "reading" for line in lines) == means["reading"]["plan"]["colour"].count == references
    assert len(lines) == references + 2 * 2 + 2 * 3 and len({line["model"] for line in lines}) == 1
