"""The emoji benchmark: the rendered truth is perfect, and each kind of wrong picture is wrong in just that way."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_pipeline import tiny_pipeline
from tiny_subjects import cutout_folder, held_out
from tiny_training import random_vae

from subjectgen.data.world import COLOURS, PLACES, SIDE, Ground, Placement, Scene
from subjectgen.evaluate import emoji
from subjectgen.evaluate.emoji import EmojiBenchmark, box_mask, evaluate, nearest, paint, psnr, summary
from subjectgen.evaluate.sheet import GAP, LINE, captioned_sheet, picture_grid, picture_of
from subjectgen.generate.stages import Stage
from subjectgen.pipeline import SubjectPipeline

NUM_CASES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=3, unseen=emoji.NUM_SUBJECTS)


@pytest.fixture(scope="module")
def benchmark(folder):
    return EmojiBenchmark(NUM_CASES, folder)


def other(options, chosen):
    return options[(list(options).index(chosen) + 1) % len(options)]


def rendered(benchmark, case, scene=None, subject=None):
    look = benchmark.looks[case.subject if subject is None else subject]
    return benchmark.renderer.scenes([scene or case.scene], [[look]])[0]


class TestMeasures:
    def test_psnr(self):
        """Pixels -1..1 have a peak of 2: an error of .2 everywhere is 20 log10(2 / .2) dB."""
        truth = torch.zeros(3, 4, 4)
        assert psnr(truth + 0.2, truth) == pytest.approx(20, abs=1e-4)
        assert psnr(truth, truth) > 100

    def test_nearest(self):
        candidates = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, SIDE, SIDE).clone()
        everywhere = torch.ones(SIDE, SIDE, dtype=torch.bool)
        assert nearest(torch.full((3, SIDE, SIDE), 0.6), candidates, everywhere) == 1
        assert nearest(torch.full((3, SIDE, SIDE), 0.9), candidates, everywhere) == 2
        picture = torch.full((3, SIDE, SIDE), 0.9)
        picture[:, :10] = 0.1
        top = torch.zeros_like(everywhere)
        top[:10] = True
        assert nearest(picture, candidates, top) == 0
        assert nearest(picture, candidates, ~top) == 2

    def test_box_mask(self):
        placements = (Placement(place="top left", size="small"), Placement(place="bottom right", size="large"))
        mask = box_mask(Scene(ground=Ground(colour="red"), placements=placements))
        assert mask.sum() == 40**2 + 80**2
        assert mask[4:44, 4:44].all() and mask[44:124, 44:124].all()


class TestBenchmark:
    def test_only_unseen_subjects_one_in_a_picture(self, benchmark):
        assert all(held_out(name) for name in benchmark.renderer.names)
        assert [case.subject for case in benchmark.cases] == list(range(NUM_CASES))
        for case in benchmark.cases:
            assert len(case.scene.placements) == case.scene.placements[0].number == 1

    def test_cases_are_always_the_same(self, benchmark, folder):
        again = EmojiBenchmark(NUM_CASES + 2, folder)
        assert again.cases[:NUM_CASES] == benchmark.cases and again.looks == benchmark.looks

    def test_too_few_subjects(self, tmp_path):
        with pytest.raises(ValueError, match="5 subjects never trained on: expected 60"):
            EmojiBenchmark(1, cutout_folder(tmp_path, seen=1, unseen=5))

    def test_the_truth_is_perfect_and_noise_does_not_hurt(self, benchmark):
        generator = torch.Generator().manual_seed(0)
        for case in benchmark.cases:
            truth = rendered(benchmark, case)
            score = benchmark.score(case, truth)
            assert score.ground and score.place and score.identity and score.region_psnr > 100
            score = benchmark.score(case, truth + 0.1 * torch.randn(truth.shape, generator=generator))
            assert score.ground and score.place and score.identity
            assert score.region_psnr == pytest.approx(26.02, abs=0.5)  # 20 log10(2 / .1)

    def test_a_wrong_ground(self, benchmark):
        for case in benchmark.cases:
            colour = other(list(COLOURS), case.scene.ground.colour)
            score = benchmark.score(case, rendered(benchmark, case, case.scene.with_colour(colour)))
            assert not score.ground and score.place

    def test_a_wrong_place(self, benchmark):
        for case in benchmark.cases:
            place = other(PLACES, case.scene.placements[0].place)
            score = benchmark.score(case, rendered(benchmark, case, case.scene.with_place(place)))
            assert score.ground and not score.place

    def test_a_wrong_subject(self, benchmark):
        for case in benchmark.cases:
            score = benchmark.score(case, rendered(benchmark, case, subject=case.subject + 7))
            assert score.ground and not score.identity
            assert score.region_psnr < 30

    def test_a_wrong_colour_in_the_right_place(self, benchmark):
        """Where a subject stands is judged whatever it looks like."""
        for case in benchmark.cases:
            look = benchmark.looks[case.subject]
            recoloured = replace(look, hue=look.hue + 180)
            score = benchmark.score(case, benchmark.renderer.scenes([case.scene], [[recoloured]])[0])
            assert score.ground and score.place and score.region_psnr < 40

    def test_no_subject(self, benchmark):
        case = benchmark.cases[0]
        empty = benchmark.renderer.scenes([Scene(ground=case.scene.ground)], [[]])[0]
        assert benchmark.score(case, empty).region_psnr < 20

    def test_summary(self, benchmark):
        case = benchmark.cases[0]
        right = benchmark.score(case, rendered(benchmark, case))
        wrong = replace(right, identity=False, place=False, region_psnr=3.0)
        table = summary([right, right, wrong, replace(wrong, place=True)])
        assert (table["ground"], table["place"], table["identity"]) == (100, 75, 50)
        assert table["region_psnr"] == pytest.approx((right.region_psnr + 3) / 2)


class Truthful(SubjectPipeline):
    """A pipeline that paints the truth, whatever it is told to do without."""

    def __init__(self, benchmark):
        self.benchmark, self.vae, self.stages = benchmark, random_vae(), []

    @property
    def device(self):
        return torch.device("cpu")

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompts, subject_images, *, stages, generator, output_type):
        self.stages.append(stages)
        cases = [next(case for case in self.benchmark.cases if case.prompt == prompt) for prompt in prompts]
        assert [[picture.tobytes() for picture in given] for given in subject_images] == [
            [self.benchmark.reference(case).tobytes()] for case in cases
        ]
        assert output_type == "pt" and len({each.initial_seed() for each in generator}) == len(cases)
        images = torch.stack([self.benchmark.truth(case) for case in cases]) / 2 + 0.5
        return type("Output", (), {"images": images})


class TestEvaluate:
    def test_the_whole_of_it(self, benchmark, folder, tmp_path, capsys):
        pipe = Truthful(benchmark)
        rows = evaluate(pipe, NUM_CASES, tmp_path, cutouts=folder)
        assert pipe.stages == [None, (Stage(0.0, identity=0.0),), "paper"]
        for row in rows.values():
            assert (row["ground"], row["place"], row["identity"]) == (100, 100, 100) and row["region_psnr"] > 100
        written = json.loads((tmp_path / "table.json").read_text())
        assert written["stages"] == rows and written["prompts"] == NUM_CASES and written["vae_psnr"] < 30
        for name in ("default", "mllm-only", "paper"):
            lines = [json.loads(line) for line in (tmp_path / f"scores-{name}.jsonl").read_text().splitlines()]
            assert [line["prompt"] for line in lines] == [case.prompt for case in benchmark.cases]
        assert Image.open(tmp_path / "sheet.png").height > SIDE * NUM_CASES / 2
        printed = capsys.readouterr().out
        assert "mllm only" in printed and "100.0" in printed and "sheet.png" in printed

    def test_a_real_pipeline_paints_each_case_by_its_own_seed(self, folder):
        few = EmojiBenchmark(2, folder)
        pipe = tiny_pipeline(image_size=SIDE, num_inference_steps=2)
        pictures = paint(pipe, few, "paper")
        assert [picture.shape for picture in pictures] == [(3, SIDE, SIDE)] * 2
        alone = pipe(
            few.cases[1].prompt,
            few.reference(few.cases[1]),
            stages="paper",
            generator=torch.Generator().manual_seed(emoji.SEED + 1),
            output_type="pt",
        ).images[0]
        torch.testing.assert_close(pictures[1], alone * 2 - 1, atol=1e-4, rtol=0)


class TestSheet:
    def test_picture_of(self):
        pixels = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 2, 2).expand(3, 2, 2)
        assert [picture_of(pixels).getpixel(xy)[0] for xy in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 128, 255, 255]

    def test_grid(self):
        pixels = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, 4, 4)
        grid = picture_grid(pixels, columns=3)
        assert grid.size == (12, 8)
        assert [grid.getpixel((x, y))[0] for y in (1, 5) for x in (1, 5, 9)] == [0, 51, 102, 153, 204, 255]
        with pytest.raises(ValueError, match="6 pictures do not fill rows of 4"):
            picture_grid(pixels, columns=4)

    def test_captions_stand_beside_their_pictures(self):
        rows = [
            ("a red thing", [Image.new("RGB", (10, 10), "red")]),
            ("a blue thing", [Image.new("RGB", (9, 9), "blue")]),
        ]
        sheet = captioned_sheet(("result",), rows, cell=32, per_line=1)
        assert sheet.getpixel((GAP + 16, LINE + GAP + 16)) == (255, 0, 0)
        assert sheet.getpixel((GAP + 16, LINE + GAP + 32 + GAP + 16)) == (0, 0, 255)
        beside = sheet.crop((GAP + 32 + GAP, LINE + GAP, sheet.width, LINE + GAP + 32))
        assert beside.getextrema()[0][0] < 100  # words
