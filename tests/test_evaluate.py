"""The emoji benchmark: the rendered truth is perfect, and each kind of wrong picture is wrong in just that way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import tiny_pipeline
from tiny_subjects import cutout_folder, held_out

from subjectgen.data.render import ReferencePose
from subjectgen.data.subjects import is_unseen
from subjectgen.data.world import COLOURS, PLACES, POSES, SIDE, SIZES, Ground, Placement, Scene
from subjectgen.evaluate import emoji
from subjectgen.evaluate.cases import cases_hash
from subjectgen.evaluate.emoji import PARTS, EmojiBenchmark
from subjectgen.evaluate.emoji_scores import closeness, copied
from subjectgen.evaluate.sheet import GAP, LINE, captioned_sheet, picture_grid, picture_of, side_by_side
from subjectgen.evaluate.shown import SceneReader, Shown, box_mask, nearest, of_reference, psnr

NUM_PROMPTS = 4
RIGHT = ("ground", "place", "size", "pose", "obedience", "identity", "closeness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=3, unseen=emoji.NUM_SUBJECTS)


@pytest.fixture(scope="module")
def benchmark(folder):
    return EmojiBenchmark(NUM_PROMPTS, folder, tuple(PARTS))


def cases_of(benchmark, *parts):
    return [case for case in benchmark.cases if case.part in parts]


def other(options, chosen):
    return options[(list(options).index(chosen) + 1) % len(options)]


def rendered(benchmark, case, scene=None, looks=None):
    return benchmark.renderer.scenes([scene or case.scene], [list(looks or case.looks)])[0]


def scores(benchmark, case, picture):
    return benchmark.score_pixels(case, [picture])[0]


def changed(scene, k=0, **changes):
    """The scene with another placement of subject k."""
    placements = list(scene.placements)
    placements[k] = replace(placements[k], **changes)
    return replace(scene, placements=tuple(placements))


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

    def test_closeness(self):
        """Of four others two are farther and one is as far."""
        assert closeness(torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0]), own=2) == 0.5
        assert closeness(torch.tensor([1.0, 3.0, 2.0]), own=0) == 1 and closeness(torch.tensor([1.0, 3.0]), own=1) == 0

    def test_box_mask(self):
        placements = (Placement(place="top left", size="small"), Placement(place="bottom right", size="large"))
        mask = box_mask(Scene(ground=Ground(colour="red"), placements=placements))
        assert mask.sum() == 40**2 + 80**2
        assert mask[4:44, 4:44].all() and mask[44:124, 44:124].all()


class TestCases:
    def test_only_unseen_subjects(self, benchmark):
        assert all(held_out(name) for name in benchmark.renderer.names)
        counts = {"one": 1, "wordings": 1, "two": 2, "three": 3, "copying": 1}
        for case in benchmark.cases:
            assert len(case.scene.placements) == len(case.looks) == len(case.poses) == counts[case.part]
            assert len({look.subject for look in case.looks}) == len(case.looks)
            assert all(placement.number == 1 for placement in case.scene.placements)
            assert case.subject == benchmark.renderer.names[case.looks[0].subject]

    def test_one_has_as_many_as_asked_for_and_the_others_half(self, benchmark):
        counts = {part: len(cases_of(benchmark, part)) for part in PARTS}
        assert counts == {"one": 4, "wordings": 2, "two": 2, "three": 2, "copying": 2}
        assert len({case.name for case in benchmark.cases}) == 12

    def test_cases_are_always_the_same(self, benchmark, folder):
        again = EmojiBenchmark(NUM_PROMPTS + 4, folder, ("copying", "three", "one"))
        for part, number in (("one", 4), ("three", 2), ("copying", 2)):
            assert cases_of(again, part)[:number] == cases_of(benchmark, part)
        assert again.looks == benchmark.looks

    def test_cases_are_those_of_every_machine(self, benchmark):
        """Prompts, subjects and seeds, as they were when this was written: figures of before stay comparable."""
        assert cases_hash(benchmark.cases) == "0e24641328bbcdfab5194d70d163420fd93122fc22b30a0ace6e3119de137a84"

    def test_other_wordings_ask_for_the_same(self, benchmark):
        for case, anew in zip(cases_of(benchmark, "one"), cases_of(benchmark, "wordings"), strict=False):
            assert anew.prompt != case.prompt
            same = ("scene", "looks", "poses", "seed", "subject")
            assert [getattr(anew, name) for name in same] == [getattr(case, name) for name in same]

    def test_a_reference_to_be_copied_shows_nothing_that_is_asked_for(self, folder):
        for case in EmojiBenchmark(40, folder, ("copying",)).cases:
            (placement,), given = case.scene.placements, of_reference(case.poses[0])
            assert given.ground != case.scene.ground.colour and given.place != placement.place
            assert given.size != placement.size and given.poses != (placement.pose,)
            said = case.prompt.replace("image 1", "").replace(case.subject, "")
            assert placement.pose != "upright" or "upright" in said
            assert placement.size != "medium" or "medium-sized" in said

    def test_too_few_subjects(self, tmp_path):
        with pytest.raises(ValueError, match="5 subjects never trained on: expected 60"):
            EmojiBenchmark(1, cutout_folder(tmp_path, seen=1, unseen=5))

    def test_settings_are_chosen_on_other_subjects(self, tmp_path):
        folder = cutout_folder(tmp_path, seen=70, unseen=emoji.NUM_SUBJECTS)
        seen, unseen = (EmojiBenchmark(8, folder, unseen=unseen) for unseen in (False, True))
        assert len(seen.renderer.names) == 60 and not any(map(is_unseen, seen.renderer.names))
        assert all(map(is_unseen, unseen.renderer.names)) and cases_hash(seen.cases) != cases_hash(unseen.cases)
        assert (seen.name, unseen.name) == ("emoji, trained subjects", "emoji")
        with pytest.raises(ValueError, match="59 subjects trained on: expected 60"):
            EmojiBenchmark(8, cutout_folder(tmp_path / "fewer", seen=59, unseen=60), unseen=False)

    def test_an_unknown_part(self, folder):
        with pytest.raises(ValueError, match="'four' is no part of the emoji benchmark: expected one, wordings"):
            EmojiBenchmark(1, folder, ("four",))


class TestVersion:
    def test_figures_and_their_version_change_together(self, benchmark):
        """Scores that older code wrote lack what is new: whoever changes these figures counts the version up."""
        assert [figure.name for figure in benchmark.figures] == [
            "identity", "posed", "misposed", "closeness", "mixed", "region_psnr", "obedience", "ground", "place",
            "size", "pose", "turned", "copied_ground", "copied_place", "copied_size", "copied_turn",
        ]  # fmt: skip
        assert list(benchmark.scorers) == ["emoji@2"]


class TestMeasure:
    def test_the_autoencoder(self, folder):
        """By hand: encoded, decoded and clipped; 10 log10(4 / error) of pixels -1..1, the mean over cases."""
        benchmark, pipe, expected = EmojiBenchmark(2, folder), tiny_pipeline(), []
        found = benchmark.measure(pipe)
        for case in benchmark.cases:
            truth = benchmark.rendered(case)[None]
            with torch.no_grad():
                again = pipe.vae.decode(pipe.vae.encode(truth).latent_dist.mode()).sample.clamp(-1, 1)
            expected.append(10 * np.log10(4 / float((again - truth).square().mean())))
        assert found == {"PSNR of the autoencoder on 2 truths, dB": pytest.approx(np.mean(expected), abs=1e-3)}


class TestScores:
    def test_the_truth_is_perfect_and_noise_does_not_hurt(self, benchmark):
        generator = torch.Generator().manual_seed(0)
        for case in benchmark.cases:
            truth = rendered(benchmark, case)
            score = scores(benchmark, case, truth)
            assert [score[name] for name in RIGHT] == [1] * len(RIGHT) and score["region_psnr"] > 100
            assert all(score[name] == 0 for name in score if name.startswith("copied") or name == "mixed")
            noisy = scores(benchmark, case, truth + 0.1 * torch.randn(truth.shape, generator=generator))
            assert [noisy[name] for name in RIGHT] == [1] * len(RIGHT)
            assert noisy["region_psnr"] == pytest.approx(26.02, abs=0.5)  # 20 log10(2 / .1)

    def test_a_picture_is_scored_as_its_pixels_are(self, benchmark):
        case = benchmark.cases[0]
        twice = benchmark.truth(case).resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
        exact, resized = benchmark.score(case, [benchmark.truth(case), twice])
        assert exact.scores["region_psnr"] > 45 and resized.scores["region_psnr"] > 25
        assert [exact.scores[name] for name in RIGHT] == [resized.scores[name] for name in RIGHT] == [1] * len(RIGHT)
        with pytest.raises(ValueError, match="a picture of 20x10 pixels: expected a square one"):
            benchmark.score(case, [Image.new("RGB", (20, 10))])

    def test_a_wrong_ground(self, benchmark):
        for case in cases_of(benchmark, "one", "two"):
            colour = other(list(COLOURS), case.scene.ground.colour)
            score = scores(benchmark, case, rendered(benchmark, case, case.scene.with_colour(colour)))
            assert (score["ground"], score["place"], score["size"]) == (0, 1, 1)
            assert score["obedience"] == pytest.approx((score["place"] + score["size"] + score["pose"]) / 4)

    def test_a_wrong_place(self, benchmark):
        for case in cases_of(benchmark, "one"):
            scene = changed(case.scene, place=other(PLACES, case.scene.placements[0].place))
            score = scores(benchmark, case, rendered(benchmark, case, scene))
            assert (score["ground"], score["place"], score["size"], score["pose"]) == (1, 0, 1, 1)

    def test_one_of_two_in_a_wrong_place(self, benchmark):
        for case in cases_of(benchmark, "two"):
            taken = {placement.place for placement in case.scene.placements}
            scene = changed(case.scene, k=1, place=next(place for place in PLACES if place not in taken))
            score = scores(benchmark, case, rendered(benchmark, case, scene))
            assert (score["place"], score["identity"]) == (0.5, 0.5)

    def test_two_that_changed_places_are_mixed(self, benchmark):
        for case in cases_of(benchmark, "two"):
            score = scores(benchmark, case, rendered(benchmark, case, looks=case.looks[::-1]))
            assert (score["identity"], score["mixed"], score["place"]) == (0, 1, 1)

    def test_a_wrong_size(self, benchmark):
        for case in cases_of(benchmark, "one"):
            scene = changed(case.scene, size=other(list(SIZES), case.scene.placements[0].size))
            score = scores(benchmark, case, rendered(benchmark, case, scene))
            assert (score["place"], score["size"], score["pose"]) == (1, 0, 1)

    def test_a_wrong_pose(self, benchmark):
        """The polygons of these tests have no pose that looks like another."""
        for case in cases_of(benchmark, "one"):
            scene = changed(case.scene, pose=other(list(POSES), case.scene.placements[0].pose))
            score = scores(benchmark, case, rendered(benchmark, case, scene))
            assert (score["place"], score["size"], score["pose"]) == (1, 1, 0)

    def test_poses_other_than_upright_apart(self, benchmark):
        for case in cases_of(benchmark, "one"):
            asked = case.scene.placements[0].pose
            shown = {pose: rendered(benchmark, case, changed(case.scene, pose=pose)) for pose in POSES}
            told = {pose: scores(benchmark, case, picture).get("turned") for pose, picture in shown.items()}
            assert told == {pose: None if asked == "upright" else float(pose == asked) for pose in POSES}

    def test_identity_by_pose(self, benchmark):
        for case in cases_of(benchmark, "one"):
            asked = case.scene.placements[0].pose
            right, wrong = (
                scores(benchmark, case, rendered(benchmark, case, changed(case.scene, pose=pose)))
                for pose in (asked, other(list(POSES), asked))
            )
            assert right["posed"] == right["identity"] == 1 and "misposed" not in right
            assert wrong["misposed"] == wrong["identity"] and "posed" not in wrong

    def test_identity_by_pose_of_two_counts_where_both_agree(self, benchmark):
        for case in cases_of(benchmark, "two"):
            pose = case.scene.placements[0].pose
            half = changed(case.scene, pose=other(list(POSES), pose))
            score = scores(benchmark, case, rendered(benchmark, case, half))
            assert score["pose"] == 0.5 and not score.keys() & {"posed", "misposed"}

    def test_a_wrong_subject(self, benchmark):
        for case in cases_of(benchmark, "one", "copying"):
            wrong = benchmark.looks[case.looks[0].subject + 7]
            score = scores(benchmark, case, rendered(benchmark, case, looks=[wrong]))
            assert (score["ground"], score["identity"]) == (1, 0) and score["region_psnr"] < 30
            assert 0 <= score["closeness"] <= 58 / 59

    def test_a_wrong_colour_in_the_right_place(self, benchmark):
        """Where a subject stands is judged whatever it looks like."""
        for case in cases_of(benchmark, "one"):
            (look,) = case.looks
            picture = rendered(benchmark, case, looks=[replace(look, hue=look.hue + 180)])
            score = scores(benchmark, case, picture)
            assert (score["ground"], score["place"]) == (1, 1) and score["region_psnr"] < 40

    def test_no_subject(self, benchmark):
        case = benchmark.cases[0]
        empty = benchmark.renderer.scenes([Scene(ground=case.scene.ground)], [[]])[0]
        assert scores(benchmark, case, empty)["region_psnr"] < 20


class TestCopying:
    @pytest.mark.parametrize("copied_name", ["ground", "place", "size", "turn"])
    def test_each_thing_copied_from_the_reference_is_found(self, benchmark, copied_name):
        for case in cases_of(benchmark, "copying"):
            given = of_reference(case.poses[0])
            scene = {
                "ground": case.scene.with_colour(given.ground),
                "place": changed(case.scene, place=given.place),
                "size": changed(case.scene, size=given.size),
                "turn": changed(case.scene, pose=given.poses[0]),
            }[copied_name]
            score = scores(benchmark, case, rendered(benchmark, case, scene))
            found = {name: score[f"copied_{name}"] for name in ("ground", "place", "size", "turn")}
            assert found == {**dict.fromkeys(found, 0), copied_name: 1}

    def test_what_another_mistake_shows_is_no_copy(self, benchmark):
        for case in cases_of(benchmark, "copying"):
            given, asked = of_reference(case.poses[0]), case.scene.placements[0].place
            third = next(place for place in PLACES if place not in (given.place, asked))
            score = scores(benchmark, case, rendered(benchmark, case, changed(case.scene, place=third)))
            assert (score["place"], score["copied_place"]) == (0, 0)

    def test_nothing_is_said_where_the_reference_shows_what_was_asked_for(self):
        asked = Shown(ground="red", place="top", size="small", poses=("upright",))
        given = replace(asked, place="left")
        assert copied(asked, asked, given) == {"copied_place": 0}
        assert copied(asked, given, given) == {"copied_place": 1}

    def test_turns_that_look_the_same_cannot_be_copied(self):
        asked = Shown(ground="red", place="top", size="small", poses=("upright",))
        given = replace(asked, poses=("upside down",))
        assert copied(asked, given, given) == {"copied_turn": 1}
        assert copied(asked, replace(asked, poses=("upright", "upside down")), given) == {}

    def test_a_disc_has_no_upside(self, benchmark):
        """Of a blank disc all poses look alike, and none of them is wrong."""
        renderer = benchmark.renderer
        y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
        disc = torch.stack([torch.zeros(64, 64), torch.zeros(64, 64), *[(x**2 + y**2 < 0.9).float()] * 2])
        scene = Scene(ground=Ground(colour="white"), placements=(Placement(size="large"),))
        case = replace(benchmark.cases[0], scene=scene)
        kept = renderer.small[case.looks[0].subject].clone()
        try:
            renderer.small[case.looks[0].subject] = disc
            shown = SceneReader(renderer, scene, case.looks).read(rendered(benchmark, case), 0)
        finally:
            renderer.small[case.looks[0].subject] = kept
        assert shown == Shown(ground="white", place="middle", size="large", poses=tuple(POSES))

    @pytest.mark.parametrize(
        ("pose", "expected"),
        [
            (ReferencePose(), Shown(ground="white", place="middle", size="large", poses=("upright",))),
            (
                ReferencePose(degrees=180.0, scale=40 / 128, x=-0.6, y=0.6, ground=Ground(colour="red")),
                Shown(ground="red", place="bottom left", size="small", poses=("upside down",)),
            ),
            (
                ReferencePose(degrees=-35.0, scale=56 / 128, x=0.5, y=-0.1),
                Shown(ground="white", place="right", size="medium", poses=("tilted right",)),
            ),
        ],
    )
    def test_what_a_reference_shows(self, pose, expected):
        assert of_reference(pose) == expected


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

    def test_side_by_side(self):
        """Two in a square: both whole, the first on the left."""
        together = side_by_side([Image.new("RGB", (40, 20), "red"), Image.new("RGB", (20, 40), "blue")], cell=64)
        pixels = np.asarray(together)
        assert together.size == (64, 64)
        assert (pixels[:, :32] == (255, 0, 0)).all(-1).sum() == 32 * 16
        assert (pixels[:, 32:] == (0, 0, 255)).all(-1).sum() == 16 * 32
