"""Painting and scoring apart: what is there is kept, shards add up, and everything is written that is promised."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image, ImageColor
from tiny_benchmark import ColourPainter, Colours, Interrupted

from subjectgen.evaluate.cases import Figure, Shard, cases_hash, paintings_of, pictures_hash, references_hash
from subjectgen.evaluate.generation import Settings, stages_by_name
from subjectgen.evaluate.intervals import Mean, mean_with_interval
from subjectgen.evaluate.pictures import pictures_named
from subjectgen.evaluate.plots import COLOURS, by_subject, curve, svg_of
from subjectgen.evaluate.run import Order, evaluate, in_order
from subjectgen.evaluate.scoring import read_lines
from subjectgen.evaluate.table import caption, differences_of, means_of, print_table, told
from subjectgen.extras import MissingExtraError
from subjectgen.generate.stages import STAGE_PRESETS, Stage

PROMPTS = ("red", "blue", "lime", "cyan", "white", "black")
ONE = {"model": "painter", "stages": ("free",), "num_seeds": 2}


def run(out, pipe=None, benchmark=None, **order):
    return evaluate(benchmark or Colours(), out, Order(**{**ONE, **order}), lambda: pipe)


def never():
    raise AssertionError("the model was opened")


def lines(out):
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def rival(tmp_path, name="rival"):
    """A folder of another program's pictures, of which one has the wrong colour."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for i, colour in enumerate(PROMPTS):
        for k in (0, 1):
            Image.new("RGB", (30, 20), "gray" if (i, k) == (0, 1) else colour).save(folder / f"c-{i}-{k}.png")
    return folder


KILLED = """
import os, signal, sys
from pathlib import Path
from tiny_benchmark import ColourPainter, Colours
from subjectgen.evaluate.run import Order, evaluate

def kill_in(phase):
    if phase == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

class Painter(ColourPainter):
    def __call__(self, *given, **options):
        if len(self.calls) == 4:
            kill_in("paint")
        return super().__call__(*given, **options)

class Eyes(Colours):
    def score(self, *given):
        if len(self.looked_at) == 4:
            kill_in("score")
        return super().score(*given)

evaluate(Eyes(), Path(sys.argv[1]), Order(model="painter", stages=("free",), num_seeds=2), Painter)
"""


def binomial(most, number, chance):
    """That at most so many of a number are right."""
    return sum(math.comb(number, k) * chance**k * (1 - chance) ** (number - k) for k in range(most + 1))


