"""Rows to train on: every layout, and every kind of row that cannot be used."""

import json

import pytest
from PIL import Image
from tiny_triples import write_metadata

from subjectgen.data.layouts import layout_of
from subjectgen.data.triples import check, listed, open_rows
from subjectgen.images import load_image

RED, BLUE = (200, 30, 30), (30, 30, 200)


def save(path, colour, size=(80, 70)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path.name


@pytest.fixture
def folder(tmp_path):
    """A folder with one reference and one target."""
    save(tmp_path / "cat.png", RED)
    save(tmp_path / "scene.png", BLUE)
    return tmp_path


def good(**changes):
    return {"references": ["cat.png"], "prompt": "a cat", "target": "scene.png", **changes}


def colours(triple):
    return [load_image(each).getpixel((9, 9)) for each in (*triple.references, triple.target)]


def faults(folder, *rows, size=64):
    write_metadata(folder, rows)
    return check(open_rows(str(folder)), size, 2)


class TestFolder:
    def test_rows(self, folder):
        write_metadata(folder, [good(), good(references=["scene.png", "cat.png"], prompt="both")])
        rows = open_rows(str(folder))
        assert [row.prompt for row in rows] == ["a cat", "both"]
        assert [colours(row) for row in rows] == [[RED, BLUE], [BLUE, RED, BLUE]]
        assert check(rows, 64, 2) == {} and rows.left_out == ""

    @pytest.mark.parametrize("line", ["{", "[1]", "3"])
    def test_lines_that_are_no_objects(self, folder, line):
        (folder / "metadata.jsonl").write_text(json.dumps(good()) + "\n" + line)
        with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2 .*expected one JSON object a line"):
            open_rows(str(folder))

    def test_an_empty_one(self, folder):
        (folder / "metadata.jsonl").touch()
        with pytest.raises(ValueError, match="is empty: expected at least one row"):
            open_rows(str(folder))


BAD = {
    "no such file": (good(target="gone.png"), r"gone\.png' does not exist"),
    "no such reference": (good(references=["cat.png", "gone.png"]), r"gone\.png' does not exist"),
    "cut off": (good(references=["cut.png"]), r"cut\.png' is corrupt or cut off"),
    "no picture": (good(target="metadata.jsonl"), r"is not a picture Pillow can read"),
    "empty prompt": (good(prompt=" \n"), r"prompt=' \\n' is no text: expected a few words"),
    "prompt of numbers": (good(prompt=5), r"prompt=5 is no text"),
    "no reference": (good(references=[]), r"no reference: expected 1 to 2"),
    "too many references": (good(references=["cat.png"] * 3), r"3 references: expected 1 to 2"),
    "references no list": (good(references="cat.png"), r"references='cat\.png': expected a list. Write \['cat\.png'\]"),
    "small target": (good(target="small.png"), r"target of 80x63 pixels: expected 64 at least .*smaller --size"),
    "no prompt": ({"references": ["cat.png"], "target": "scene.png"}, r"lacks 'prompt': expected references, prompt"),
    "target of numbers": (good(target=7), r"7 \(of type int\) is not an image"),
}


class TestBadRows:
    @pytest.fixture
    def folder(self, folder):
        save(folder / "small.png", BLUE, size=(80, 63))
        (folder / "cut.png").write_bytes((folder / "cat.png").read_bytes()[:80])
        return folder

    @pytest.mark.parametrize("name", BAD)
    def test_each_kind(self, folder, name):
        row, message = BAD[name]
        found = faults(folder, good(), row)
        assert list(found) == [1]
        with pytest.raises(ValueError, match=message):
            raise ValueError(found[1])

    def test_all_at_once(self, folder):
        rows = [row for row, _ in BAD.values()]
        found = faults(folder, *rows, good())
        lines = listed(open_rows(str(folder)), found).splitlines()
        assert lines[0] == f"{len(BAD)} of {len(BAD) + 1} rows cannot be trained on:"
        assert [line.split(":")[0] for line in lines[1:]] == [f"  row {number}" for number in range(len(BAD))]


def wide(left, right, size=(1048, 528)):
    """Two views side by side, as Subjects200K pads them."""
    picture = Image.new("RGB", size, "white")
    picture.paste(left, (8, 8, 520, 520))
    picture.paste(right, (528, 8, 1040, 520))
    return picture


def subjects200k(**changes):
    marks = {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5}
    texts = {"item": "a cat", "description_0": "red", "description_1": "blue", "description_valid": True}
    return {"image": wide(RED, BLUE), "collection": "c", "quality_assessment": marks, "description": texts, **changes}


class TestPublicLayouts:
    def test_subjects200k(self, tmp_path):
        from datasets import Dataset

        poor = {"compositeStructure": 5, "objectConsistency": 4, "imageQuality": 5}
        raw = [subjects200k(quality_assessment=poor), subjects200k(), subjects200k(quality_assessment=None)]
        Dataset.from_list(raw).save_to_disk(tmp_path / "set")
        rows = open_rows(str(tmp_path / "set"))
        assert [(row.prompt, colours(row)) for row in rows] == [("red", [BLUE, RED]), ("blue", [RED, BLUE])]
        assert [rows.name(0), rows.name(1)] == ["row 1, view 0", "row 1, view 1"]
        assert {load_image(rows[0].target).size, load_image(rows[0].references[0]).size} == {(512, 512)}
        assert rows[0].target.getcolors() == [(512 * 512, RED)] and rows[1].target.getcolors() == [(512 * 512, BLUE)]
        assert check(rows, 512, 1) == {}

    def test_subjects200k_of_another_size(self, tmp_path):
        from datasets import Dataset

        Dataset.from_list([subjects200k(image=Image.new("RGB", (600, 300)))]).save_to_disk(tmp_path / "set")
        found = check(open_rows(str(tmp_path / "set")), 512, 1)
        assert len(found) == 2 and "600x300 pixels: expected two views of 512 pixels" in found[0]

    def test_uno_labels(self, tmp_path):
        def label(number, score):
            paths = {f"img_path{k}": f"split1/{number}_{k}.png" for k in (1, 2)}
            caption = {"img_path1": "red", "img_path2": "blue", "subject": ["cat"], "judgment": "same"}
            return {**paths, "caption": caption, "vlm_filter_cot": {"score_part": {}, "score_final": score}}

        labels = [label(0, 3.5), label(1, 4.0), label(2, 131184.7)]
        (tmp_path / "labels.json").write_text(json.dumps(labels))
        save(tmp_path / "images/split1/1_1.png", RED)
        save(tmp_path / "images/split1/1_2.png", BLUE)
        rows = open_rows(str(tmp_path / "labels.json"))
        assert [(row.prompt, colours(row)) for row in rows] == [("red", [BLUE, RED]), ("blue", [RED, BLUE])]
        assert [rows.source(0), rows.source(1)] == [1, 1]
        assert rows.left_out == "1 of 3 rows kept: others lack a score_final of 4.0 in their vlm_filter_cot"
        (tmp_path / "labels.json").write_text(json.dumps([label(0, 3.5), label(1, 131184.7)]))
        with pytest.raises(ValueError, match=r"none of the 2 rows of .*has a score_final of 4\.0 .*Choose other rows"):
            open_rows(str(tmp_path / "labels.json"))

    def test_uno_training_file(self, folder):
        row = {"image_paths": ["cat.png", "scene.png"], "prompt": "both", "image_tgt_path": "scene.png"}
        (folder / "train.json").write_text(json.dumps([row]))
        (found,) = open_rows(str(folder / "train.json"))
        assert found.prompt == "both" and colours(found) == [RED, BLUE, BLUE]

    def test_pictures_inside_a_data_set(self, tmp_path):
        from datasets import Dataset

        row = good(references=[Image.new("RGB", (70, 70), RED)], target=Image.new("RGB", (70, 70), BLUE))
        Dataset.from_list([row]).save_to_disk(tmp_path / "set")
        rows = open_rows(str(tmp_path / "set"))
        assert colours(rows[0]) == [RED, BLUE] and check(rows, 64, 1) == {}

    def test_an_unknown_one(self):
        with pytest.raises(ValueError, match=r"'x/y' has the columns caption, image: expected .*references, prompt"):
            layout_of(["image", "caption"], "x/y")

    @pytest.mark.parametrize("text", ['{"a": 1}', "[1]", "{"])
    def test_json_that_is_no_list_of_objects(self, tmp_path, text):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match="expected a JSON list of objects"):
            open_rows(str(tmp_path / "a.json"))
