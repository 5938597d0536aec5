"""The benchmarks run, and what they count is true; what they time is not judged here."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_engine
import torch
from tiny_pipeline import picture, reasoning_pipeline, shorten_plans, tiny_pipeline
from tiny_subjects import cutout_folder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from subjectgen.data.render import Renderer
from subjectgen.data.subjects import load_subjects
from subjectgen.evaluate.emoji import NUM_SUBJECTS, EmojiBenchmark
from subjectgen.generate.stages import Stage, resolve_stages
from subjectgen.load import recipe
from subjectgen.reasoning.judges import Score

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def conditions():
    return script("conditions")


def test_the_next_picture_of_a_subject_reads_no_reference(conditions):
    rows = conditions.compare(tiny_pipeline(), rounds=1, steps=2)
    assert set(rows) == {(mode, count) for mode in ("joint", "cached") for count in (0, 1, 2, 4)}
    for (mode, count), row in rows.items():
        assert row.first.reads == (count if mode == "cached" else 0)
        assert row.again.reads == 0
        assert 0 < row.first.step < row.first.image
    table = conditions.comparison_table(rows, tiny_pipeline(), steps=2)
    assert table.row_count == 8


def test_reads_are_seen(conditions):
    """From pictures, a call reads them with the MLLM, the VAE and the transformer."""
    pipe = conditions.variant(tiny_pipeline(), "cached")
    images = conditions.references(pipe, 2)
    with conditions.reference_reads(pipe) as reads:
        pipe("a cat", images, num_inference_steps=2)
    assert sorted(reads) == ["mllm", "transformer", "transformer", "vae", "vae"]


def test_the_networks_alone_do_the_same_work(conditions):
    """Replayed, the forwards give what they gave in the pipeline."""
    pipe = tiny_pipeline()
    images, outputs = conditions.references(pipe, 1), []
    hook = pipe.vae.decoder.register_forward_hook(lambda *given: outputs.append(given[-1]))
    forwards = conditions.recorded(pipe, lambda: pipe("a cat", images, num_inference_steps=2))
    for forward in forwards:
        conditions.replay(*forward)
    hook.remove()
    networks = [network for network, _, _ in forwards]
    assert networks.count(pipe.transformer) == 2 + 2  # steps, and two readings of conditions
    assert networks.count(pipe.mllm) == 2  # references, prompt
    assert {pipe.aggregator, pipe.vae.encoder, pipe.vae.decoder} <= set(networks)
    torch.testing.assert_close(outputs[1], outputs[0])


def test_pictures_per_second(tmp_path):
    renderer = Renderer(load_subjects(cutouts=cutout_folder(tmp_path, seen=3, unseen=0)))
    assert script("data").pictures_per_second(renderer, 2, 0.2) > 1


@pytest.fixture(scope="module")
def backbones():
    """The module, with its neighbours found as they are beside a script."""
    pytest.importorskip("diffusers", minversion="0.41")  # the first with both backbones
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield script("backbones")


@pytest.fixture(scope="module", params=["flux", "qwen"])
def sides(backbones, request):
    kind = backbones.SIDES[request.param]
    skeleton = recipe(kind.recipe).skeleton()["transformer"]
    return kind(skeleton, torch.device("cpu"), torch.float32, tiny=True)


def projected_again(transformer, case):
    """What Qwen-Image's cached step computes in diffusers only: its prefix is projected anew, and has its own sigma."""

    def each(module):  # of one token
        return 2 * sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)

    sigma = each(transformer.time_text_embed) + each(transformer.modulation) + each(transformer.norm_out)
    words = 64 + case.num_identity // 4
    return words * each(transformer.txt_in) + case.num_identity * each(transformer.img_in) + sigma


@pytest.mark.parametrize("row", ["0", "2x512"])
@torch.no_grad()
def test_operations_are_those_of_diffusers_own_steps(backbones, sides, row):
    """Counted from shapes alone, against what its pipeline computes; of Qwen-Image a later step, its prefix kept."""
    case, marks = backbones.parsed(row, tiny=True), []
    guidance = list(sides.guidances.values())[-1]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the CPU's own is not counted
        sides.theirs(case, 3, guidance, lambda: marks.append(counter.get_total_flops()))
    counted = backbones.step_operations(sides, sides.skeleton, case, sides.modes[0], 1.0, 1.0)
    again = 0 if "joint" in sides.modes else projected_again(sides.transformer, case)
    assert marks[2] - marks[1] == counted + again


