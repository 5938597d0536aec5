"""DreamBench: its prompts are those that others measure on, and photographs are scored as they should be."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_benchmark import ColourPainter, photograph_folder

from subjectgen.evaluate.cases import Scored
from subjectgen.evaluate.dreambench import DreamBench, photograph
from subjectgen.evaluate.dreambench_prompts import CLASSES, LIVE, PAIRS, REFERENCES, prompts_of, prompts_of_pair
from subjectgen.evaluate.run import Order, evaluate
from subjectgen.evaluate.scoring import score
from subjectgen.evaluate.table import by_figure, told


class Eyes:
    """Likeness 1 for each reference of the same colour; obedience is how long the prompt is."""

    names = ("dino_i", "clip_t")
    checkpoints = ("someone/eyes@1",)

    def __call__(self, pictures, references, prompts):
        return [
            {
                "dino_i": sum(near(picture, each) for each in own) / len(own),
                "clip_t": len(prompt) / 100,
            }
            for picture, own, prompt in zip(pictures, references, prompts, strict=True)
        ]


class Copies:
    """Recall of any picture, and how far it is turned."""

    names = ("patch_recall", "pose_confidence")
    checkpoints = ("someone/patches@1",)

    def __call__(self, pictures, references, prompts):
        return [{"patch_recall": 0.25, "pose_confidence": 0.5} for _ in pictures]


class Talker:
    """A judge that never likes anything, and says so."""

    names = ("judge_prompt",)
    checkpoints = ("someone/talker@1",)

    def __call__(self, pictures, references, prompts):
        self.answers = [{"prompt": f"No {prompt}. Score: 0"} for prompt in prompts]
        return [{"judge_prompt": 0.0} for _ in pictures]


def scored(benchmark, case, pictures):
    """What all scorers find, a Scored a picture."""
    by_scorer = [score(case, pictures) for score in benchmark.scorers.values()]
    return [
        Scored(
            scores={name: value for one in each for name, value in one.scores.items()},
            answers={name: words for one in each for name, words in one.answers.items()},
        )
        for each in zip(*by_scorer, strict=True)
    ]


def near(first, second):
    pixels = zip(first.convert("RGB").getpixel((1, 1)), second.getpixel((1, 1)), strict=True)
    return max(abs(a - b) for a, b in pixels) < 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photograph_folder(tmp_path_factory.mktemp("photographs"))


def digest(prompts):
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


class TestPrompts:
    def test_they_are_those_of_uno(self):
        """sha256 of the prompts, a line each, of dreambench_singleip.json and dreambench_multiip.json in
        github.com/bytedance/UNO at d305981b9e301315b5c110aef9c7eed827457858."""
        single = [prompt for subject in CLASSES for prompt in prompts_of(subject)]
        pairs = [prompt for pair in PAIRS for prompt in prompts_of_pair(*pair)]
        assert (len(single), len(pairs)) == (750, 750)
        assert digest(single) == "4a24aef296f622d5de211ac47871c2e20c8050006f3645d837a547cb13b54b21"
        assert digest(pairs) == "8844ac35248037ca44b6c1e0914907d7f4094dfbb8ad1fc5dc92fd83f0ea45aa"

    def test_subjects(self):
        assert len(CLASSES) == 30 and CLASSES.keys() == REFERENCES.keys()
        assert sum(name in LIVE for name in CLASSES.values()) == 9
        assert prompts_of("dog6")[10] == "a dog wearing a red hat"
        assert prompts_of("rc_car")[12] == "a toy with the Eiffel Tower in the background"
        assert prompts_of_pair("cat", "backpack")[24] == "a cube shaped cat, next to it is a backpack"
        assert prompts_of_pair("vase", "wolf_plushie")[20] == "a red vase and a red stuffed animal"


class TestCases:
    def test_all(self, data):
        benchmark = DreamBench(data, [Eyes()], ("one", "two"))
        assert len(benchmark.cases) == 1500 and len({case.name for case in benchmark.cases}) == 1500
        assert {case.part for case in benchmark.cases[:750]} == {"one"}

    def test_a_few_are_of_many_subjects(self, data):
        few = DreamBench(data, [Eyes()], ("one", "two"), num_prompts=30)
        assert [case.subject for case in few.cases[:30]] == list(CLASSES)
        assert {case.prompt.split(" in ")[1] for case in few.cases} == {"the jungle"}
        assert DreamBench(data, [Eyes()], num_prompts=2).cases == few.cases[:2]

    def test_references(self, data):
        benchmark = DreamBench(data, [Eyes()], ("two",), num_prompts=1)
        (case,) = benchmark.cases
        assert [file.relative_to(data).as_posix() for file in case.files] == [
            "backpack_dog/02.jpg",
            "bear_plushie/03.jpg",
        ]
        assert [image.size for image in benchmark.references(case)] == [(16, 12)] * 2

    def test_what_is_missing(self, data, tmp_path):
        """A folder, a photograph, or the one that is the reference under another name."""
        with pytest.raises(FileNotFoundError, match=r"backpack has 0 of 6 photographs, .* \.\.\.: .*google/dreambooth"):
            DreamBench(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"--data was not given: expected the 30 folders with 158 photo"):
            DreamBench(None)
        some = shutil.copytree(data, tmp_path / "some")
        (some / "vase" / "05.jpg").unlink()
        (some / "dog" / "02.jpg").rename(some / "dog" / "07.jpg")
        words = r"'.*some': dog has no photograph 02, vase has 5 of 6 photographs: expected"
        with pytest.raises(FileNotFoundError, match=words):
            DreamBench(some)

    def test_two_photographs_of_one_name(self, data, tmp_path):
        shutil.copytree(data, tmp_path / "double")
        (tmp_path / "double" / "can" / "03.jpg").rename(tmp_path / "double" / "can" / "01.png")
        with pytest.raises(ValueError, match=r"can/01\.jpg' and '01\.png' are there: expected one of them"):
            DreamBench(tmp_path / "double")

    def test_an_unknown_part(self, data):
        with pytest.raises(ValueError, match="--part 'three' is no part of DreamBench: expected one or two"):
            DreamBench(data, parts=("three",))


class TestScores:
    def test_one_and_two(self, data):
        benchmark = DreamBench(data, [Eyes(), Talker()], ("one", "two"), num_prompts=1)
        one, two = benchmark.cases
        found = scored(benchmark, one, [*benchmark.references(one), Image.new("RGB", (4, 4), "white")])
        assert [each.scores["dino_i"] for each in found] == [1, 0]
        assert found[0].scores["clip_t"] == len("a backpack in the jungle") / 100
        assert found[0].answers == {"prompt": "No a backpack in the jungle. Score: 0"}
        assert scored(benchmark, two, benchmark.references(two)[:1])[0].scores["dino_i"] == 0.5
        eyes, talker = "dino_i, clip_t by someone/eyes@1", "judge_prompt by someone/talker@1"
        assert list(benchmark.scorers) == [eyes, talker]
        assert (benchmark.identity, benchmark.obedience) == ("dino_i", "clip_t")
        assert DreamBench(data, [Talker()]).identity is None

    def test_the_ceiling(self, data):
        """Each photograph against the others of its subject; no prompt asked for it, so nothing obeys one."""
        benchmark = DreamBench(data, [Eyes(), Copies(), Talker()], num_prompts=1)
        paintings = [each for each in benchmark.photographs() if each.case.part == "photographs"]
        assert len(paintings) == 158 and {len(each.case.files) for each in paintings} == {3, 4, 5}
        assert all(each.file not in each.case.files for each in paintings)
        cats = [each for each in paintings if each.case.subject == "cat"]
        found = [scored(benchmark, each.case, [Image.open(each.file)])[0] for each in cats]
        assert [each.scores.pop("dino_i") for each in found] == [0, 0.75, 0.75, 0.75, 0.75]
        assert [each.scores for each in found] == [{"patch_recall": 0.25, "pose_confidence": 0.5}] * 5
        assert all(each.answers == {} for each in found)

    def test_the_floor(self, data):
        """Each subject's reference against that of the next one."""
        pairs = [each for each in DreamBench(data).photographs() if each.case.part == "others"]
        found = [[file.relative_to(data).as_posix() for file in (each.file, *each.case.files)] for each in pairs]
        assert len(found) == 30 and found[0] == ["backpack/02.jpg", "backpack_dog/02.jpg"]
        assert found[-1] == ["wolf_plushie/04.jpg", "backpack/02.jpg"]

    def test_the_whole_of_it(self, data, tmp_path):
        order = Order(model="painter", stages=("free",), num_seeds=2)
        benchmark = DreamBench(data, [Eyes(), Talker()], num_prompts=3)
        means = evaluate(benchmark, tmp_path, order, lambda: Gray())
        ceiling, floor = (means[part]["photographs"] for part in ("photographs", "others"))
        assert ceiling["dino_i"].count == 158 and ceiling["dino_i"].mean == pytest.approx((153 + 4 * 0.75) / 158)
        assert floor["dino_i"].count == 30 and floor["dino_i"].mean == 0
        assert "clip_t" not in ceiling and means["one"]["free"]["dino_i"].mean == 0
        lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
        assert len(lines) == 3 * 2 + 158 + 30 and len(lines[0]["found"]) == 2
        said = lines[0]["found"]["judge_prompt by someone/talker@1"]["answers"]["prompt"]
        assert said.startswith("No a backpack")
        assert "photographs" in (tmp_path / "report.html").read_text()
        nobody = [(line["model"], line["seed"]) for line in lines if line["stages"] == "photographs"]
        assert set(nobody) == {(None, None)} and all(line["model"] for line in lines if line["stages"] == "free")

    @pytest.mark.parametrize("said", ["", "  ", "The cat is [cut off]"])
    def test_what_was_not_answered_is_asked_again(self, data, tmp_path, said):
        """A refusal is kept, an empty or a cut-off answer only until the next time."""
        asked, answers = [], [said, "No.", "No. Score: 0"]

        class Busy(Talker):
            def __call__(self, pictures, references, prompts):
                asked.extend(prompts)
                self.answers = [{"prompt": answers.pop(0)} for _ in prompts]
                return [{"judge_prompt": 0.0} for _ in pictures]

        for number in (2, 1):
            order = Order(model="painter", stages=("free",), num_seeds=1)
            evaluate(DreamBench(data, [Busy()], num_prompts=2), tmp_path, order, lambda: Gray())
            assert len(asked) == number
            asked.clear()
        lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
        said = [each["answers"] for line in lines if line["part"] == "one" for each in line["found"].values()]
        assert said == [{"prompt": "No. Score: 0"}, {"prompt": "No."}]

    def test_further_metrics_look_alone(self, data, tmp_path):
        """A judge that has answered is not asked again, in whichever order metrics come, nor when they are left out."""
        asked = []

        class Costly(Talker):
            def __call__(self, pictures, references, prompts):
                asked.extend(prompts)
                return super().__call__(pictures, references, prompts)

        found = []
        for metrics in ([Costly()], [Eyes(), Costly()], [Eyes()], [Copies(), Costly(), Eyes()]):
            order = Order(model="painter", stages=("free",), num_seeds=1)
            found.append(evaluate(DreamBench(data, metrics, num_prompts=2), tmp_path, order, lambda: Gray())["one"])
        assert len(asked) == 2
        assert [sorted(means["free"]) for means in found] == [
            ["judge_prompt"], ["clip_t", "dino_i", "judge_prompt"], ["clip_t", "dino_i"],
            ["clip_t", "dino_i", "judge_prompt", "patch_recall", "pose_confidence"],
        ]  # fmt: skip
        line = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
        assert len(line["found"]) == 3 and line["found"]["judge_prompt by someone/talker@1"]["answers"]

    def test_two_metrics_that_look_with_one_network(self, data, tmp_path):
        """As DINO-I and patch recall do: what one has found is not all that the other finds."""

        class Alike(Copies):
            checkpoints = Eyes.checkpoints

        order = Order(model="painter", stages=("free",), num_seeds=1)
        for metric, name in ((Eyes(), "dino_i"), (Alike(), "patch_recall")):
            means = evaluate(DreamBench(data, [metric], num_prompts=1), tmp_path, order, lambda: Gray())
            assert name in means["one"]["free"]

    def test_the_ceiling_depends_on_the_photographs_it_is_against(self, data, tmp_path):
        """Another first photograph of the can: that one and all that are compared with it are scored again."""
        some, looked = shutil.copytree(data, tmp_path / "some"), []

        class Counting(Eyes):
            def __call__(self, pictures, references, prompts):
                looked.extend(prompts)
                return super().__call__(pictures, references, prompts)

        benchmark = DreamBench(some, [Counting()], num_prompts=1)
        score(benchmark, benchmark.photographs(), tmp_path, None)
        assert len(looked) == 158 + 30
        Image.new("RGB", (16, 12), "navy").save(some / "can" / "00.jpg")
        photograph.cache_clear()
        score(benchmark, benchmark.photographs(), tmp_path, None)
        assert looked[158 + 30 :] == ["a can"] * 6

    def test_refusals_are_told(self, data):
        class Judged(Talker):
            names = ("judge_prompt", "judge_refused")

        figure = DreamBench(data, [Judged()]).figures[1]
        assert figure.label == "judge refused, %" and told(
            figure,
            by_figure([figure], [{"subject": str(i), "scores": {"judge_refused": float(i == 0)}} for i in range(10)])[
                "judge_refused"
            ],
        ).startswith("10.0 (")

    @pytest.mark.parametrize(("metric", "parts"), [(Copies, ["one", "photographs", "others"]), (Talker, ["one"])])
    def test_a_metric_alone(self, data, tmp_path, metric, parts):
        """Photographs are copies of their subjects to be read beside; a judge is not asked about them."""
        order = Order(model="painter", stages=("free",), num_seeds=1)
        means = evaluate(DreamBench(data, [metric()], num_prompts=1), tmp_path, order, lambda: Gray())
        assert list(means) == list(json.loads((tmp_path / "table.json").read_text())["parts"]) == parts


class Gray(ColourPainter):
    """Paints nothing."""

    def __call__(self, prompts, references, *, width, height, **_):
        return SimpleNamespace(images=[Image.new("RGB", (width, height), "gray") for _ in prompts])
