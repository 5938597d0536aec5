"""What is behind the web page: the dial, the curve, the form, seconds, who may look. No browser."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from subjectgen import Stage
from subjectgen.engine import Engine, Painting, Progress
from subjectgen.engine.errors import DeadlineExceeded
from subjectgen.engine.job import Job
from subjectgen.generate.stages import STAGE_PRESETS
from subjectgen.request import Limits
from subjectgen.web.asked import named_subjects, names_after, paintings_of
from subjectgen.web.curve import LANE, LEFT, RIGHT, curve_of
from subjectgen.web.dial import BY_DIAL, CHOICES, OWN, chosen_stages, dial_of, stages_of
from subjectgen.web.run import Clock, Run

ROOT = Path(__file__).parent.parent
VALUES = {
    "references": None,
    "names": (),
    "saved": None,
    "prompt": "a cat",
    "negative_prompt": None,
    "stages": OWN,
    "dial": 1,
    "pictures": 3,
    "seed": 7,
    "size": None,
    "steps": 16,
    "guidance_scale": 1.0,
}


LIMITS = Limits(
    image_size=64,
    pixels_per_latent=8,
    pixels_per_token=16,
    size_multiple=16,
    latent_channels=4,
    reference_size=32,
    reference_shape="square",
    reads_alpha=False,
    max_references=3,
    num_inference_steps=4,
    guidance_scale=1.0,
    negative="empty_text",
    stages="paper",
)


class TestDial:
    def test_ends_and_between(self):
        assert stages_of(1) == STAGE_PRESETS["faithful"]
        assert stages_of(0.85) == STAGE_PRESETS["free"]
        assert stages_of(0) == (Stage(0.0, identity=0.0),)

    @pytest.mark.parametrize("dial", [0, 0.05, 0.5, 0.85, 1])
    def test_stands_where_it_was_put(self, dial):
        assert dial_of(stages_of(dial)) == dial

    def test_has_no_place_for_a_meaning_that_ends(self):
        assert dial_of(STAGE_PRESETS["paper"]) is None

    def test_choices(self):
        assert CHOICES == (OWN, "paper", "free", "faithful", BY_DIAL)
        assert chosen_stages(OWN, 0.5, "paper") == STAGE_PRESETS["paper"]
        assert chosen_stages("free", 0.5, "paper") == STAGE_PRESETS["free"]
        assert chosen_stages(BY_DIAL, 0.5, "paper") == stages_of(0.5)


class TestCurve:
    def bars(self, svg, kind):
        """(left, width, height) of each bar of a lane, in shares of the plot."""
        found = re.findall(rf'<rect class="{kind}" x="(\S+)" y="\S+" width="(\S+)" height="(\S+)"', svg)
        width = RIGHT - LEFT
        return [((float(x) - LEFT) / width, float(w) / width, float(h) / LANE) for x, w, h in found]

    def test_areas_are_the_weights_over_their_range_of_sigma(self):
        svg = curve_of([Stage(0.6, identity=0.0), Stage(0.0, semantic=0.25)])
        assert self.bars(svg, "meaning") == [
            pytest.approx((0, 0.4, 1), abs=1e-3),
            pytest.approx((0.4, 0.6, 0.25), abs=1e-3),
        ]
        assert self.bars(svg, "identity") == [
            pytest.approx((0, 0.4, 0), abs=1e-3),
            pytest.approx((0.4, 0.6, 1), abs=1e-3),
        ]

    def test_is_told_in_words(self):
        told = "from sigma 1 to 0.85 meaning 1 and identity 0; from sigma 0.85 to 0 meaning 1 and identity 1"
        assert told in curve_of(STAGE_PRESETS["free"])

    def test_labels_do_not_touch(self):
        labels = re.findall(r">([\d.]+)</text>", curve_of(STAGE_PRESETS["paper"]))
        assert labels == ["1", "0.85", "0"]  # .95 is too near to 1


class TestForm:
    def paintings(self, **changed):
        return paintings_of({**VALUES, **changed}, LIMITS)

    def test_a_painting_for_each_seed(self):
        paintings = self.paintings()
        assert [each.seed for each in paintings] == [7, 8, 9]
        assert {each.preview_every for each in paintings} == {2}
        assert all(each.shared == paintings[0].shared for each in paintings)

    def test_size(self):
        assert self.paintings()[0].width is None
        first = self.paintings(size=" 96x48 ")[0]
        assert (first.width, first.height) == (96, 48)
        assert self.paintings(size="128")[0].width == 128

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"prompt": None}, "prompt is empty"),
            ({"size": "large"}, "size 'large' is not a size"),
            ({"size": "160x112"}, "has 17920 pixels: expected at most 16384, 4 times those of 64x64, this model's own"),
            ({"negative_prompt": "a" * 8001}, "negative prompt has 8001 characters"),
            ({"saved": "x.safetensors"}, "'x.safetensors' does not exist"),
            (
                {"saved": "x.safetensors", "references": [("red.png", None)], "names": ["", ""]},
                "beside a saved subject",
            ),
        ],
    )
    def test_refused(self, changed, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            self.paintings(**changed)

    def test_names_go_to_their_pictures(self):
        subjects = named_subjects([("a.png", None), ("b.png", None)], [" shoe ", "", "left over"])
        assert [(each.image, each.name) for each in subjects] == [("a.png", "shoe"), ("b.png", None)]

    @pytest.mark.parametrize(
        ("before", "after", "names"),
        [
            ("ab", "b", ["cup", "", ""]),
            ("ab", "ab", ["shoe", "cup", ""]),
            ("ab", "abc", ["shoe", "cup", ""]),
            ("ab", "ba", ["cup", "shoe", ""]),
            ("aa", "aa", ["shoe", "cup", ""]),
            ("ab", "", ["", "", ""]),
            ("ab", "abcde", ["shoe", "cup", ""]),
        ],
    )
    def test_names_follow_their_pictures(self, before, after, names):
        assert names_after(list(before), ["shoe", "cup", None], list(after)) == names

    def test_no_picture_is_left_out_for_want_of_a_field(self):
        subjects = named_subjects([("a.png", None), ("b.png", None)], ["shoe"])
        assert [(each.image, each.name) for each in subjects] == [("a.png", "shoe"), ("b.png", None)]


class Overdue(Engine):
    """Never paints, and is not asked to after its time."""

    def __init__(self):
        pass

    def submit_all(self, works, *, timeout=None):
        jobs = [Job(work) for work in works]
        for job in jobs:
            job.end_after(timeout)
        return jobs


def test_a_page_has_as_long_as_its_studio_says():
    run = Run(Overdue(), [Painting(prompt="a cat"), Painting(prompt="a dog")], timeout=0.1)
    assert list(run.changes())
    assert isinstance(run.error, DeadlineExceeded) and "not done within 0.1 s" in str(run.error)
    assert not run.painted and not run.was_stopped


def test_seconds_of_each_stage():
    meaning, both = STAGE_PRESETS["free"]
    clock = Clock()
    told = [
        (0.0, Progress()),
        (5.0, Progress(phase="encoding")),
        (6.0, Progress(phase="painting", step=1, steps=4, stage=meaning)),
        (6.5, Progress(phase="painting", step=2, steps=4, stage=meaning)),
        (8.5, Progress(phase="painting", step=3, steps=4, stage=both)),
        (11.5, Progress(phase="painting", step=4, steps=4, stage=both)),
        (20.0, Progress(phase="done")),
    ]
    for now, progress in told:
        clock.note(now, progress)
    assert clock.first == 1.0
    assert clock.by_stage == {0.85: 0.5, 0.0: 5.0}


def test_the_space_names_what_is_tested():
    """Its front matter, its file and its packages agree with the project."""
    folder = ROOT / "spaces"
    settings = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert settings["sdk"] == "gradio"
    assert (folder / settings["app_file"]).is_file()
    floor = re.search(r'web = \["gradio>=([\d.]+)"\]', (ROOT / "pyproject.toml").read_text())
    assert floor is not None
    assert Version(settings["sdk_version"]) >= Version(floor[1])
    *options, package = (folder / "requirements.txt").read_text().splitlines()
    assert package == "subjectgen[web]" and all(line.startswith("--") for line in options)
