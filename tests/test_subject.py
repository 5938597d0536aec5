"""A Subject by itself: its box and mask, and what they are of a reference; expectations by Pillow and numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from subjectgen import Subject
from subjectgen.masks import read_mask, seen_tokens
from subjectgen.references import cropped_as_seen, read_images
from subjectgen.request import Limits

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 200, (30, 40, 3), dtype=np.uint8))  # nowhere white
BOX = (4, 6, 20, 29)
ROUND = np.hypot(*np.mgrid[-15:15, -20:20]) < 12


def limits(shape="square", size=32, alpha=False):
    return Limits(
        image_size=64, pixels_per_latent=8, pixels_per_token=16, size_multiple=16, latent_channels=4,
        reference_size=size, reference_shape=shape, reads_alpha=alpha, max_references=3, num_inference_steps=4,
        guidance_scale=1.0, negative="empty_text", stages="free",
    )  # fmt: skip


SHAPES = pytest.mark.parametrize("shape", ["square", "own"])


class TestBox:
    @SHAPES
    def test_is_the_crop(self, shape):
        boxed = read_images([Subject(PICTURE, box=BOX)], limits(shape))
        cropped = read_images([PICTURE.crop(BOX)], limits(shape))
        assert boxed.key == cropped.key

    @pytest.mark.parametrize("box", [list(BOX), np.array(BOX), torch.tensor(BOX)])
    def test_any_four_whole_numbers(self, box):
        assert Subject(PICTURE, box=box).box == BOX

    def test_is_about_the_upright_picture(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned right by a quarter
        PICTURE.save(path := tmp_path / "turned.png", exif=exif)
        read, _ = Subject(path, box=(0, 0, 30, 20)).read()
        expected = np.rot90(np.array(PICTURE), k=-1)[:20]
        assert np.array_equal(np.array(read), expected)

    def test_of_a_transparent_picture(self):
        clear = PICTURE.convert("RGBA")
        clear.putalpha(Image.linear_gradient("L").resize(clear.size))
        read, _ = Subject(clear, box=BOX).read(alpha=True)
        assert read.mode == "RGBA" and np.array_equal(np.array(read), np.array(clear.crop(BOX)))


class TestPercent:
    @pytest.mark.parametrize(
        ("percents", "expected"),
        [((0, 0, 100, 100), (0, 0, 40, 30)), ((10, 20, 50, 90), (4, 6, 20, 27)), ((11, 11, 12, 12), (4, 3, 5, 4))],
    )
    def test_rounds_outwards(self, percents, expected):
        assert Subject(PICTURE).cropped_to(percents).box == expected

    def test_is_of_the_box(self):
        assert Subject(PICTURE, box=(10, 10, 30, 20)).cropped_to((50, 0, 100, 50)).box == (20, 10, 30, 15)

    @pytest.mark.parametrize(
        ("percents", "expected"),
        [((0, 25, 100, 75), (0, 0, 64, 32)), ((25, 50, 50, 100), (16, 16, 32, 32)), ((0, 0, 50, 50), (0, 0, 32, 16))],
    )
    def test_of_what_the_model_sees(self, percents, expected):
        """A wide picture lies in the middle half of a square."""
        wide = Image.new("RGB", (64, 32))
        assert cropped_as_seen(wide, percents, limits()).box == expected
        assert cropped_as_seen(wide, percents, limits("own")).box == Subject(wide).cropped_to(percents).box

    def test_of_paper_alone(self):
        with pytest.raises(ValueError, match="percent_box"):
            cropped_as_seen(Image.new("RGB", (64, 32)), (0, 0, 100, 20), limits())

    def test_the_rest_stays(self):
        subject = Subject(PICTURE, name="cat", mask=ROUND)
        cut = subject.cropped_to((0, 0, 50, 50))
        assert (cut.name, cut.image, cut.mask) == ("cat", PICTURE, subject.mask) and subject.box is None

    @pytest.mark.parametrize("percents", [(0, 0, 101, 50), (50, 0, 50, 50), (0, 0, 100), (0, float("nan"), 9, 9)])
    def test_refusals(self, percents):
        with pytest.raises(ValueError, match=r"percent_box.*0 to 100"):
            Subject(PICTURE).cropped_to(percents)


class TestMask:
    @pytest.mark.parametrize(
        "kind",
        [
            lambda mask: mask,
            torch.from_numpy,
            Image.fromarray,
            lambda mask: Image.fromarray(mask * np.uint8(255)),
            lambda mask: Image.fromarray(mask * np.uint8(255)).convert("RGB"),
            lambda mask: Image.fromarray(np.where(mask, 130, 120).astype(np.uint8)),
        ],
    )
    def test_kinds(self, kind):
        assert np.array_equal(read_mask(kind(ROUND), (40, 30)).numpy(), ROUND)

    def test_a_file(self, tmp_path):
        Image.fromarray(ROUND).save(path := tmp_path / "mask.png")
        assert np.array_equal(read_mask(path, (40, 30)).numpy(), ROUND)

    def test_outside_is_white_paper(self):
        read, mask = Subject(PICTURE, mask=ROUND, box=BOX).read()
        left, top, right, bottom = BOX
        inside = ROUND[top:bottom, left:right]
        assert np.array_equal(mask.numpy(), inside)
        assert np.array_equal(np.array(read)[inside], np.array(PICTURE.crop(BOX))[inside])
        assert (np.array(read)[~inside] == 255).all()

    def test_outside_is_opaque_where_transparency_counts(self):
        read, _ = Subject(PICTURE, mask=ROUND).read(alpha=True)
        assert (np.array(read)[~ROUND] == 255).all()

    @SHAPES
    def test_lies_where_the_picture_lies(self, shape):
        """Of a black picture, its mask is what is dark in the reference, but for the fringe of resampling."""
        off_centre = np.roll(ROUND, (3, 5), axis=(0, 1))
        black = Image.new("RGB", PICTURE.size)
        references = read_images([Subject(black, mask=off_centre)], limits(shape, size=64))
        (image,), (mask,) = references.images, references.masks
        assert mask.shape == (image.height, image.width)
        dark = np.array(image)[..., 0] < 128
        differs = {
            (y, x): (np.roll(dark, (y, x), (0, 1)) != mask.numpy()).mean() for y in (-1, 0, 1) for x in (-1, 0, 1)
        }
        assert min(differs, key=differs.get) == (0, 0) and differs[0, 0] < 0.01 < dark.mean()

    def test_any_share_of_a_pixel_counts(self):
        """Half as large and in the middle of a square: a pixel is in the mask if any of its four is."""
        mask = RNG.random((32, 64)) < 0.1
        (placed,) = read_images([Subject(Image.new("RGB", (64, 32)), mask=mask)], limits()).masks
        expected = np.zeros((32, 32), dtype=bool)
        expected[8:24] = mask.reshape(16, 2, 32, 2).any(axis=(1, 3))
        assert np.array_equal(placed.numpy(), expected)

    def test_one_pixel_of_a_large_picture_is_enough(self):
        mask = np.zeros((3000, 4000), dtype=bool)
        mask[1234, 2345] = True
        references = read_images([Subject(Image.new("RGB", (4000, 3000)), mask=mask)], limits())
        assert references.num_identity(16) == 1

    def test_tokens_against_a_loop(self):
        mask = torch.from_numpy(RNG.random((30, 20)) < 0.02)
        seen = seen_tokens(mask, (6, 4))
        expected = [bool(mask[5 * row : 5 * row + 5, 5 * c : 5 * c + 5].any()) for row in range(6) for c in range(4)]
        assert seen.tolist() == expected and 0 < sum(expected) < 24

    def test_other_masks_are_other_references(self):
        white = Image.new("RGB", (40, 30), "white")
        keys = {read_images([Subject(white, mask=m)], limits()).key for m in (None, ROUND, ~ROUND)}
        assert len(keys) == 3


class TestRefusals:
    @pytest.mark.parametrize("box", [(0, 0, 41, 30), (0, 0, 40, 31), (-1, 0, 40, 30), (0, -1, 40, 30)])
    def test_box_outside(self, box):
        with pytest.raises(ValueError, match=r"box=.*40x30 pixels.*Clip it.*cropped_to"):
            Subject(PICTURE, box=box).read()

    @pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 9, 9, 9), (20, 10, 4, 20)])
    def test_empty_box(self, box):
        with pytest.raises(ValueError, match=r"is empty.*left < right"):
            Subject(PICTURE, box=box)

    @pytest.mark.parametrize("box", [(0.1, 0.2, 0.5, 0.9), (1, 2, 3), "all", 7])
    def test_no_box(self, box):
        with pytest.raises(ValueError, match=r"whole pixels.*cropped_to"):
            Subject(PICTURE, box=box)

    @pytest.mark.parametrize("name", ["", "  ", 7, "image 2", "my Image 2"])
    def test_name(self, name):
        with pytest.raises(ValueError, match=r"name=.*expected"):
            Subject(PICTURE, name=name)

    def test_mask_of_another_size(self):
        with pytest.raises(ValueError, match=r"30x40 pixels for a picture of 40x30.*EXIF"):
            Subject(PICTURE, mask=ROUND.T).read()

    def test_mask_of_nothing(self):
        with pytest.raises(ValueError, match=r"no subject: .*inverted"):
            Subject(PICTURE, mask=np.zeros_like(ROUND)).read()
        with pytest.raises(ValueError, match=r"no subject within box=\(0, 0, 3, 3\)"):
            Subject(PICTURE, mask=ROUND, box=(0, 0, 3, 3)).read()

    @pytest.mark.parametrize("mask", [ROUND.astype(np.float32), ROUND[None], torch.ones(30, 40), 7, None])
    def test_no_mask(self, mask):
        with pytest.raises(ValueError, match=r"mask is .*white is the subject"):
            read_mask(mask, (40, 30))

    def test_mask_with_colours_or_transparency(self):
        with pytest.raises(ValueError, match=r"has colours.*convert\('L'\)"):
            read_mask(PICTURE, PICTURE.size)
        clear = Image.new("RGBA", PICTURE.size)
        with pytest.raises(ValueError, match=r"transparent.*getchannel"):
            read_mask(clear, PICTURE.size)

    def test_what_is_no_image(self):
        with pytest.raises(ValueError, match="is not an image"):
            Subject(Subject(PICTURE)).read()

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Subject(PICTURE).box = BOX
