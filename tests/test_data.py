"""The emoji world against closed forms: where things land, what prompts say, what is never trained on."""

import math
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prompt_reader import understood
from tiny_subjects import blob, cutout_folder, held_out, names, quarters, subjects_from

import subjectgen
from subjectgen.data import subjects as module
from subjectgen.data.batches import batch_of, random_looks, training_pose
from subjectgen.data.held_out_words import HELD_OUT, SPOKEN
from subjectgen.data.more_words import WORDINGS
from subjectgen.data.prompts import LITTLE_WORDS, TRAINED, Words, request
from subjectgen.data.render import Look, ReferencePose, Renderer, hue_shift
from subjectgen.data.subjects import load_subjects, save_subjects
from subjectgen.data.talks import corpus
from subjectgen.data.world import (
    COLOURS,
    MAX_SUBJECTS,
    PATTERNS,
    PLACES,
    POSES,
    SIDE,
    Ground,
    Placement,
    Scene,
    random_count,
    random_scene,
)

RED, GREEN, BLUE, WHITE = (1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, 1)  # pixels


@pytest.fixture(scope="module")
def renderer():
    return Renderer(subjects_from(square=quarters(), blob=blob(3), bar=quarters().resize((128, 64))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=6, unseen=3)


def painted(renderer, ground=Ground(colour="black"), **placement):  # noqa: B008 (frozen)
    """A scene with the square."""
    scene = Scene(ground=ground, placements=(Placement(**placement),))
    return renderer.scenes([scene], [[Look(subject=0)]])[0]


def colour_at(picture, x, y):
    return tuple(picture[:, round(y), round(x)].tolist())


class TestWorld:
    @pytest.mark.parametrize(
        ("placement", "boxes"),
        [
            ({"place": "top left", "size": "small"}, [(4, 4, 44, 44)]),
            ({"place": "bottom right", "size": "large"}, [(44, 44, 124, 124)]),
            ({"place": "right", "size": "medium"}, [(68, 36, 124, 92)]),
            ({"place": "top", "size": "small", "number": 2}, [(4, 4, 44, 44), (84, 4, 124, 44)]),
            ({"size": "small", "number": 3}, [(4, 44, 44, 84), (44, 44, 84, 84), (84, 44, 124, 84)]),
        ],
    )
    def test_boxes(self, placement, boxes):
        assert Placement(**placement).boxes() == boxes

    def test_any_scene_can_be_told_from_any_other_place(self):
        """Copies and several subjects never overlap, and all stay inside."""
        rng = np.random.default_rng(0)
        for _ in range(300):
            scene = random_scene(rng, random_count(rng))
            boxes = [box for placement in scene.placements for box in placement.boxes()]
            assert all(0 <= edge <= SIDE for box in boxes for edge in box)
            for i, (left, top, right, bottom) in enumerate(boxes):
                assert all(right <= b[0] or b[2] <= left or bottom <= b[1] or b[3] <= top for b in boxes[:i])

    def test_scenes_cover_the_world(self):
        rng = np.random.default_rng(0)
        scenes = [random_scene(rng, random_count(rng)) for _ in range(1500)]
        single = [scene.placements[0] for scene in scenes if len(scene.placements) == 1]
        assert {scene.ground.colour for scene in scenes} == set(COLOURS)
        assert {scene.ground.pattern for scene in scenes} == set(PATTERNS)
        assert {len(scene.placements) for scene in scenes} == set(range(1, MAX_SUBJECTS + 1))
        assert {placement.place for placement in single} == set(PLACES)
        assert {placement.pose for placement in single} == set(POSES)
        assert {placement.number for placement in single} == {1, 2, 3}

    @pytest.mark.parametrize(("options", "expected"), [({}, 0.5), ({"upright": 0.2}, 0.2), ({"upright": 1.0}, 1.0)])
    def test_how_many_stand_upright(self, options, expected):
        """Of copies, which stand in a row, all do."""
        rng = np.random.default_rng(0)
        placements = [p for count in (1, 2) for _ in range(800) for p in random_scene(rng, count, **options).placements]
        poses = [placement.pose for placement in placements if placement.number == 1]
        assert np.mean([pose == "upright" for pose in poses]) == pytest.approx(expected, abs=0.04)
        for turned in set(POSES) - {"upright"}:
            assert np.mean([pose == turned for pose in poses]) == pytest.approx((1 - expected) / 4, abs=0.03)


class TestRenderer:
    @pytest.mark.parametrize("placement", [{"place": "top left", "size": "small"}, {"size": "small", "number": 3}])
    def test_a_subject_fills_its_boxes_and_nothing_else(self, renderer, placement):
        picture = painted(renderer, **placement)
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        for left, top, right, bottom in Placement(**placement).boxes():
            inside[top:bottom, left:right] = True
        black = torch.tensor(COLOURS["black"]) / 127.5 - 1
        torch.testing.assert_close(picture[:, ~inside], black[:, None].expand(3, int((~inside).sum())))
        assert (picture[:, inside].amax(0) > -0.1).all()  # a full channel, or two halves where quarters meet

    @pytest.mark.parametrize(
        ("pose", "corners"),  # left top, right top, left bottom, right bottom
        [
            ("upright", (RED, GREEN, BLUE, WHITE)),
            ("mirrored", (GREEN, RED, WHITE, BLUE)),
            ("upside down", (WHITE, BLUE, GREEN, RED)),
        ],
    )
    def test_poses(self, renderer, pose, corners):
        picture = painted(renderer, pose=pose)
        seen = tuple(colour_at(picture, 64 + x, 64 + y) for y in (-14, 14) for x in (-14, 14))
        assert np.allclose(seen, corners, atol=1e-5)

    @pytest.mark.parametrize(("pose", "degrees"), [("tilted left", -35), ("tilted right", 35)])
    def test_tilt(self, renderer, pose, degrees):
        """The red quarter's middle turns about the centre: clockwise for "right", as one sees it."""
        turn = math.radians(degrees)
        x, y = -20, -20  # of 80 pixels
        there = (64 + x * math.cos(turn) - y * math.sin(turn), 64 + x * math.sin(turn) + y * math.cos(turn))
        assert np.allclose(colour_at(painted(renderer, pose=pose, size="large"), *there), RED, atol=0.05)

    def test_aspect_is_kept(self, renderer):
        reference = renderer.references([Look(subject=2)], [ReferencePose(scale=1.0)])[0]
        assert (reference[:, :31] == 1).all() and (reference[:, -31:] == 1).all()
        assert (reference[:, 33:95].amin(0)[:, :63] < 0).all()

    @pytest.mark.parametrize(
        "pose",
        [
            ReferencePose(),
            ReferencePose(degrees=30.0, scale=0.5, x=0.3, y=-0.2),
            ReferencePose(degrees=180.0),
            ReferencePose(degrees=30.0, x=-0.1, mirrored=True),
        ],
    )
    def test_reference_box(self, renderer, pose):
        """In percent, against the pixels that are not paper."""
        reference = renderer.references([Look(subject=1)], [pose])[0]
        rows, columns = np.nonzero((reference < 0.7).any(0).numpy())
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(renderer.reference_box(Look(subject=1), pose), np.array(expected) / SIDE * 100, atol=2)

    def test_a_mirrored_reference_is_turned_after_it_is_mirrored(self, renderer):
        """So that it is the mirror image of the one that is turned the other way."""
        left, right = renderer.references(
            [Look(subject=0)] * 2, [ReferencePose(degrees=20.0), ReferencePose(degrees=-20.0, mirrored=True)]
        )
        assert torch.allclose(right, left.flip(-1), atol=1e-4) and not torch.allclose(right, left, atol=0.5)

    @pytest.mark.parametrize(
        ("pattern", "second_at"),
        [("striped", (24, 8)), ("checkered", (24, 8)), ("dotted", (8, 8)), ("room", (64, 120))],
    )
    def test_patterns(self, renderer, pattern, second_at):
        """The second colour of a dark ground is a third lighter: c + .35 (255 - c)."""
        picture = renderer.scenes([Scene(ground=Ground(colour="blue", pattern=pattern))], [[]])[0]
        first = np.array(COLOURS["blue"])
        found = (np.array(colour_at(picture, *second_at)) + 1) * 127.5
        assert np.allclose(found, first + 0.35 * (255 - first), atol=0.1)
        plain = renderer.scenes([Scene(ground=Ground(colour="blue"))], [[]])[0]
        assert (picture == plain).all(0).float().mean() > 0.4

    def test_references_are_one_to_a_look(self, renderer):
        looks, poses = [Look(subject=1), Look(subject=0, hue=120.0)], [ReferencePose(), ReferencePose(scale=0.5)]
        both = renderer.references(looks, poses)
        for i in range(2):
            torch.testing.assert_close(both[i : i + 1], renderer.references(looks[i : i + 1], poses[i : i + 1]))


class TestHue:
    def rgba(self):
        rgba = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)

    def test_a_full_turn_is_nothing(self):
        torch.testing.assert_close(hue_shift(self.rgba(), torch.full((3,), 360.0)), self.rgba(), atol=1e-5, rtol=0)

    def test_a_third_of_a_turn_moves_the_channels(self):
        shifted = hue_shift(self.rgba(), torch.full((3,), 120.0))
        torch.testing.assert_close(shifted, self.rgba()[:, [2, 0, 1, 3]], atol=1e-5, rtol=0)

    def test_gray_stays_and_so_does_alpha(self):
        gray = torch.cat([self.rgba()[:, :1].expand(-1, 3, -1, -1), self.rgba()[:, 3:]], dim=1)
        shifted = hue_shift(gray, torch.tensor([60.0, 180.0, 217.0]))
        torch.testing.assert_close(shifted, gray, atol=1e-5, rtol=0)


