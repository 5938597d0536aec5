"""The reasoning benchmark: the truth is read and painted perfectly, and each kind of mistake costs what it should."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_pipeline import reasoning_pipeline, shorten_plans
from tiny_subjects import cutout_folder

from subjectgen import PlannedSubject, SubjectPipeline
from subjectgen.data import plans
from subjectgen.data.indirect import with_placement
from subjectgen.data.world import COLOURS, PLACES, POSES, ROWS
from subjectgen.evaluate import emoji
from subjectgen.evaluate.cases import Shard
from subjectgen.evaluate.generation import Settings
from subjectgen.evaluate.plan_scores import decision_scores, f1, read_scores
from subjectgen.evaluate.reasoning import ReasoningBenchmark
from subjectgen.evaluate.reasoning_run import Order, evaluate, plan_lines
from subjectgen.reasoning.grammar import parse_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=3, unseen=emoji.NUM_SUBJECTS)


@pytest.fixture(scope="module")
def benchmark(folder):
    return ReasoningBenchmark(6, 12, folder)


def said(sighting, **changes):
    values = {"name": sighting.name, "colours": sighting.colours, "box": sighting.box, "pose": sighting.pose}
    return PlannedSubject(**{**values, "ground": "white plain", **changes})


def true_plan(benchmark, case):
    """What mini is taught to write of it."""
    scene, shown = benchmark.meant(case)
    seen = benchmark.seen(case)
    return parse_plan(plans.plan(scene, seen, shown), len(seen), case.prompt)


def test_what_is_read(benchmark):
    case = benchmark.cluttered[0]
    (true,) = benchmark.seen(case)
    wrong = next(colour for colour in COLOURS if colour not in true.colours)
    small = pytest.approx(0.0, abs=0.01)
    doubled = 2 * len(true.colours) / (2 * len(true.colours) + 1)
    for subject, colour, colours, pose, box in (
        (said(true), 1, 1, 1, 1),
        (said(true, colours=(wrong, *true.colours)), 0, pytest.approx(doubled), 1, 1),
        (said(true, colours=(wrong,)), 0, 0, 1, 1),
        (said(true, pose="sideways"), 1, 1, 0, 1),
        (said(true, box=(0, 0, 1, 1)), 1, 1, 1, small),
    ):
        scores = read_scores(subject, true)
        assert [scores[name] for name in ("colour", "colours", "seen_pose", "box_iou")] == [colour, colours, pose, box]
        assert scores.get("turned_pose") == (None if true.pose == "upright" else pose)


def test_colour_words():
    """By hand: one of two said words is true, one of three true words is said."""
    assert f1(("red", "blue"), ("red", "green", "black")) == pytest.approx(2 * 1 / 5)
    assert f1(("blue", "red", "red"), ("red", "blue")) == 1 and f1(("red",), ("blue",)) == 0


def test_what_is_decided(benchmark):
    """Each decision by itself, of direct and of indirect requests; no plan decides nothing."""
    for case in benchmark.cases:
        scene, shown = benchmark.meant(case)
        plan = true_plan(benchmark, case)
        right = dict.fromkeys(("planned_scene", "planned_view", "planned_pose", "planned_prompt"), 1.0)
        assert decision_scores(plan, scene, shown) == right
        for name in ("scene", "view", "pose"):
            wrong = plan.replace(**{name: "something else", "prompt": "a red ground"})
            assert decision_scores(wrong, scene, shown) == {**right, f"planned_{name}": 0.0, "planned_prompt": 0.0}
        colour = next(each for each in COLOURS if each != scene.ground.colour)
        otherwise = plan.replace(prompt=plan.prompt.replace(f" {scene.ground.colour}", f" {colour}"))
        assert decision_scores(otherwise, scene, shown) == {**right, "planned_prompt": 0.0}
        assert decision_scores(None, scene, shown) == dict.fromkeys(right, 0.0)
        other = next(pose for pose in POSES if pose != scene.placements[0].pose)
        assert decision_scores(plan, with_placement(scene, pose=other), shown)["planned_pose"] == 0


def test_lines_are_about_the_subject_that_is_read(benchmark):
    """Intervals are over subjects: the second reference is another one than the first."""
    case = next(case for case in benchmark.questions if len(case.looks) == 2)
    decided, *read = plan_lines(benchmark, case, true_plan(benchmark, case))
    assert [line["subject"] for line in read] == [each.name for each in benchmark.seen(case)]
    assert decided["scores"]["parsed"] == 1 and decided["subject"] == case.subject
    assert all(line["scores"]["colours"] == line["scores"]["box_iou"] == 1 for line in read)
    (nothing,) = plan_lines(benchmark, case, None)
    planned = ("planned_scene", "planned_view", "planned_pose", "planned_prompt")
    assert nothing["scores"] == dict.fromkeys(("parsed", *planned), 0.0)


def test_further_requests_change_no_earlier_ones(benchmark, folder):
    fewer = ReasoningBenchmark(2, 5, folder)
    assert (fewer.cluttered, fewer.questions) == (benchmark.cluttered[:2], benchmark.questions[:5])


def test_references_are_cluttered(benchmark):
    for case in benchmark.cluttered:
        (box,), (pose,) = [each.box for each in benchmark.seen(case)], case.poses
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
        meant = scene.placements[0]
        place = next(name for name in (ROWS if meant.number > 1 else PLACES) if name != meant.place)
        assert not benchmark.scene_right(question, rendered(benchmark, question, scene.with_place(place)))
        row = replace(meant, place=ROWS[PLACES.index(meant.place) // 3], size="small", number=meant.number % 3 + 1)
        other = replace(scene, placements=(row,))
        assert not benchmark.scene_right(question, rendered(benchmark, question, other))
    assert {question.riddle.scene.placements[0].number for question in benchmark.questions} > {1}


@pytest.fixture(scope="module")
def small(folder):
    return ReasoningBenchmark(2, 3, folder)


@pytest.fixture(scope="module")
def pipe():
    return reasoning_pipeline(image_size=128, num_inference_steps=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small, pipe):
    """A run in one go, and its means."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shorten_plans(patch)
        return out, evaluate(small, out, Order(model="tiny", command="it"), lambda: pipe)


