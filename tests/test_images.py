"""Every kind of image a user may hold, good and bad; what to expect is computed by numpy, struct or skimage."""

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin
from skimage.color import lab2rgb

from subjectgen import images
from subjectgen.images import load_image
from subjectgen.request import check_size
from subjectgen.subject_lists import subject_lists

RAMP = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)  # non-square, every value different


@pytest.fixture
def ramp_file(tmp_path: Path) -> Path:
    Image.fromarray(RAMP).save(path := tmp_path / "ramp.png")
    return path


def pixels(value: object) -> np.ndarray:
    """load_image without any warning => array."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(value)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class TestKinds:
    def test_path_string_and_pil(self, ramp_file: Path):
        for value in (ramp_file, str(ramp_file), Image.open(ramp_file), Image.fromarray(RAMP)):
            assert np.array_equal(pixels(value), RAMP)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
    def test_float_array(self, dtype: type):
        assert np.array_equal(pixels((RAMP / 255).astype(dtype)), RAMP)

    def test_uint16_array(self):
        assert np.array_equal(pixels(RAMP.astype(np.uint16) * 257), RAMP)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_float_tensor(self, dtype: torch.dtype):
        tensor = torch.from_numpy(RAMP).permute(2, 0, 1).to(torch.float64).div(255).to(dtype).requires_grad_()
        assert np.array_equal(pixels(tensor), RAMP)

    def test_uint8_tensor(self):
        assert np.array_equal(pixels(torch.from_numpy(RAMP).permute(2, 0, 1)), RAMP)

    def test_grey(self):
        grey = np.repeat(RAMP[..., :1], 3, axis=-1)
        tensor = torch.from_numpy(RAMP[..., 0])
        for value in (RAMP[..., 0], RAMP[..., :1], tensor, tensor[None]):
            assert np.array_equal(pixels(value), grey)

    def test_result_is_a_copy(self):
        image = Image.fromarray(RAMP)
        load_image(image).putpixel((0, 0), (9, 9, 9))
        assert np.array_equal(np.asarray(image), RAMP)


class TestModes:
    def test_sixteen_bit_grey_png(self, tmp_path: Path):
        levels = np.array([[0, 257 * 7, 65535], [257 * 128, 257 * 200 + 100, 300]], dtype=">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in levels)
        (path := tmp_path / "grey16.png").write_bytes(png(3, 2, 16, 0, rows))
        expected = np.array([[0, 7, 255], [128, 200, 1]])
        assert np.array_equal(pixels(path), np.repeat(expected[..., None], 3, axis=-1))

    def test_sixteen_bit_rgb_png(self, tmp_path: Path):
        rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RAMP)
        (path := tmp_path / "rgb16.png").write_bytes(png(10, 12, 16, 2, rows))
        assert np.array_equal(pixels(path), RAMP)

    def test_float_tiff(self, tmp_path: Path):
        Image.fromarray((RAMP[..., 0] / 255).astype(np.float32)).save(path := tmp_path / "float.tiff")
        assert np.array_equal(pixels(path)[..., 1], RAMP[..., 0])

    def test_palette(self, tmp_path: Path):
        indexed = Image.new("P", (2, 1))
        indexed.putpalette([10, 20, 30, 200, 100, 50])
        indexed.putdata([1, 0])
        indexed.save(path := tmp_path / "palette.png")
        assert pixels(path).tolist() == [[[200, 100, 50], [10, 20, 30]]]

    def test_one_bit(self):
        assert pixels(Image.new("1", (2, 2), 1)).tolist() == [[[255] * 3] * 2] * 2

    def test_cmyk_without_a_profile(self, tmp_path: Path):
        inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 128, 255, 0]]], dtype=np.uint8)
        Image.fromarray(inks, "CMYK").save(path := tmp_path / "cmyk.tiff")
        expected = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)) / 255
        assert np.abs(pixels(path) - expected).max() <= 1

    def test_cmyk_jpeg_is_not_inverted(self, tmp_path: Path):
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path := tmp_path / "cmyk.jpg", quality=95)
        assert np.abs(pixels(path).astype(int) - (255, 0, 0)).max() <= 6

    def test_lab(self, tmp_path: Path):
        stored = np.array([[[128, 40, 20], [200, 0, 0], [90, 246, 10]]], dtype=np.uint8)  # a and b as signed bytes
        Image.frombytes("LAB", (3, 1), stored.tobytes()).save(path := tmp_path / "lab.tiff")
        lab = np.concatenate([stored[..., :1] * (100 / 255), stored[..., 1:].astype(np.int8)], axis=-1)
        expected = np.clip(lab2rgb(lab), 0, 1) * 255
        assert np.abs(pixels(path) - expected).max() <= 4  # skimage scales to the white, ICC adapts by Bradford

    def test_colour_profile_is_obeyed(self):
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        swapped = srgb.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
        image = Image.new("RGB", (2, 2), (250, 20, 10))
        image.info["icc_profile"] = srgb
        assert np.abs(pixels(image).astype(int) - (250, 20, 10)).max() <= 1
        image.info["icc_profile"] = swapped
        assert np.abs(pixels(image).astype(int) - (10, 20, 250)).max() <= 1

    def test_broken_colour_profile_is_said(self):
        image = Image.fromarray(RAMP)
        image.info["icc_profile"] = b"nonsense"
        with pytest.warns(UserWarning, match="colour profile"):
            assert np.array_equal(np.asarray(load_image(image)), RAMP)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_is_turned_upright(self, tmp_path: Path, orientation: int):
        upright = RAMP
        stored = {  # how a camera stores the upright picture for each orientation, by the EXIF definition
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(path := tmp_path / "turned.png", exif=exif)
        assert np.array_equal(pixels(path), upright)


class TestSaid:
    def test_alpha_is_laid_on_white(self, tmp_path: Path):
        rgba = np.concatenate([RAMP, np.arange(0, 240, 2, dtype=np.uint8).reshape(12, 10, 1)], axis=-1)
        Image.fromarray(rgba).save(path := tmp_path / "alpha.png")
        share = rgba[..., 3:] / 255
        expected = RAMP * share + 255 * (1 - share)
        for value in (path, rgba, torch.from_numpy(rgba).permute(2, 0, 1), rgba / 255):
            with pytest.warns(UserWarning, match="white"):
                assert np.abs(np.asarray(load_image(value)) - expected).max() <= 1

    def test_opaque_alpha_says_nothing(self):
        assert np.array_equal(pixels(Image.fromarray(RAMP).convert("RGBA")), RAMP)

    @pytest.mark.parametrize("mode", ["L", "RGB", "P"])
    def test_a_transparent_colour_is_laid_on_white(self, tmp_path: Path, mode: str):
        image = Image.new("RGB", (2, 1), (0, 0, 0))
        image.putpixel((1, 0), (102, 102, 102))  # both in the web palette
        image = image.convert(mode)
        key = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
        image.save(path := tmp_path / "keyed.png", transparency=key)
        with pytest.warns(UserWarning, match="keyed.png.*white"):
            assert np.asarray(load_image(path)).tolist() == [[[255] * 3, [102] * 3]]

    @pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
    def test_first_frame_of_an_animation(self, tmp_path: Path, suffix: str):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path := tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], **options)
        moved = Image.open(path)
        moved.seek(2)
        for value in (path, moved):
            with pytest.warns(UserWarning, match="3 frames"):
                assert np.asarray(load_image(value))[0, 0].tolist() == [255, 0, 0]
        assert moved.tell() == 2


class TestBadFiles:
    def refused(self, value: object, *words: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error) as caught:
            load_image(value)
        assert type(caught.value) is error
        for word in words:
            assert word in str(caught.value)

    def test_missing(self, tmp_path: Path):
        self.refused(tmp_path / "none.png", "none.png", "does not exist", error=FileNotFoundError)

    def test_no_path(self):
        """Such as the bytes of a picture as text."""
        with pytest.raises(ValueError, match=r"'iVBOR.{80,120}too long.*expected a path, a PIL image"):
            load_image("iVBORw0KGgo" * 400)

    def test_url(self):
        for url in ("https://example.org/cat.png", "HTTP://x/y.png", "data:image/png;base64,AAAA"):
            self.refused(url, url[:20], "URL", "Download")

    def test_folder(self, tmp_path: Path):
        self.refused(tmp_path, str(tmp_path), "folder")

    def test_zero_bytes(self, tmp_path: Path):
        (path := tmp_path / "empty.png").touch()
        self.refused(path, "empty.png", "0 bytes", "again")

    def test_no_image(self, tmp_path: Path):
        (path := tmp_path / "letter.png").write_text("Dear reader")
        self.refused(path, "letter.png", "PNG, JPEG")

    def test_an_encoded_subject(self, tmp_path: Path):
        (path := tmp_path / "cat.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        self.refused(path, "cat.safetensors", "no picture", f"SubjectEmbeds.load('{path}')")

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
    def test_cut_off(self, tmp_path: Path, suffix: str):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path := tmp_path / f"cut.{suffix}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.refused(path, f"cut.{suffix}", "corrupt or cut off")

    def test_altered_bytes(self, tmp_path: Path, ramp_file: Path):
        data = bytearray(ramp_file.read_bytes())
        start = data.index(b"IDAT") + 8
        data[start : start + 20] = bytes(20)
        (path := tmp_path / "altered.png").write_bytes(data)
        self.refused(path, "altered.png", "corrupt")

    @pytest.mark.parametrize("side", [12_000, 40_000])  # below and above the limit at which Pillow itself refuses
    def test_decompression_bomb(self, tmp_path: Path, side: int):
        (path := tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, b"\0" * 100))
        self.refused(path, "bomb.png", "too large", "Scale it down")

    def test_large_but_honest_picture_is_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # so that Pillow warns of 120 pixels
        monkeypatch.setattr(images, "MAX_PIXELS", 121)
        Image.fromarray(RAMP).save(path := tmp_path / "large.png")
        assert np.array_equal(pixels(path), RAMP)
        monkeypatch.setattr(images, "MAX_PIXELS", 119)
        self.refused(path, "12", "too large")
        self.refused(Image.fromarray(RAMP), "too large")

    def test_text_bomb(self, tmp_path: Path):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("comment", "x" * 20_000_000, zip=True)
        Image.fromarray(RAMP).save(path := tmp_path / "text.png", pnginfo=chunks)
        self.refused(path, "text.png", "corrupt")


class TestBadValues:
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (None, ("NoneType", "text only")),
            (7, ("7", "int", "expected")),
            (b"\x89PNG", ("bytes", "BytesIO")),
            (BytesIO(b"x"), ("PIL.Image.open(file)",)),
            ([Image.new("RGB", (1, 1))], ("list", "one image at a time")),
            ({"image": 1}, ("dict",)),
            (np.zeros((0, 5, 3), np.uint8), ("[0, 5, 3]", "no pixels")),
            (np.zeros((3, 20, 30), np.uint8), ("[3, 20, 30]", "transpose(1, 2, 0)")),
            (np.zeros((2, 20, 30, 3), np.uint8), ("[2, 20, 30, 3]", "list(array)")),
            (np.zeros((20, 30, 2), np.uint8), ("[20, 30, 2]", "1, 3 or 4 channels")),
            (np.zeros((20, 30, 3), np.int64), ("int64", "uint8")),
            (np.zeros((20, 30, 3), bool), ("bool", "uint8")),
            (np.full((20, 30, 3), 255.0), ("255..255", "0..1", "/ 255")),
            (np.full((20, 30, 3), -1.0), ("-1..-1", "(array + 1) / 2")),
            (np.full((20, 30, 3), np.nan), ("nan", "0..1")),
            (torch.zeros(20, 30, 3), ("[20, 30, 3]", "permute(2, 0, 1)")),
            (torch.zeros(2, 3, 20, 30), ("[2, 3, 20, 30]", "list(tensor)")),
            (torch.zeros(3, 20, 30, dtype=torch.int64), ("int64", "uint8")),
            (torch.full((3, 4, 4), 2.0), ("2..2", "0..1")),
            (np.full((4, 4, 3), 200, np.uint16), ("up to 200 of 65535", 'astype("uint8")')),
            (Image.new("L", (4, 4), 200).convert("I"), ("up to 200 of 65535", "PIL image")),
            (Image.fromarray(np.full((4, 4), 70_000, np.int32)), ("70000", "65535")),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_refused(self, value: object, words: tuple[str, ...]):
        with pytest.raises(ValueError) as caught:
            load_image(value)
        for word in words:
            assert word in str(caught.value)


class TestSubjectLists:
    def test_shapes(self):
        one, two = Image.new("RGB", (1, 1)), Path("two.png")
        assert subject_lists(None, 2) == [[], []]
        assert subject_lists([], 2) == [[], []]
        assert subject_lists(one, 2) == [[one], [one]]
        assert subject_lists("one.png", 1) == [["one.png"]]
        assert subject_lists([one, two], 1) == [[one, two]]
        assert subject_lists((one, two), 2) == [[one, two], [one, two]]
        assert subject_lists([[one], [one, two], [], None], 4) == [[one], [one, two], [], []]

    def test_arrays_count_as_one(self):
        array, tensor = np.zeros((4, 4, 3)), torch.zeros(3, 4, 4)
        assert subject_lists(array, 1)[0][0] is array
        assert subject_lists([tensor, array], 1)[0][0] is tensor

    def test_lists_do_not_share(self):
        lists = subject_lists(["a.png"], 2)
        lists[0].append("b.png")
        assert lists[1] == ["a.png"]

    @pytest.mark.parametrize(
        ("value", "num_prompts", "words"),
        [
            ([["a"], ["b"]], 3, ("2 lists", "3 prompt", "flat list")),
            (["a", ["b"]], 2, ("mixes", "'a'", "one list per prompt")),
            ([[["a"]]], 1, ("three deep",)),
            ({"a": 1}, 1, ("dict", "list of them")),
            ({"a"}, 1, ("set",)),
            ((file for file in "ab"), 1, ("generator",)),
            (torch.zeros(2, 3, 4, 4), 1, ("[2, 3, 4, 4]", "batch", "list(images)")),
            ([np.zeros((2, 4, 4, 3))], 1, ("batch",)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_refused(self, value: object, num_prompts: int, words: tuple[str, ...]):
        with pytest.raises(ValueError) as caught:
            subject_lists(value, num_prompts)
        for word in words:
            assert word in str(caught.value)


class TestCheckSize:
    @pytest.mark.parametrize(("height", "width"), [(16, 16), (128, 96), (np.int64(32), 48)])
    def test_fits(self, height: int, width: int):
        check_size(height, width, 16)

    @pytest.mark.parametrize(
        ("height", "width", "nearest"),
        [
            (100, 130, ("128x96", "144x112")),
            (128, 130, ("128x128", "144x128")),
            (130, 128, ("128x128", "128x144")),
            (5, 15, ("16x16", "16x16")),
        ],
    )
    def test_nearest_two(self, height: int, width: int, nearest: tuple[str, str]):
        with pytest.raises(ValueError) as caught:
            check_size(height, width, 16)
        for size in (f"{width}x{height}", *nearest, "multiples of 16"):
            assert size in str(caught.value)

    @pytest.mark.parametrize("side", [0, -16, 16.0, "16", True, None])
    def test_no_size(self, side: object):
        with pytest.raises(ValueError, match="whole number of pixels"):
            check_size(side, 16, 16)
        with pytest.raises(ValueError, match="width"):
            check_size(16, side, 16)