class TestSubjects:
    def test_the_split_is_by_name(self, folder):
        everything = load_subjects(cutouts=folder)
        seen, unseen = everything.split(unseen=False), everything.split(unseen=True)
        assert set(seen.names) == {name for name in everything.names if not held_out(name)} == set(names(6, False))
        assert set(unseen.names) == set(names(3, True))
        which = everything.names.index(unseen.names[1])
        assert torch.equal(unseen.rgba[1], everything.rgba[which])

    def test_the_cache_is_read_and_the_folder_is_not_cached(self, folder, tmp_path):
        save_subjects(subjects_from(square=quarters()), tmp_path / "cache.safetensors")
        assert load_subjects(tmp_path / "cache.safetensors").names == ("square",)
        assert len(load_subjects(tmp_path / "cache.safetensors", cutouts=folder).names) == 9

    def test_damaged_cache(self, tmp_path):
        (tmp_path / "cache.safetensors").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="delete it"):
            load_subjects(tmp_path / "cache.safetensors")

    def test_no_font(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "FONT", tmp_path / "Emoji.ttf")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(FileNotFoundError, match=r"fonts-noto-color-emoji.*--cutouts"):
            load_subjects()
        assert not list(tmp_path.iterdir())

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_subjects(cutouts=tmp_path / "nowhere")
        with pytest.raises(ValueError, match="no PNG or WebP"):
            load_subjects(cutouts=tmp_path)

    @pytest.mark.parametrize(
        ("picture", "words"),
        [(Image.new("RGB", (20, 20), "red"), "no alpha"), (Image.new("RGBA", (20, 20)), "transparent everywhere")],
    )
    def test_pictures_that_are_no_cutouts(self, tmp_path, picture, words):
        picture.save(tmp_path / "photo.png")
        with pytest.raises(ValueError, match=rf"photo\.png.*{words}"):
            load_subjects(cutouts=tmp_path)