class TestRun:
    """Random weights: every plan parses, hardly anything is right."""

    @pytest.fixture(autouse=True)
    def short_plans(self, monkeypatch):
        shorten_plans(monkeypatch)

    def test_all_files_are_there(self, whole, small):
        out, means = whole
        assert means["deciding"]["direct requests"]["parsed"].mean == 1
        assert means["deciding"]["indirect requests"]["planned_pose"].count == 3
        assert means["indirect"]["with a plan"]["scene"].count == 3
        assert list(means["clutter"]) == ["whole reference", "planned box"]
        table = json.loads((out / "table.json").read_text())
        assert table["parts"]["deciding"]["direct requests"]["parsed"]["mean"] == 1 and table["command"] == "it"
        assert (out / "sheet.png").exists() and (out / "report.html").exists()
        lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
        references = sum(len(case.looks) for case in small.cases)
        assert sum(line["part"] == "reading" for line in lines) == references
        assert len(lines) == references + 5 + 2 * 5 and len({line["model"] for line in lines}) == 1

    def test_stopped_and_gone_on_with_in_shards(self, whole, small, pipe, tmp_path, monkeypatch):
        """The first shard is stopped after its plans; nothing that is there is made again, all figures are the same."""
        out, means = whole
        first, second = (Order(model="tiny", phase="paint", shard=Shard(index=k, count=2)) for k in (1, 2))
        with monkeypatch.context() as patch:
            patch.setattr("subjectgen.evaluate.reasoning_run.paint", stop)
            with pytest.raises(KeyboardInterrupt):
                evaluate(small, tmp_path, first, lambda: pipe)
        with pytest.raises(FileNotFoundError, match=r"12 of 15 plans and pictures lack.*--phase paint"):
            evaluate(small, tmp_path, Order(phase="score"), stop)
        asked, stock = [], SubjectPipeline.reason
        monkeypatch.setattr(SubjectPipeline, "reason", lambda self, p, *rest: asked.extend(p) or stock(self, p, *rest))
        for order in (first, second, first):
            assert evaluate(small, tmp_path, order, lambda: pipe) == {}
        assert asked == [case.prompt for case in small.cases[1::2]]
        assert evaluate(small, tmp_path, Order(phase="score"), stop) == means
        assert (tmp_path / "scores.jsonl").read_text() == (out / "scores.jsonl").read_text()

    def test_a_request_without_a_plan(self, whole, small, pipe, tmp_path, monkeypatch):
        """It counts as wrong, and is painted as it was asked for."""
        stock = SubjectPipeline.reason
        monkeypatch.setattr(SubjectPipeline, "reason", lambda self, *given: stock(self, *given, max_new_tokens=5))
        means = evaluate(small, tmp_path, Order(), lambda: pipe)
        assert means["deciding"]["direct requests"]["parsed"].mean == 0 and "reading" not in means
        pictures = tmp_path / "pictures"
        for case in small.questions:
            same = [(pictures / way / f"{case.name}-0.png").read_bytes() for way in means["indirect"]]
            assert same[0] == same[1]

    def test_a_plan_that_cannot_be_painted(self, small, pipe, tmp_path, monkeypatch):
        """It is painted as it was asked for, like none."""
        lost = "subjectgen.evaluate.reasoning_run.words_and_references"
        monkeypatch.setattr(lost, lambda *_: (_ for _ in ()).throw(ValueError("leaves out image 2")))
        means, pictures = evaluate(small, tmp_path, Order(), lambda: pipe), tmp_path / "pictures"
        assert means["deciding"]["indirect requests"]["parsed"].mean == 1
        for case in small.questions:
            same = [(pictures / way / f"{case.name}-0.png").read_bytes() for way in means["indirect"]]
            assert same[0] == same[1]

    def test_fewer_requests_forget_no_scores(self, whole, folder, tmp_path):
        out = shutil.copytree(whole[0], tmp_path / "out")
        before = sorted((out / "scores.jsonl").read_text().splitlines())
        means = evaluate(ReasoningBenchmark(1, 2, folder), out, Order(phase="score"), stop)
        assert means["indirect"]["with a plan"]["scene"].count == 2
        assert sorted((out / "scores.jsonl").read_text().splitlines()) == before

    def test_other_references_are_not_scored(self, whole, tmp_path):
        others = cutout_folder(tmp_path, seen=4, unseen=emoji.NUM_SUBJECTS)  # the same names, drawn otherwise
        with pytest.raises(ValueError, match="or of other references: expected the cases that were painted"):
            evaluate(ReasoningBenchmark(2, 3, others), whole[0], Order(phase="score"), stop)

    def test_another_model_is_refused(self, whole, small):
        other = reasoning_pipeline(image_size=128)
        with torch.no_grad():
            next(other.mllm.parameters()).add_(1)
        with pytest.raises(ValueError, match=r"sha256 is .* for the pictures in --out.*another --out"):
            evaluate(small, whole[0], Order(phase="paint"), lambda: other)

    @pytest.mark.parametrize(
        ("name", "value", "word"),
        [
            ("guidance_scale", 7.0, "guidance_scale"),
            ("num_inference_steps", 2, "steps"),
            ("plan_instruction", "another", "plan_instruction"),
        ],
    )
    def test_other_settings_are_refused(self, whole, small, name, value, word):
        other = reasoning_pipeline(**{"image_size": 128, "num_inference_steps": 1, name: value})
        with pytest.raises(ValueError, match=rf"^{word} is .* and was .* for the pictures in --out"):
            evaluate(small, whole[0], Order(phase="paint"), lambda: other)

    def test_guidance(self, whole, small, pipe, tmp_path, monkeypatch):
        """It reaches the pictures, and another one than theirs is refused."""
        scales, order = [], Order(phase="paint", settings=Settings(guidance_scale=3.0))
        with pytest.raises(ValueError, match=r"^guidance_scale is 3\.0 and was .* for the pictures in --out"):
            evaluate(small, whole[0], order, lambda: pipe)
        stock = SubjectPipeline.__call__

        def painted(self, *given, guidance_scale, **options):
            scales.append(guidance_scale)
            return stock(self, *given, guidance_scale=1.0, **options)

        monkeypatch.setattr(SubjectPipeline, "__call__", painted)
        evaluate(small, tmp_path, order, lambda: pipe)
        assert set(scales) == {3.0} and json.loads((tmp_path / "model.json").read_text())["guidance_scale"] == 3.0

    def test_another_scheduler_is_refused(self, whole, small):
        other = reasoning_pipeline(image_size=128, num_inference_steps=1)
        other.scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
        with pytest.raises(ValueError, match=r"^scheduler is .* and was .* for the pictures in --out"):
            evaluate(small, whole[0], Order(phase="paint"), lambda: other)

    def test_a_folder_of_before_is_refused(self, whole, small, tmp_path):
        """It held the sha256 alone: nobody knows with which settings."""
        out = shutil.copytree(whole[0], tmp_path / "out")
        (out / "model.json").write_text('"abc"')
        with pytest.raises(ValueError, match=r"model\.json' does not say what painted"):
            evaluate(small, out, Order(phase="score"), stop)

    def test_the_table_says_what_was_measured(self, whole, small, tmp_path):
        """The model as it was called when it painted, whatever scores; and which cases."""
        out = shutil.copytree(whole[0], tmp_path / "out")
        evaluate(small, out, Order(model="another", phase="score"), stop)
        table = json.loads((out / "table.json").read_text())
        assert (table["model"], table["steps"], table["pictures"]) == ("tiny", 1, "10 of 10")
        asked = sorted([case.name, case.subject, case.prompt, case.seed, [0]] for case in small.cases)
        assert table["sha256 of the cases"] == hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    @pytest.mark.parametrize("phase", ["all", "score"])
    def test_shards_are_for_painting(self, phase):
        with pytest.raises(ValueError, match=f"--shard with --phase {phase}: expected --phase paint"):
            Order(phase=phase, shard=Shard(index=1, count=2))

    def test_an_unknown_phase(self):
        with pytest.raises(ValueError, match="'cases' is no phase: expected all, paint, score"):
            Order(phase="cases")


def stop(*_):
    raise KeyboardInterrupt