@torch.no_grad()
def test_both_sides_make_the_same_of_the_same_tokens(backbones, sides):
    backbones.check_equal_work(type(sides), sides.skeleton)


@torch.no_grad()
def test_unequal_work_is_noticed(backbones, sides, monkeypatch):
    monkeypatch.setattr(type(sides), "noise", lambda self, case: self._random(case.num_noise, 64, seed=case.size)[None])
    original, drawn = type(sides)._semantic, iter(range(100, 200))
    monkeypatch.setattr(type(sides), "_semantic", lambda self, case, seed: original(self, case, next(drawn)))
    with pytest.raises(AssertionError, match="not close"):
        backbones.check_equal_work(type(sides), sides.skeleton)


def test_images_are_their_steps(backbones, sides):
    """One of every time: an image is its reading and 28 steps, whatever the stages."""
    case = backbones.parsed("2x512", tiny=True)
    keys = [(mode, kind) for mode in sides.modes for kind in [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]]
    keys += [(mode, preset) for mode in sides.modes for preset in backbones.PRESETS]
    timed = {key: {"first": 1.0, "step": 1.0, "read": 1.0, "peak": 5} for key in ["diffusers", *keys]}
    costs = backbones.costs_of(sides, case, timed)
    assert {cost.image for way, cost in costs.items() if way[0] != "diffusers"} == {29.0}
    assert costs["diffusers", "faithful"].image == 28.0 and costs["diffusers", "faithful"].peak == 5


def test_stages_are_those_of_the_true_size(backbones, sides):
    split = [4, 7, 17] if "joint" in sides.modes else [3, 4, 21]
    both, semantic, identity = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)
    kinds = {"1x1024": [semantic, both, identity], "0": [semantic] * 3}  # alone, the prompt is heard to the end
    for row, expected in kinds.items():
        steps = backbones.stage_steps(sides, backbones.parsed(row), "paper")
        assert steps == list(zip(expected, split, strict=True))


def test_a_row_that_says_nothing(backbones):
    for row in ("1x300", "x512", "2", "0x512", "some"):
        with pytest.raises(ValueError, match=f"row '{row}': expected 0, or a number"):
            backbones.parsed(row)


def test_a_whole_run_at_toy_size(backbones, sides):
    lines, _ = backbones.compare(type(sides), sides.skeleton, [backbones.parsed("1x512", True)], False, True, 1, 2)
    rows = [line for line in lines if line.startswith("| 1 of 32 px")]
    assert len(rows) == 4  # two guidances in two tables
    assert any("never slower than diffusers" in line for line in lines)


def test_less_of_the_first_picture_stays_from_a_higher_sigma(tmp_path):
    reflection = script("reflection")
    benchmark = EmojiBenchmark(NUM_SUBJECTS + 2, cutout_folder(tmp_path / "cutouts", seen=3, unseen=NUM_SUBJECTS))
    first, other = benchmark.cases[0], benchmark.cases[NUM_SUBJECTS]
    assert first.looks == other.looks and first.scene != other.scene
    rows = reflection.compare(tiny_pipeline(), benchmark, steps=3, sigmas=(0.01, 0.5, 1.0))
    stays = [row["stays"] for row in rows.values()]
    assert list(rows) == [0.01, 0.5, 1.0] and stays == sorted(stays, reverse=True) and stays[0] > stays[-1] + 3
    assert all(0 <= row[name] <= 100 for row in rows.values() for name in ("ground", "place", "identity"))