class TestBatches:
    def test_a_batch_is_always_the_same(self, folder):
        training = load_subjects(cutouts=folder).split(unseen=False)
        first = batch_of(Renderer(training), 3, 7, 4)
        torch.manual_seed(99)
        batch_of(used := Renderer(training), 3, 6, 4)
        again = batch_of(used, 3, 7, 4)
        assert (first.prompts, first.scenes, first.looks) == (again.prompts, again.scenes, again.looks)
        assert torch.equal(first.target, again.target) and torch.equal(first.references, again.references)
        assert batch_of(used, 3, 8, 4).prompts != first.prompts != batch_of(used, 4, 7, 4).prompts

    def test_as_many_subjects_as_asked_for(self, folder):
        renderer = Renderer(load_subjects(cutouts=folder).split(unseen=False))
        batches = [batch_of(renderer, 0, index, 2, count) for index in range(12) for count in (1, 2)]
        assert [batch.references.shape[1] for batch in batches] == [1, 2] * 12

    def test_references_show_the_subjects_of_the_target(self, folder):
        renderer = Renderer(load_subjects(cutouts=folder).split(unseen=False))
        batches = [batch_of(renderer, 0, index, 2) for index in range(0, 96, 8)]
        assert {batch.references.shape[1] for batch in batches} >= {1, 2}
        for batch in batches:
            alone = [renderer.references(*pair) for pair in zip(batch.looks, batch.poses, strict=True)]
            torch.testing.assert_close(batch.references, torch.stack(alone))
            truth = [
                renderer.scenes([scene], [looks])[0] for scene, looks in zip(batch.scenes, batch.looks, strict=True)
            ]
            torch.testing.assert_close(batch.target, torch.stack(truth))

    def test_pictures_that_spare_references(self, folder):
        """What is left out of a picture is not asked for; what stays keeps its number."""
        renderer = Renderer(load_subjects(cutouts=folder).split(unseen=False))
        batches = [batch_of(renderer, 0, index, 8, 3, spared=0.5) for index in range(6)]
        for batch in batches:
            numbered = zip(batch.prompts, batch.shown, batch.scenes, strict=True)
            for prompt, shown, scene in numbered:
                assert set(map(int, re.findall(r"image (\d)", prompt))) <= set(shown)
                assert len(shown) == len(scene.placements) and list(shown) == sorted(set(shown))
            painted = [[each[k - 1] for k in shown] for each, shown in zip(batch.looks, batch.shown, strict=True)]
            torch.testing.assert_close(batch.target, renderer.scenes(batch.scenes, painted))
            assert batch.references.shape[1] == 3
        counts = [len(shown) for batch in batches for shown in batch.shown]
        assert counts.count(3) / len(counts) == pytest.approx(0.5, abs=0.2) and {1, 2} < set(counts)

    def test_terse_prompts(self, folder):
        """The same batch, whose prompts miss some of their little words and none of the others."""
        renderer = Renderer(load_subjects(cutouts=folder).split(unseen=False))
        whole, terse = (batch_of(renderer, 0, 1, 64, 2, terse=share) for share in (0.0, 1.0))
        torch.testing.assert_close(terse.target, whole.target)
        pairs = [(one.split(), other.split()) for one, other in zip(whole.prompts, terse.prompts, strict=True)]
        assert all(set(one) - set(other) <= LITTLE_WORDS and set(other) <= set(one) for one, other in pairs)
        little = [sum(word in LITTLE_WORDS for each in side for word in each) for side in zip(*pairs, strict=True)]
        assert little[1] / little[0] == pytest.approx(0.5, abs=0.1)
        some = batch_of(renderer, 0, 1, 64, 2, terse=0.3).prompts
        assert 0.1 < sum(a != b for a, b in zip(some, whole.prompts, strict=True)) / 64 < 0.5

    def test_unseen_subjects_are_never_trained_on(self, folder):
        renderer = Renderer(load_subjects(cutouts=folder).split(unseen=False))
        prompts = [prompt for index in range(40) for prompt in batch_of(renderer, 0, index, 4).prompts]
        assert not any(re.search(rf"\b{name}\b", prompt) for name in names(3, unseen=True) for prompt in prompts)
        assert all(any(re.search(rf"\b{name}\b", prompt) for prompt in prompts) for name in names(6, unseen=False))

    def test_references_of_training_are_of_four_kinds(self):
        """Straight, cut out by a box with their ground, with clutter, and slightly turned."""
        rng = np.random.default_rng(0)
        poses = [training_pose(rng, 10) for _ in range(4000)]
        straight = [pose for pose in poses if pose == ReferencePose()]
        cut = [pose for pose in poses if pose.ground is not None and pose.scale > 0.84]
        small = [pose for pose in poses if pose.scale < 0.72]
        for kind, share in ((straight, 0.45), (cut, 0.2), (small, 0.1 * 0.8)):
            assert len(kind) / len(poses) == pytest.approx(share, abs=0.03)
        turned = np.array([pose.degrees for pose in poses if 0.72 <= pose.scale <= 0.84 and pose.degrees])
        assert turned.std() > 5

    def test_some_references_on_paper_are_masked_by_their_box(self, folder):
        """Paper alone is masked away, and where nothing is masked the subject is anywhere."""
        renderer = Renderer(load_subjects(cutouts=folder))
        batches = [batch_of(renderer, 0, index, 8) for index in range(30)]
        pixels = torch.cat([batch.references.flatten(0, 1) for batch in batches])
        masks = torch.cat([batch.masks.flatten(0, 1) for batch in batches])
        masked = ~masks.flatten(1).all(1)
        assert masked.float().mean() == pytest.approx(0.2 * 0.74 / 0.8, abs=0.05)
        assert (pixels.mean(1)[~masks] > 0.9).float().mean() > 0.99
        assert masks[masked].float().mean() < 0.9

    def test_neighbouring_batches_have_equally_many_subjects(self, folder):
        """Two processes that train together take batches 2n and 2n + 1: neither waits for the other's longer one."""
        renderer = Renderer(load_subjects(cutouts=folder))
        counts = [batch_of(renderer, 0, index, 1).references.shape[1] for index in range(80)]
        assert counts[::2] == counts[1::2] and len(set(counts)) > 1

    def test_subjects_of_a_picture_differ(self):
        rng = np.random.default_rng(0)
        assert all(len({look.subject for look in random_looks(rng, 3, 3)}) == 3 for _ in range(20))