class TestIntervals:
    def test_of_a_share(self):
        """Of many independent answers it is the normal interval, mean +- 1.96 standard errors."""
        values = [1.0] * 300 + [0.0] * 100
        found = mean_with_interval(values, [str(i) for i in range(400)], share=True)
        error = 1.96 * np.sqrt(0.75 * 0.25 / 400)
        assert found.mean == 0.75 and (found.count, found.subjects) == (400, 400)
        assert found.low == pytest.approx(0.75 - error, abs=0.005)
        assert found.high == pytest.approx(0.75 + error, abs=0.005)

    @pytest.mark.parametrize(("right", "number"), [(0, 60), (1, 60), (30, 60), (59, 60), (60, 60), (7, 10), (10, 10)])
    def test_one_answer_a_subject_has_the_exact_bounds(self, right, number):
        """At the lower one so many or more are right with a chance of 2.5 %, at the upper one so many or fewer."""
        found = mean_with_interval([1.0] * right + [0.0] * (number - right), [*map(str, range(number))], share=True)
        if right:
            assert 1 - binomial(right - 1, number, found.low) == pytest.approx(0.025, abs=2e-4)
        if right < number:
            assert binomial(right, number, found.high) == pytest.approx(0.025, abs=2e-4)
        assert (found.low == 0) == (right == 0) and (found.high == 1) == (right == number)

    @pytest.mark.parametrize("subject_of", [lambda i: i, lambda i: i % 10, lambda i: i // 6])
    def test_more_right_answers_lower_no_bound(self, subject_of):
        """Of 60 answers, about a subject each, or about ten: all a bit right, or one after another."""
        subjects = [str(subject_of(i)) for i in range(60)]
        found = [mean_with_interval([1.0] * k + [0.0] * (60 - k), subjects, share=True) for k in range(61)]
        for less, more in pairwise(found):
            assert less.low < more.low + 1e-9 and less.high < more.high + 1e-9

    @pytest.mark.parametrize("number", [10, 60])
    @pytest.mark.parametrize("share", [True, False])
    def test_the_truth_is_inside_as_often_as_is_said(self, number, share):
        """Four pictures of each subject, which resemble each other: a correlation of 0.5 within a subject."""
        rng, inside, subjects = np.random.default_rng(0), [], [str(i // 4) for i in range(4 * number)]
        for _ in range(100):
            chances = rng.beta(0.8, 0.2, number) if share else rng.normal(0.8, 0.3, number)
            drawn = (
                rng.random((number, 4)) < chances[:, None] if share else rng.normal(chances[:, None], 0.3, (number, 4))
            )
            found = mean_with_interval(drawn.astype(float).ravel().tolist(), subjects, share=share)
            inside.append(found.low <= 0.8 <= found.high)
        assert 0.91 <= np.mean(inside) <= 1 and (number == 10 or not share or np.mean(inside) < 1)

    def test_more_pictures_of_the_same_subjects_tell_no_more(self):
        values, subjects = [0.1, 0.4, 0.9, 0.2, 0.3], ["a", "b", "c", "d", "e"]
        once, often = mean_with_interval(values, subjects), mean_with_interval(values * 50, subjects * 50)
        assert (often.low, often.high) == pytest.approx((once.low, once.high))

    def test_students_t(self):
        """By hand: 2.776 of t with four degrees of freedom, by the standard error of five values."""
        values = [0.1, 0.4, 0.9, 0.2, 0.3]
        found = mean_with_interval(values, ["a", "b", "c", "d", "e"])
        assert found.high - found.mean == pytest.approx(2.776 * np.std(values, ddof=1) / np.sqrt(5), rel=1e-3)

    def test_a_subject_with_more_pictures_weighs_more(self):
        assert mean_with_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).mean == 0.75

    def test_where_nothing_can_be_told(self):
        """Fewer than five subjects; and equal values that are no share, as a judge's lowest score."""
        few = mean_with_interval([0.0, 1.0, 1.0, 1.0] * 9, ["a", "b", "c", "d"] * 9, share=True)
        assert few.low is None and told(Figure(name="a", heading="a", unit="%"), few) == "75.0 (too few subjects)"
        assert mean_with_interval([0.0] * 5, [*"abcde"]).high is None

    def test_a_share_of_all_or_of_nothing(self):
        """At the bound all of 60 subjects are right with a chance of 2.5 %, whatever their number of pictures."""
        subjects = [str(i % 60) for i in range(240)]
        all_right, none = (mean_with_interval([value] * 240, subjects, share=True) for value in (1.0, 0.0))
        assert all_right.low**60 == pytest.approx(0.025, rel=1e-3) and all_right.high == 1
        assert (1 - none.high) ** 60 == pytest.approx(0.025, rel=1e-3) and none.low == 0
        assert told(Figure(name="a", heading="a", unit="%"), all_right) == "100.0 (94.0..100.0)"

    def test_no_values(self):
        with pytest.raises(ValueError, match="0 values"):
            mean_with_interval([], [])

    def test_told(self):
        mean = Mean(mean=0.5, low=0.25, high=0.754, count=8, subjects=8)
        assert told(Figure(name="a", heading="a", unit="%"), mean) == "50.0 (25.0..75.4)"
        alone = Mean(mean=3.0, low=None, high=None, count=1, subjects=1)
        assert told(Figure(name="a", heading="a", digits=2), alone) == "3.00 (too few subjects)"


class TestOrder:
    def test_four_seeds_unless_told_otherwise(self):
        assert Order(model="painter").num_seeds == 4

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
    def test_no_shard(self, text):
        with pytest.raises(ValueError, match=f"--shard '{text}': expected i/n"):
            Shard.parse(text)

    def test_shards_are_all_and_nothing_twice(self, tmp_path):
        paintings = paintings_of(Colours().cases, "free", 3, tmp_path)
        shards = [Shard.parse(f"{i}/4").of(paintings) for i in (1, 2, 3, 4)]
        assert sorted(each.file for shard in shards for each in shard) == sorted(each.file for each in paintings)

    @pytest.mark.parametrize(
        ("order", "words"),
        [
            ({"phase": "draw"}, "--phase 'draw' is no phase: expected all, cases, paint, score"),
            (
                {"stages": ("free", "mild")},
                "--stages 'mild' is none: expected mllm-only, free, paper, faithful, default",
            ),
            ({"shard": Shard(index=1, count=2)}, "--shard with --phase all: expected --phase paint"),
            ({"phase": "paint", "images": "x"}, "--images with --phase paint"),
        ],
    )
    def test_refused(self, order, words, tmp_path):
        if "images" in order:
            order["images"] = tmp_path
        with pytest.raises(ValueError, match=words):
            Order(**{**ONE, **order})

    def test_stages_that_are_the_same_are_painted_once(self):
        names = ("mllm-only", "free", "paper", "faithful", "default")
        found = stages_by_name(ColourPainter(stages="paper"), names)
        assert found == {"mllm-only": (Stage(0.0, identity=0.0),), **{name: STAGE_PRESETS[name] for name in names[1:4]}}
        own = stages_by_name(ColourPainter(stages=[{"until": 0.0, "identity": 0.5}]), ("free", "default"))
        assert own == {"free": STAGE_PRESETS["free"], "default": (Stage(0.0, identity=0.5),)}
        with pytest.raises(ValueError, match="'mild'"):
            stages_by_name(ColourPainter(), ("mild",))


class TestPaint:
    def test_each_picture_from_its_seed_with_its_references(self, tmp_path):
        pipe = ColourPainter()
        run(tmp_path, pipe, phase="paint", stages=("free", "paper"), settings=Settings(batch_size=5))
        assert [len(call.prompts) for call in pipe.calls] == [5, 5, 2] * 2
        assert {call.stages for call in pipe.calls} == {STAGE_PRESETS["free"], STAGE_PRESETS["paper"]}
        first = pipe.calls[0]
        assert first.prompts == ["red", "red", "blue", "blue", "lime"]
        assert first.seeds == [100, 100100, 101, 100101, 102]
        assert [given[0].getpixel((0, 0))[1] for given in first.references] == [128, 128, 128, 128, 192]
        assert Image.open(tmp_path / "pictures" / "paper" / "c-1-1.png").getpixel((3, 3)) == (0, 0, 255)
        assert not (tmp_path / "scores.jsonl").exists()

    def test_a_size_that_cannot_be_scored(self, tmp_path):
        square = Colours()
        square.square = True
        order = Order(**ONE, settings=Settings(size=(128, 64)))
        with pytest.raises(ValueError, match="--size 128x64 with colours: expected equal width and height"):
            evaluate(square, tmp_path, order, never)

    def test_a_run_that_failed_binds_nobody(self, tmp_path):
        """A size that does not fit is refused before anything is written; nor does a run bind that painted nothing."""
        with pytest.raises(ValueError, match=r"size 10x10 .* does not fit this model: .* multiples of 4"):
            run(tmp_path, ColourPainter(), phase="paint", settings=Settings(size=(10, 10)))
        assert not (tmp_path / "run.json").exists()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Interrupted(0), phase="paint", stages=("paper",), settings=Settings(steps=5))
        assert list(run(tmp_path, ColourPainter(weight=2.0))["plain"]) == ["free"]
        with pytest.raises(ValueError, match="steps is 5 and was 3"):
            run(tmp_path, ColourPainter(weight=2.0), phase="paint", settings=Settings(steps=5))

    def test_no_pixels_are_no_size(self, tmp_path):
        with pytest.raises(ValueError, match="height=0 is not a size"):
            run(tmp_path, ColourPainter(), phase="paint", settings=Settings(size=(0, 0)))

    def test_guidance(self, tmp_path):
        """The model's own, or the one that is asked for; another one does not mix in."""
        own, other = ColourPainter(), ColourPainter()
        run(tmp_path / "own", own, phase="paint")
        run(tmp_path / "other", other, phase="paint", settings=Settings(guidance_scale=5.0))
        assert {each.guidance_scale for each in own.calls} == {2.0} and other.calls[0].guidance_scale == 5.0
        with pytest.raises(ValueError, match=r"guidance_scale is 5\.0 and was 2\.0 for the pictures in --out"):
            run(tmp_path / "own", ColourPainter(), phase="paint", settings=Settings(guidance_scale=5.0))
        with pytest.raises(ValueError, match="--guidance-scale nan: expected a finite number"):
            Settings(guidance_scale=float("nan"))

    @pytest.mark.parametrize("inside", ["", "further/inside"])
    def test_out_is_a_file(self, tmp_path, inside):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"--out '.*' cannot be a folder, as '.*file' is a file: choose another"):
            evaluate(Colours(), tmp_path / "file" / inside, Order(**ONE), never)

    def test_out_cannot_be_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.access", lambda *_: False)
        with pytest.raises(ValueError, match=r"--out '.*new' cannot be written: make '.*' writable, or choose another"):
            evaluate(Colours(), tmp_path / "new", Order(**ONE), never)

    def test_an_interrupted_run_goes_on(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Interrupted(2), phase="paint", settings=Settings(batch_size=3))
        assert len(list(tmp_path.rglob("pictures/free/*"))) == 6
        pipe = ColourPainter()
        run(tmp_path, pipe, phase="paint")
        assert [seed for call in pipe.calls for seed in call.seeds] == [103, 100103, 104, 100104, 105, 100105]

    def test_shards_add_up(self, tmp_path):
        painted = []
        for index in (3, 1, 2):
            pipe = ColourPainter()
            run(tmp_path, pipe, phase="paint", shard=Shard(index=index, count=3))
            painted += [seed for call in pipe.calls for seed in call.seeds]
        assert sorted(painted) == [*range(100, 106), *range(100100, 100106)]
        assert evaluate(Colours(), tmp_path, Order(**ONE, phase="score"), never)["plain"]["free"]["right"].count == 12

    @pytest.mark.parametrize(("phase", "painted", "scored"), [("paint", 4, 0), ("score", 12, 4)])
    def test_killed_it_goes_on(self, tmp_path, phase, painted, scored):
        """By SIGKILL, in either phase, in a process of its own; then the same command makes what is missing."""
        tests = str(Path(__file__).parent)
        places = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tests).parent), tests])}
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), phase], env=places, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(list((tmp_path / "pictures").rglob("*.png"))) == painted
        assert len(read_lines(tmp_path / "scores.jsonl")) == scored
        pipe, benchmark = ColourPainter(), Colours()
        means = run(tmp_path, pipe, benchmark=benchmark)
        assert (len(pipe.calls), len(benchmark.looked_at)) == (12 - painted, 12 - scored)
        assert means["plain"]["free"]["right"].count == len(lines(tmp_path)) == 12

    def test_another_model_does_not_mix_in(self, tmp_path):
        run(tmp_path, ColourPainter(), phase="paint")
        with pytest.raises(ValueError, match=r"sha256 is .* choose another --out"):
            run(tmp_path, ColourPainter(weight=2.0), phase="paint")
        with pytest.raises(ValueError, match="steps is 7 and was 3"):
            run(tmp_path, ColourPainter(), phase="paint", settings=Settings(steps=7))

    @pytest.mark.parametrize("name", ["negative", "scheduler", "processor", "vae"])
    def test_the_same_weights_set_otherwise_do_not_mix_in(self, tmp_path, name):
        run(tmp_path, ColourPainter(negative="empty_text"), phase="paint")
        other = ColourPainter(negative="no_condition" if name == "negative" else "empty_text", license="another")
        if name == "scheduler":
            other.scheduler = FlowMatchEulerDiscreteScheduler(shift=9.0)
        if name == "processor":
            other.processor.image_processor.image_mean = [0.4] * 3
        if name == "vae":
            other.vae.config["scaling_factor"] = 0.6
        with pytest.raises(ValueError, match=f"{name} is .* and was .* for the pictures in --out.*another --out"):
            run(tmp_path, other, phase="paint")

    def test_what_no_picture_shows_may_change(self, tmp_path):
        pipes = [ColourPainter(license=licence) for licence in ("one", "another")]
        for pipe in pipes:
            run(tmp_path, pipe, phase="paint")
        assert len(pipes[0].calls) == 12 and not pipes[1].calls

    def test_other_prompts_do_not_mix_in(self, tmp_path):
        run(tmp_path, ColourPainter(), phase="paint")
        other = Colours()
        other.cases[2] = replace(other.cases[2], prompt="navy")
        with pytest.raises(ValueError, match="case c-2 in --out asked for 'lime' and asks for 'navy' now"):
            run(tmp_path, ColourPainter(), benchmark=other, phase="paint")

    def test_other_references_are_not_scored(self, tmp_path):
        """A truth that differs from that which was painted for would be scored without a word."""
        run(tmp_path, ColourPainter(), phase="paint")
        with pytest.raises(ValueError, match=r"case c-0 in --out .* or of other references: .*--cutouts"):
            run(tmp_path, benchmark=Colours(ground="navy"), phase="score")
        assert not (tmp_path / "scores.jsonl").exists()

    def test_cases_of_earlier_calls_stay(self, tmp_path):
        """Cases 0 to 3, then 2 to 5 only: all of them are known, and a changed one is refused."""
        first, second = Colours(), Colours()
        first.cases, second.cases = first.cases[:4], second.cases[2:]
        for benchmark in (first, second):
            run(tmp_path, ColourPainter(), benchmark=benchmark, phase="paint")
        known = [json.loads(line)["case"] for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
        assert known == [f"c-{i}" for i in range(6)]
        first.cases[0] = replace(first.cases[0], prompt="navy")
        with pytest.raises(ValueError, match="case c-0 in --out asked for 'red'"):
            run(tmp_path, ColourPainter(), benchmark=first, phase="paint")

    def test_further_stages_join(self, tmp_path):
        run(tmp_path, ColourPainter(), phase="paint")
        pipe = ColourPainter()
        means = run(tmp_path, pipe, stages=("paper",))
        assert len(pipe.calls) == 12 and list(means["plain"]) == ["free", "paper"]

    def test_the_models_own_stages_keep_their_name(self, tmp_path):
        """Whichever are painted later; where they came later themselves they have a name from then on."""
        for names, known in ((("paper",), "default"), (("free",), "free"), (("faithful",), "free")):
            run(tmp_path, ColourPainter(), phase="paint", stages=names)
            assert json.loads((tmp_path / "run.json").read_text())["default"] == known

    def test_what_another_program_needs(self, tmp_path):
        evaluate(Colours(), tmp_path, Order(**ONE, phase="cases"), never)
        cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
        assert [case["prompt"] for case in cases] == [*PROMPTS]
        assert cases[3]["pictures"] == ["c-3-0.png", "c-3-1.png"] and cases[3]["seeds"] == [103, 100103]
        assert Image.open(tmp_path / cases[3]["references"][0]).getpixel((0, 0)) == (255, 192, 203)
        assert len(list((tmp_path / "references").iterdir())) == 2
        assert not (tmp_path / "pictures").exists()


class TestScore:
    def test_a_line_a_picture(self, tmp_path):
        run(tmp_path, ColourPainter(wrong={101}))
        found = lines(tmp_path)
        assert len(found) == 12
        (line,) = [line for line in found if line["case"] == "c-1" and line["number"] == 0]
        assert {name: line[name] for name in ("prompt", "seed", "stages", "subject", "benchmark", "part")} == {
            "prompt": "blue", "seed": 101, "stages": "free", "subject": "s0", "benchmark": "colours", "part": "plain",
        }  # fmt: skip
        found = {"scores": {"likeness": 0.0, "right": 0.0}, "answers": {}}
        assert line["found"] == {"someone/eyes@1": found} and len(line["references"]) == 1
        assert re.fullmatch("[0-9a-f]{64}", line["model"]) and re.fullmatch("[0-9a-f]{64}", line["picture"])

    def test_what_is_scored_is_not_scored_again(self, tmp_path):
        run(tmp_path, ColourPainter())
        before, again = lines(tmp_path), Colours()
        run(tmp_path, benchmark=again, phase="score")
        assert again.looked_at == [] and lines(tmp_path) == before

    def test_after_a_kill(self, tmp_path):
        """The last line is torn; all whole ones are kept."""
        run(tmp_path, ColourPainter())
        text = (tmp_path / "scores.jsonl").read_text()
        whole = text.splitlines(keepends=True)
        (tmp_path / "scores.jsonl").write_text("".join(whole[:9]) + whole[9][:40])
        assert len(read_lines(tmp_path / "scores.jsonl")) == 9
        again = Colours()
        run(tmp_path, benchmark=again, phase="score")
        assert again.looked_at == ["c-4", "c-5", "c-5"] and len(lines(tmp_path)) == 12

    def test_a_picture_that_changed_is_scored_again(self, tmp_path):
        run(tmp_path, ColourPainter())
        Image.new("RGB", (8, 8), "gray").save(tmp_path / "pictures" / "free" / "c-2-0.png")
        again = Colours()
        means = run(tmp_path, benchmark=again, phase="score")
        assert again.looked_at == ["c-2"] and means["plain"]["free"]["right"].mean == pytest.approx(11 / 12)

    def test_other_references_are_scored_again(self, tmp_path):
        """Those of another program's pictures of the first subject, which no cases.jsonl tells of; the rest is kept."""
        folder, out = rival(tmp_path), tmp_path / "out"
        run(out, phase="score", images=folder)
        again = Colours(ground="navy")
        run(out, benchmark=again, phase="score", images=folder)
        assert again.looked_at == ["c-0", "c-0", "c-1", "c-1"]

    def test_other_eyes_score_all_again(self, tmp_path):
        """What the first ones saw is kept, and need not be seen again."""
        run(tmp_path, ColourPainter())
        again, before = Colours(), Colours()
        again.eyes = "someone/eyes@2"
        run(tmp_path, benchmark=again, phase="score")
        run(tmp_path, benchmark=before, phase="score")
        assert len(again.looked_at) == 12 and before.looked_at == []

    def test_scores_of_older_code_are_made_anew(self, tmp_path):
        """It wrote all scores of a picture side by side, and not by what: nothing of them is taken over."""
        run(tmp_path, ColourPainter())
        older = [{**line, "scores": {"right": 0.5}} for line in lines(tmp_path)]
        for line in older:
            del line["found"], line["references"]
        (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
        newer = Colours()
        means = run(tmp_path, benchmark=newer, phase="score")
        assert len(newer.looked_at) == len(lines(tmp_path)) == 12 and means["plain"]["free"]["right"].mean == 1

    def test_scores_of_other_calls_are_kept(self, tmp_path):
        """Fewer cases and a single seed: only their figures are told, and nothing is scored twice."""
        run(tmp_path, ColourPainter())
        fewer, again = Colours(), Colours()
        fewer.cases = fewer.cases[:2]
        means = run(tmp_path, benchmark=fewer, phase="score", num_seeds=1)
        assert means["plain"]["free"]["right"].count == 2 and len(lines(tmp_path)) == 12
        run(tmp_path, benchmark=again, phase="score")
        assert fewer.looked_at == again.looked_at == []

    def test_a_line_that_lacks_something_is_scored_again(self, tmp_path):
        run(tmp_path, ColourPainter())
        without = [{name: value for name, value in line.items() if name != "model"} for line in lines(tmp_path)]
        (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
        again = Colours()
        run(tmp_path, benchmark=again, phase="score")
        assert len(again.looked_at) == len(lines(tmp_path)) == 12

    def test_an_incomplete_set_is_refused(self, tmp_path):
        run(tmp_path, ColourPainter(), phase="paint", shard=Shard(index=1, count=4))
        words = r"9 of 12 pictures are missing: '.*c-0-1\.png', .*c-1-1\.png' \.\.\.\. Expected all.*--allow-missing"
        with pytest.raises(FileNotFoundError, match=words):
            run(tmp_path, phase="score")
        assert not (tmp_path / "scores.jsonl").exists()

    def test_columns_of_different_pictures_are_compared_where_both_have_them(self, tmp_path, capsys):
        """Of `paper` a wrong picture and three others lack: `free` is measured without them as well."""
        stages = ("free", "paper")
        run(tmp_path, ColourPainter(wrong={101}), phase="paint", stages=stages)
        for name in ("c-0-0", "c-1-0", "c-1-1", "c-5-1"):
            (tmp_path / "pictures" / "paper" / f"{name}.png").unlink()
        with pytest.raises(FileNotFoundError, match="4 of 24 pictures are missing"):
            run(tmp_path, phase="score", stages=stages)
        columns = run(tmp_path, phase="score", stages=stages, allow_missing=True)["plain"]
        assert {name: (means["right"].mean, means["right"].count) for name, means in columns.items()} == {
            "free": (1.0, 8), "paper": (1.0, 8),
        }  # fmt: skip
        caption = "8 pictures of 3 subjects in a column. Of 12 that were asked for: only what every column has is"
        assert (
            caption in " ".join(capsys.readouterr().out.split()) and caption in (tmp_path / "report.html").read_text()
        )
        table = json.loads((tmp_path / "table.json").read_text())
        assert table["pictures"] == "16 of 24"
        assert table["sha256 of the cases"] != pictures_hash(paintings_of(Colours().cases, "free", 2, tmp_path))

    def test_nothing_in_common(self, tmp_path):
        run(tmp_path, ColourPainter(), phase="paint", stages=("free", "paper"))
        for stages, number in (("free", 0), ("paper", 1)):
            for file in (tmp_path / "pictures" / stages).glob(f"*-{number}.png"):
                file.unlink()
        with pytest.raises(FileNotFoundError, match="there is none that every column has"):
            run(tmp_path, phase="score", allow_missing=True)

    def test_a_line_that_is_none(self, tmp_path):
        run(tmp_path, ColourPainter())
        text = (tmp_path / "scores.jsonl").read_text().splitlines(keepends=True)
        for garbage in ("garbage\n", "[]\n", "{}\n"):
            (tmp_path / "scores.jsonl").write_text("".join([*text[:2], garbage, *text[2:]]))
            with pytest.raises(
                ValueError, match=rf"line 3 of '.*scores\.jsonl' is '{re.escape(garbage[:-1])}'.*Remove"
            ):
                run(tmp_path, phase="score")

    @pytest.mark.parametrize("text", ["{}", "[]", "null", '"sha"', "garbage", '{"stages": {}, "size": 3}'])
    def test_a_run_that_is_none(self, tmp_path, text):
        run(tmp_path, ColourPainter(), phase="paint")
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json' does not say what painted the pictures beside it.*--out"):
            run(tmp_path, phase="score")

    def test_nothing_painted(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"run\.json' does not exist"):
            run(tmp_path, phase="score")

    def test_pictures_of_another_program(self, tmp_path):
        """The same code scores them, whatever their format is; what they are called is the column."""
        folder = rival(tmp_path)
        (folder / "c-0-1.png").unlink()
        Image.new("RGB", (30, 20), "blue").save(folder / "c-0-1.webp", lossless=True)
        means = run(tmp_path / "out", phase="score", images=folder)
        assert list(means["plain"]) == ["rival"]
        assert means["plain"]["rival"]["right"].mean == pytest.approx(11 / 12)
        assert [line["model"] for line in lines(tmp_path / "out")] == [None] * 12
        run(tmp_path / "ours", ColourPainter())
        tables = [json.loads((tmp_path / name / "table.json").read_text()) for name in ("out", "ours")]
        assert tables[0]["pictures"] == "12 of 12"
        assert tables[0]["sha256 of the cases"] == tables[1]["sha256 of the cases"]

    def test_pictures_that_another_program_lacks(self, tmp_path):
        folder = rival(tmp_path)
        (folder / "c-4-0.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 12 pictures are missing: '.*c-4-0\.png'\. Expected all"):
            run(tmp_path / "out", phase="score", images=folder)
        means = run(tmp_path / "out", phase="score", images=folder, allow_missing=True)
        assert means["plain"]["rival"]["right"].count == 11

    @pytest.mark.parametrize("other", ["c-9-0.png", "c-0-2.png", "d-0-0.jpg", "c-0-00.png", "c-0-².png", "c-0-٣.png"])
    def test_pictures_that_nobody_asked_for(self, tmp_path, other):
        """Another case, a number beyond the seeds, a number that is written in another way."""
        folder = rival(tmp_path)
        Image.new("RGB", (8, 8), "red").save(folder / other)
        with pytest.raises(ValueError, match=rf"1 pictures that were not asked for: '.*{other}'\. Expected names such"):
            run(tmp_path / "out", phase="score", images=folder)
        means = run(tmp_path / "out", phase="score", images=folder, allow_missing=True)
        assert means["plain"]["rival"]["right"].count == 12
        assert other in json.loads((tmp_path / "out" / "table.json").read_text())["left out"]

    def test_another_folder_of_the_same_name(self, tmp_path):
        """Its scores would stand under the same name; scored again, the first one's stay as they are."""
        first, second = (rival(tmp_path / name, "painted") for name in ("a", "b"))
        for _ in range(2):
            run(tmp_path / "out", phase="score", images=first)
        before = lines(tmp_path / "out")
        with pytest.raises(
            ValueError, match=r"b/painted' and '.*a/painted', whose scores are in.*another --out, or rena"
        ):
            run(tmp_path / "out", phase="score", images=second)
        assert lines(tmp_path / "out") == before and {line["seed"] for line in before} == {None}

    def test_a_picture_that_is_not_square(self, tmp_path):
        folder, square = rival(tmp_path), Colours()
        square.square = True
        with pytest.raises(ValueError, match=r"c-0-0\.png' has 30x20 pixels: expected a square picture.*equal width"):
            run(tmp_path / "out", benchmark=square, phase="score", images=folder)

    def test_two_files_of_one_picture(self, tmp_path):
        for name in ("c-0-0.png", "c-0-1.png", "c-0-0.jpg"):
            Image.new("RGB", (8, 8), "red").save(tmp_path / name)
        with pytest.raises(ValueError, match=r"c-0-0\.jpg' and 'c-0-0\.png' are there: expected one of them"):
            pictures_named(Colours().cases, 2, tmp_path)

    def test_scores_of_a_model_are_not_replaced(self, tmp_path):
        run(tmp_path, ColourPainter(), phase="paint")
        with pytest.raises(ValueError, match="holds pictures that were painted here"):
            run(tmp_path, phase="score", images=tmp_path / "pictures" / "free")

    def test_a_folder_without_such_pictures(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"holds no picture of this benchmark: expected names such as c-0-0\.png"
        ):
            run(tmp_path / "out", phase="score", images=tmp_path)


class Page(HTMLParser):
    """What a page shows, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.words, self.sources, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A whole run."""
    out = tmp_path_factory.mktemp("report")
    run(out, ColourPainter(wrong={101, 100104}), stages=("free", "paper"), command="subjectgen evaluate colours")
    return out


class TestReport:
    def test_table(self, out):
        table = json.loads((out / "table.json").read_text())
        assert table["parts"]["plain"]["free"]["right"]["mean"] == pytest.approx(10 / 12)
        assert table["model"] == "painter" and table["pictures"] == "24 of 24" and table["sharpness"] == "12.50"
        assert table["scored by"] == "someone/eyes@1" and "Clopper and Pearson" in table["intervals"]

    def test_the_page_holds_everything_and_loads_nothing(self, out):
        page = Page((out / "report.html").read_text())
        assert page.tags.count("svg") == 2 and page.tags.count("img") == 1 and page.tags.count("table") == 2
        assert all(source.startswith(("#", "data:image/webp;base64,")) for source in page.sources)
        text = (out / "report.html").read_text()
        assert {"script", "link", "iframe"}.isdisjoint(page.tags) and "@import" not in text
        assert all(inside.startswith("#") for inside in re.findall(r"url\(['\"]?([^)]*)", text))
        for words in ("free", "paper", "right, %", "subjectgen evaluate colours", "s0", "s1", "s2", "someone/eyes@1"):
            assert words in page.words
        assert any(words.startswith("83.3 (") for words in page.words)

    def test_differences_are_of_the_same_pictures(self):
        """By hand, of six subjects: the second column is .1 better in each, a figure that one column lacks is none."""
        first, second = (
            [
                {
                    "part": "plain", "stages": name, "case": f"c-{i}", "number": 0, "subject": f"s{i}",
                    "scores": {"right": i / 10 + more + i % 2 * more, **({"likeness": 1.0} if more else {})},
                }
                for i in range(6)
            ]
            for name, more in (("free", 0.0), ("paper", 0.1))
        )  # fmt: skip
        found = differences_of(Colours(), [*first, *second[::-1]])["plain"]
        assert list(found) == ["paper - free"] and list(found["paper - free"]) == ["right"]
        gain, arm = found["paper - free"]["right"], 2.571 * np.std([0.1, 0.2] * 3, ddof=1) / np.sqrt(6)
        assert (gain.mean, gain.count) == (pytest.approx(0.15), 6)
        assert (gain.low, gain.high) == pytest.approx((0.15 - arm, 0.15 + arm), rel=1e-3)
        turned = differences_of(Colours(), [*first, *second], own="paper")["plain"]
        assert turned["free - paper"]["right"].mean == pytest.approx(-0.15)
        assert differences_of(Colours(), first) == differences_of(Colours(), [*first[:3], *second[3:]]) == {}

    def test_differences_are_told(self, out, tmp_path, capsys):
        """To the model's own stages, everywhere."""
        table = json.loads((out / "table.json").read_text())
        assert list(table["differences"]["plain"]) == ["paper - free"]
        assert "paper - free" in Page((out / "report.html").read_text()).words
        run(shutil.copytree(out, tmp_path / "out"), phase="score")
        assert "paper - free" in capsys.readouterr().out

    def test_what_was_measured_has_a_name_for_good(self, out):
        """By hand: names, subjects, prompts, seeds and numbers of pictures. Another prompt or number is another one."""
        asked = [[f"c-{i}", f"s{i // 2}", colour, 100 + i, [0, 1]] for i, colour in enumerate(PROMPTS)]
        known = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        assert json.loads((out / "table.json").read_text())["sha256 of the cases"] == known
        changed = [replace(Colours().cases[0], prompt="navy"), *Colours().cases[1:]]
        for cases, number in ((changed, 2), (Colours().cases[:-1], 2), (Colours().cases, 1), (Colours().cases, 3)):
            assert pictures_hash(paintings_of(cases, "free", number, out)) != known

    def test_cases_have_a_name_for_good(self):
        """By hand: names, subjects, prompts and seeds."""
        asked = [[f"c-{i}", f"s{i // 2}", colour, 100 + i] for i, colour in enumerate(PROMPTS)]
        assert cases_hash(Colours().cases) == hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        assert cases_hash([replace(Colours().cases[0], prompt="navy")]) != cases_hash(Colours().cases[:1])

    def test_columns_of_different_sizes_are_told(self):
        """As requests of two kinds."""
        rows = {
            name: {"right": Mean(mean=0.5, low=None, high=None, count=n, subjects=3)}
            for name, n in (("a", 4), ("b", 9))
        }
        assert caption(Colours(), "plain", rows).endswith("a: 4 pictures of 3 subjects; b: 9 pictures of 3 subjects.")

    def test_so_have_references(self, out):
        """By hand: the pixels of each case's reference. Another reference is another one, with the same cases."""
        grounds = ["gray"] * 2 + ["pink"] * 4
        pixels = [bytes(ImageColor.getrgb(ground)) * 64 for ground in grounds]
        shown = [[f"c-{i}", f"{hashlib.sha256(each).hexdigest()[:16]}.png"] for i, each in enumerate(pixels)]
        found = json.loads((out / "table.json").read_text())["sha256 of the references"]
        assert found == hashlib.sha256(json.dumps(shown).encode()).hexdigest()
        other = Colours(ground="navy")
        assert references_hash(other) != found and cases_hash(other.cases) == cases_hash(Colours().cases)

    def test_the_curve_is_a_picture_as_well(self, out):
        """Both settings of stages are in it, each in its colour."""
        picture = Image.open(out / "curve.png").convert("RGB")
        seen = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
        assert picture.width > 600
        assert {ImageColor.getrgb(colour) for colour in COLOURS[:2]} <= seen
        assert ImageColor.getrgb(COLOURS[2]) not in seen

    def test_sheet(self, out):
        """References, truth, two settings of stages."""
        sheet = Image.open(out / "sheet.png")
        middles = [sheet.getpixel((8 + 136 * column + 64, 26 + 64)) for column in range(4)]
        assert middles == [(128, 128, 128), (255, 0, 0), (255, 0, 0), (255, 0, 0)]

    def test_columns_go_from_meaning_to_identity(self):
        assert in_order(["faithful", "mine", "free", "mllm-only"]) == ["mllm-only", "free", "faithful", "mine"]

    def test_a_point_of_the_curve_is_where_its_figures_are(self):
        """Across is identity, up is obedience: of three points, no two alike in order."""

        def row(x, y):
            spread = {"low": None, "high": None, "count": 1, "subjects": 1}
            return {"a": Mean(mean=x, **spread), "b": Mean(mean=y, **spread)}

        rows = {"one": row(0.1, 0.5), "two": row(0.5, 0.9), "three": row(0.9, 0.1)}
        drawn = svg_of(curve(rows, *figures("a", "b")))
        x, y = zip(*(where(drawn, name) for name in ("one", "two", "three")), strict=True)
        assert x[0] < x[1] < x[2] and x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.01)
        assert y[1] < y[0] < y[2] and y[0] - y[1] == pytest.approx(y[2] - y[0], abs=0.01)

    def test_names_stand_as_they_are(self):
        """Neither formulas, nor hidden for what they begin with; the title of an axis is not theirs."""
        names = ("_rival", "$x$ of $y$", "<b>")
        spread = {"low": None, "high": None, "count": 1, "subjects": 1}
        rows = {name: {each: Mean(mean=0.5, **spread) for each in "ab"} for name in names}
        drawn = by_subject({name: {"_cat $1$": 0.5} for name in names}, *figures("a"))
        texts = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
        assert texts == list(names)
        for svg, expected in ((svg_of(drawn), (*names, "_cat $1$")), (svg_of(curve(rows, *figures("a", "b"))), names)):
            assert set(expected) <= set(Page(svg).words)

    def test_names_are_no_markup_on_the_screen(self, capsys):
        mean = Mean(mean=0.5, low=None, high=None, count=1, subjects=1)
        print_table(Colours(), {"plain": {"[red]rival[/red]": {"right": mean}, "[/]": {"right": mean}}})
        assert "[red]rival[/red]" in (shown := capsys.readouterr().out) and "[/]" in shown

    def test_a_part_without_any_figure(self):
        line = {"part": "plain", "stages": "free", "subject": "s0", "scores": {"right": 1.0}}
        means = means_of(Colours(), [line, {**line, "part": "photographs", "scores": {}}])
        assert list(means) == ["plain"]

    def test_nothing_to_draw_with(self, tmp_path, monkeypatch):
        monkeypatch.setattr("subjectgen.extras.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'subjectgen\[evaluate\]'"):
            run(tmp_path, ColourPainter())


def figures(*names):
    return [Figure(name=name, heading=name, unit="%") for name in names]


def where(svg, name):
    """Pixels of a point in a drawing."""
    group = svg[svg.index(f'id="point-{name}"') :]
    return tuple(float(value) for value in re.search(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', group).groups())