def test_what_departs_is_told_of_each_kind_of_picture(tmp_path, monkeypatch):
    """By an eye that compares pixels with those of a picture as planned: it must find what was changed."""
    departures = script("departures")
    benchmark = EmojiBenchmark(3, cutout_folder(tmp_path / "cutouts", seen=3, unseen=NUM_SUBJECTS))

    def views(pipe, plan, pictures):
        first, *_ = pixels = [np.asarray(picture).astype(int) for picture in pictures]
        for each in pixels:
            corner, changed = (each[-1, 0] != first[-1, 0]).any(), (each != first).any()
            said = ("scene",) if corner else ("view",) if changed else ()
            yield SimpleNamespace(departures=lambda plan, said=said: said)

    monkeypatch.setattr(departures, "views", views)
    rows = departures.told(None, benchmark)
    assert list(rows) == ["as planned", "another subject", "another scene", "another view", "another pose"]
    assert rows["as planned"] == {"subject": 0, "scene": 0, "view": 0, "pose": 0}
    assert rows["another scene"]["scene"] == 1
    assert rows["another pose"] == {
        "subject": 0,
        "scene": 0,
        "view": 1,
        "pose": 0,
    }


def test_stages_are_told_apart(tmp_path):
    stages, pipe = script("stages"), tiny_pipeline()
    benchmark = EmojiBenchmark(3, cutout_folder(tmp_path / "cutouts", seen=NUM_SUBJECTS, unseen=0), unseen=False)
    one = (Stage(0.0, semantic=0.0),)
    scores = stages.scored(pipe, benchmark, one)
    case = benchmark.cases[1]
    drawn = {"stages": one, "generator": torch.Generator().manual_seed(case.seed)}
    picture = pipe(case.prompt, benchmark.references(case), **drawn).images[0]
    assert scores[1] == benchmark.score(case, [picture])[0].scores and len(scores) == 3
    assert set(stages.SHOWN) <= set(scores[0])
    assert len({resolve_stages(each) for each in stages.CANDIDATES.values()}) == len(stages.CANDIDATES)


def test_the_plan_of_a_case_is_true(tmp_path):
    departures = script("departures")
    benchmark = EmojiBenchmark(6, cutout_folder(tmp_path / "cutouts", seen=3, unseen=NUM_SUBJECTS))
    for case in benchmark.cases:
        plan, (stands,) = departures.true_plan(benchmark, case), case.scene.placements
        assert plan.scene == f"{case.scene.ground.colour} {case.scene.ground.pattern}"
        assert plan.pose == f"image 1 {stands.pose}" and plan.view.startswith(f"1 of image 1 {stands.place}")
        assert len(plan.subject_images) == 1 and plan.asked == case.prompt


def test_a_batch_encodes_a_subject_once(tmp_path, monkeypatch):
    batches = script("batches")
    monkeypatch.setattr(batches, "PLACES", ("left", "right"))
    file = batches.write_rows(tmp_path, size=32, steps=1)
    costs = batches.compare(tiny_pipeline(), file, rounds=1, max_batch=4)
    assert [cost.encoded for cost in costs.values()] == [8, 4, 4]
    assert batches.table(costs, 8).row_count == 3


def test_a_load_counts_what_was_answered():
    serving = script("serving")
    with tiny_engine.serving(tiny_pipeline(), max_waiting=2) as (_, url):
        answers, seconds = serving.load(url, serving.encoded(url), range(6), clients=6, steps=1)
        assert [(answer.status, answer.pictures) for answer in answers] == [(200, 1)] * 6
        assert max(answer.seconds for answer in answers) <= seconds
        assert serving.row(answers, seconds)[:2] == ("6", "6")
        assert serving.post(f"{url}/v1/images/generations", b"{", "application/json")[0] == 400
    lost = serving.ask(url, "0" * 64, 0, steps=1)  # nobody is there any more
    assert (lost.status, lost.pictures) == (0, 0)


def test_plans_side_by_side_are_those_one_after_the_other(monkeypatch):
    shorten_plans(monkeypatch)
    requests = [("a red ground", [picture("red")]), ("a", []), ("image 2 on red", [picture("blue"), picture("red")])]
    rows = script("plans").compare(reasoning_pipeline(), requests)
    (alone, *first), (together, *second) = rows.values()
    assert alone == together and [plan.asked for plan in alone] == [words for words, _ in requests]
    assert min(*first, *second) > 0