class TestPrompts:
    def test_a_request_says_all_that_is_seen(self):
        rng = np.random.default_rng(0)
        for _ in range(400):
            scene = random_scene(rng, 1)
            prompt = request(rng, scene, ["teapot"])
            assert understood(prompt) == scene, prompt
            assert "teapot" in prompt or "image 1" in prompt

    def test_a_request_numbers_subjects_as_their_references(self):
        rng = np.random.default_rng(0)
        prompts = [request(rng, random_scene(rng, 2), ["teapot", "lemon"], shown=(1, 3)) for _ in range(50)]
        assert {number for prompt in prompts for number in re.findall(r"image (\d)", prompt)} == {"1", "3"}

    def test_a_request_names_subjects_in_order(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            prompt = request(rng, random_scene(rng, 3), ["teapot", "bicycle", "lemon"])
            found = [
                re.search(rf"{name}|image {i}", prompt) for i, name in enumerate(("teapot", "bicycle", "lemon"), 1)
            ]
            starts = [match.start() for match in found if match]
            assert len(starts) == 3 and starts == sorted(starts)

    def test_wordings_differ(self):
        rng, scene = np.random.default_rng(0), Scene(ground=Ground(colour="red"), placements=(Placement(),))
        assert len({request(rng, scene, ["teapot"]) for _ in range(100)}) > 40


def phrases(words: Words) -> set[str]:
    """Every phrase and template of a set of wordings, but what is said by silence."""
    tables = (words.places, words.sizes, words.poses, words.grounds)
    return {phrase for table in tables for wordings in table.values() for phrase in wordings if phrase}


def terse(texts: Iterable[str]) -> set[str]:
    """All that can be left of texts when some of their little words go."""
    return {" ".join(filter(None, left)) for text in texts for left in product(*map(kept_or_not, text.split(" ")))}


def kept_or_not(word: str) -> tuple[str, ...]:
    return (word, "") if word in LITTLE_WORDS else (word,)


class TestMoreWords:
    def test_they_mean_the_same(self):
        """Each read by another reader, of every wording."""
        rng = np.random.default_rng(0)
        for words in WORDINGS:
            for _ in range(600):
                scene = random_scene(rng, 1)
                prompt = request(rng, scene, ["teapot"], words)
                assert understood(prompt) == scene, prompt

    def test_no_wording_means_two_things(self):
        for words in WORDINGS:
            said = [p for t in (words.places, words.sizes, words.poses) for each in t.values() for p in each if p]
            assert len(set(said)) == len(said)

    def test_none_is_held_out(self):
        for words in WORDINGS:
            assert not phrases(HELD_OUT) & terse(phrases(words)) and HELD_OUT.phrase != words.phrase
            assert not set(HELD_OUT.orders) & terse(words.orders) and not set(HELD_OUT.joints) & terse(words.joints)

    def test_batches_have_what_they_are_given(self, folder):
        renderer = Renderer(load_subjects(cutouts=folder))
        few, many = (
            {prompt for index in range(4) for prompt in batch_of(renderer, 0, index, 16, **given).prompts}
            for given in ({}, {"wordings": WORDINGS})
        )
        new = re.compile("in front of|a picture of|as the background of|the background is")
        assert not any(map(new.search, few)) and sum(map(bool, map(new.search, many))) > 5


class TestHeldOutWords:
    def test_no_phrase_and_no_sentence_is_trained_on(self):
        assert not phrases(HELD_OUT) & phrases(TRAINED)
        assert not set(HELD_OUT.orders) & set(TRAINED.orders) and not set(HELD_OUT.joints) & set(TRAINED.joints)
        assert HELD_OUT.phrase != TRAINED.phrase and set(HELD_OUT.phrase) == set(TRAINED.phrase)

    def test_only_measuring_uses_them(self):
        package = Path(subjectgen.__file__).parent
        users = {
            file.relative_to(package).parts[0] for file in package.rglob("*.py") if "held_out_words" in file.read_text()
        }
        assert users == {"evaluate"}

    def test_every_word_is_known(self):
        known = {word for line in corpus(("thing",), size=400) for word in re.findall(r"[a-z]+", line)}
        held_out = {word for phrase in [*phrases(HELD_OUT), *HELD_OUT.orders] for word in re.findall(r"[a-z]+", phrase)}
        assert held_out - {"c", "subjects"} <= known

    def test_everything_can_be_said(self):
        tables = ("places", "sizes", "poses", "grounds")
        assert all(getattr(HELD_OUT, name).keys() == getattr(TRAINED, name).keys() for name in tables)
        said = [phrase for table in tables for wordings in getattr(HELD_OUT, table).values() for phrase in wordings]
        assert sum(not phrase for phrase in said) == 2  # medium and upright, as in training
        assert len(set(said)) == len(said) - 1  # no wording means two things

    def test_requests(self):
        rng, scene = np.random.default_rng(0), Scene(ground=Ground(colour="red"), placements=(Placement(place="top"),))
        prompt = request(rng, scene, ["teapot"], HELD_OUT)
        assert "red" in prompt and any(phrase in prompt for phrase in HELD_OUT.places["top"])
        spoken = {request(rng, scene, ["teapot"], SPOKEN) for _ in range(20)}
        assert all("medium-sized" in prompt and "upright" in prompt for prompt in spoken)

    def test_training_is_as_it_was(self):
        """The first prompts of a seed, as they were before there were other words."""
        rng = np.random.default_rng(5)
        assert [request(rng, random_scene(rng, 1), ["teapot"]) for _ in range(3)] == [
            "image 1 upright in the top right corner on a black striped background",
            "on yellow stripes, medium-sized image 1 turned over at the upper right",
            "show small image 1 standing on its head at the lower right on pink with dots",
        ]