class TestBestOf:
    def test_a_judge_who_knows_is_never_worse(self, tmp_path, monkeypatch):
        """Two that prefer the first and the last of two candidates are worth a blind choice together."""
        shorten_plans(monkeypatch)
        benchmark = EmojiBenchmark(3, cutout_folder(tmp_path, seen=0, unseen=NUM_SUBJECTS))
        pipe = reasoning_pipeline(image_size=128, num_inference_steps=2)

        def first(pictures, plan, references):
            return [Score(subject=1 / (1 + k)) for k in range(len(pictures))]

        def last(pictures, plan, references):
            return [Score(subject=k) for k in range(len(pictures))]

        rows = script("best_of").compare(pipe, benchmark, {"first": first, "last": last}, 2)
        for name in ("identity", "obedience", "both"):
            assert rows["first, gain"][name].mean + rows["last, gain"][name].mean == pytest.approx(0)
            means = [rows[way][name].mean for way in ("first", "last", "a blind choice")]
            assert (means[0] + means[1]) / 2 == pytest.approx(means[2])
        assert rows["the best there is, gain"]["both"].mean >= max(0, rows["first, gain"]["both"].mean)
        assert rows["a blind choice"]["both"].subjects == 3 and script("best_of").errors_gone(rows, "first") <= 1

    def test_gains_are_compared_case_by_case(self, monkeypatch):
        """By hand: four of six subjects gain, and what their cases have in common is in no interval."""
        best_of = script("best_of")
        found = dict(zip("abcdef", [(0.1, 0.4), (0.5, 0.8), (0.9, 0.9)] * 2, strict=True))
        benchmark = SimpleNamespace(cases=[SimpleNamespace(subject=name) for name in found])

        def choices(pipe, benchmark, case, *rest):
            ways = ("a blind choice", "judge", "the best there is")
            blind, best = found[case.subject]
            return {
                way: dict.fromkeys(("identity", "obedience", "both"), value)
                for way, value in zip(ways, (blind, best, best), strict=True)
            }

        monkeypatch.setattr(best_of, "choices", choices)
        rows = best_of.compare(None, benchmark, {"judge": None}, 2)
        gain = rows["judge, gain"]["identity"]
        arm = 2.5706 * (0.12 / 5 / 6) ** 0.5  # Student's t of five degrees of freedom; squared deviations are 0.12
        assert (gain.mean, gain.low, gain.high) == pytest.approx((0.2, 0.2 - arm, 0.2 + arm), abs=1e-4)
        assert rows["a blind choice"]["identity"].high - rows["a blind choice"]["identity"].low > gain.high - gain.low
        assert best_of.errors_gone(rows, "judge") == pytest.approx(1 - 0.9 / 1.5)

    def test_it_paints_what_the_judge_chose(self, tmp_path, monkeypatch):
        shorten_plans(monkeypatch)
        benchmark = EmojiBenchmark(1, cutout_folder(tmp_path, seen=0, unseen=NUM_SUBJECTS))
        pipe, shown = reasoning_pipeline(image_size=128, num_inference_steps=2), []

        def second(pictures, plan, references):
            shown.append((list(pictures), len(references)))
            return [Score(subject=k) for k in (0, 1, 0)]

        chosen = script("best_of").choices(pipe, benchmark, benchmark.cases[0], {"second": second}, 3)
        ((pictures, count),) = shown
        truth = [each.scores for each in benchmark.score(benchmark.cases[0], pictures)]
        assert count == 1 and len(truth) == 3
        for name in ("identity", "obedience"):
            assert chosen["second"][name] == truth[1][name]
            assert chosen["a blind choice"][name] == pytest.approx(sum(each[name] for each in truth) / 3)


def test_emoji_of_another_artist_become_named_cutouts(tmp_path):
    """With or without the selector in the name; signs, faces and files that are no emoji stay behind."""
    for name in ("1f41e", "2602-fe0f", "1f600", "0023-fe0f-20e3", "notes"):
        picture("red").convert("RGBA").save(tmp_path / f"{name}.png")
    names = script("other_artist").copy_things(tmp_path, tmp_path / "out")
    assert sorted(names) == ["lady beetle", "umbrella"]
    assert load_subjects(cutouts=tmp_path / "out").names == ("lady beetle", "umbrella")
    with pytest.raises(FileNotFoundError, match="no emoji of a thing"):
        script("other_artist").copy_things(tmp_path / "out", tmp_path / "none")
