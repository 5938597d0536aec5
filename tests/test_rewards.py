"""Rewards of plans written by hand, and of pictures rendered, against what a reader finds by himself."""

import numpy as np
import pytest
import torch
from PIL import Image
from prompt_reader import understood as read_otherwise
from tiny import tiny_tokenizer
from tiny_pipeline import picture, reasoning_pipeline, shorten_plans
from tiny_subjects import cutout_folder
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from subjectgen.data.plans import direct, plan
from subjectgen.data.render import Renderer
from subjectgen.data.sightings import Sighting
from subjectgen.data.subjects import load_subjects
from subjectgen.data.talks import Asked
from subjectgen.data.understanding import understood
from subjectgen.data.world import Ground, Placement, Scene, random_scene
from subjectgen.likeness import Clip, Dino
from subjectgen.train.painted_rewards import DinoReward, Painter, PickReward, RegionReward
from subjectgen.train.reasoning import emoji_rewards, measured
from subjectgen.train.rewards import format_reward, obedience_reward, plan_in, subject_reward
from subjectgen.train.tasks import EmojiTasks, PhotographTasks, Task

WHITE = Ground(colour="white")
CAT = Sighting(name="cat", colours=("red", "black"), box=(0, 0, 50, 50), pose="upright", ground=WHITE)
CUP = Sighting(name="cup", colours=("teal",), box=(20, 20, 60, 60), pose="tilted left", ground=WHITE)
SCENE = Scene(ground=Ground(colour="blue", pattern="dotted"), placements=(Placement(place="top", size="large"),))
ASKED = Asked(text="the cup on dots", scene=SCENE, shown=(2,))
DECIDED = "<plan>scene: blue dotted; view: a; pose: b; changes: c; keeps: d</plan>"
SAID = "large image 2 at the top on a blue dotted background"  # 6 facts: colour, pattern, place, size, pose, number


def subject(name="cat", colours="red, black", box="0 0 50 50", pose="upright"):
    return f"<subject>name: {name}; colours: {colours}; box: {box}; pose: {pose}; ground: white plain</subject>"


def written(first=None, second=None, prompt=SAID):
    second = second or subject("cup", "teal", "20 20 60 60", "tilted left")
    return f"{first or subject()}{second}{DECIDED}<prompt>{prompt}</prompt>"


def planned(*subjects, **words):
    return plan_in(written(*subjects, **words), 2, "")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=6, unseen=3)
    return Renderer(load_subjects(cutouts=folder).split(unseen=False))


class TestFormat:
    def test_a_plan(self):
        assert format_reward(written(), 2) == 1

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("", 0),
            ("a cat on blue", 0),
            (subject(), 6),
            (subject().removesuffix("</subject>"), 5),
            (f"{subject()}{subject()}{DECIDED}", 17),
            (written()[:-1], 18),
            (written() + " and more", 19),
            (written(prompt="image 7 at the top"), 19),
        ],
    )
    def test_a_share_for_the_marks_of_a_plan(self, text, found):
        """Two subjects have six marks each, plan and prompt seven."""
        assert format_reward(text, 2) == pytest.approx(found / 19 / 2)

    @pytest.mark.parametrize("count", [1, 3])
    def test_as_many_subjects_as_references(self, count):
        assert format_reward(written(), count) <= 0.5


class TestSubject:
    def test_the_truth(self):
        assert subject_reward(planned(), (CAT, CUP)) == 1

    def test_no_plan(self):
        assert subject_reward(None, (CAT, CUP)) == 0

    @pytest.mark.parametrize(
        ("given", "lost"),
        [
            ({"colours": "red"}, 1 / 2),
            ({"colours": "black, red"}, 0),
            ({"colours": "green, blue"}, 1),
            ({"colours": "red, black, red, green"}, 1 / 3),
            ({"pose": "upside down"}, 1),
            ({"box": "0 0 50 25"}, 1 / 2),
            ({"box": "60 60 90 90"}, 1),
            ({"name": "dog"}, 0),
        ],
    )
    def test_what_is_wrong_costs_its_share(self, given, lost):
        """Of colours, box and pose of two references."""
        assert subject_reward(planned(subject(**given)), (CAT, CUP)) == pytest.approx(1 - lost / 6)


class TestObedience:
    @pytest.mark.parametrize(
        ("prompt", "right"),
        [
            (SAID, 6),
            ("huge image 2 upright at the top centre on a blue polka dot ground", 6),
            ("large image 2 at the top on a red dotted background", 5),
            ("large image 2 at the top on a blue checkerboard", 5),
            ("image 2 at the bottom on a blue dotted background", 4),
            ("two of image 2 upside down at the top on a blue dotted background", 3),
            ("large image 1 at the top on a blue dotted background", 2),
            ("image 2", 0),
            ("on a blue dotted background", 0),
            ("large image 2 at the top and large image 2 at the top on a blue dotted background", 0),
        ],
    )
    def test_share_of_what_was_asked_for(self, prompt, right):
        assert obedience_reward(planned(prompt=prompt), ASKED) == pytest.approx(right / 6)

    def test_more_than_was_asked_for(self):
        prompt = "large image 2 at the top and image 1 on the left on a blue dotted background"
        assert obedience_reward(planned(prompt=prompt), ASKED) == pytest.approx(6 / 10)

    def test_no_plan(self):
        assert obedience_reward(None, ASKED) == 0


class TestUnderstanding:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_it_reads_what_direct_says(self, count):
        rng = np.random.default_rng(count)
        for _ in range(300):
            scene, shown = random_scene(rng, count), tuple((rng.permutation(3)[:count] + 1).tolist())
            assert understood(direct(scene, shown)) == (scene, shown)
            if count == 1:
                assert read_otherwise(direct(scene, shown)) == scene


class TestTasks:
    def test_the_taught_plan_is_worth_most(self, renderer):
        """What the MLLM is taught to answer has every reward in full."""
        tasks = EmojiTasks(renderer)
        for task in map(tasks.__getitem__, range(40)):
            text = plan(task.asked.scene, task.seen, task.asked.shown)
            assert [reward([[{"content": text}]], [task]) for reward in emoji_rewards(None, renderer, False)] == [
                [1.0]
            ] * 3
            assert len(task.references) == len(task.seen) and len(task.looks) == len(task.asked.shown)

    def test_a_number_is_always_the_same_task(self, renderer):
        first, again, other = (EmojiTasks(renderer)[number] for number in (3, 3, 4))
        assert first.asked == again.asked != other.asked
        assert [each.tobytes() for each in first.references] == [each.tobytes() for each in again.references]

    def test_what_a_pipeline_reasons_is_measured(self, renderer, monkeypatch):
        """The mean over tasks that training never sees; random weights held to the grammar always write a plan."""
        shorten_plans(monkeypatch)
        pipe, told = reasoning_pipeline(), []
        monkeypatch.setattr("subjectgen.train.reasoning.subject_reward", lambda *given: told.append(given) or len(told))
        scores = measured(pipe, renderer, 3, "seen")
        assert scores == {"format": 1, "subject": 2, "obedience": 0}
        tasks = EmojiTasks(renderer, seed=2611)
        assert [seen for _, seen in told] == [tasks[number].seen for number in range(3)]
        assert [plan.asked for plan, _ in told] == [tasks[number].prompt for number in range(3)]

    def test_photographs(self, tmp_path):
        for name in ("a", "b"):
            Image.new("RGB", (40, 30), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
        line = '{"references": ["a.png"], "prompt": "image 1 on a beach", "target": "b.png"}\n'
        (tmp_path / "metadata.jsonl").write_text(line)
        tasks = PhotographTasks.of(tmp_path, 3)
        assert tasks[5].prompt == "image 1 on a beach" and tasks[5].references[0].getpixel((0, 0)) == (255, 0, 0)
        (tmp_path / "metadata.jsonl").write_text(line + line.replace("a.png", "c.png"))
        with pytest.raises(ValueError, match=r"(?s)1 of 2 rows cannot be trained on:.*c\.png"):
            PhotographTasks.of(tmp_path, 3)


def nothing(texts, tasks):
    """A painter of no pictures."""
    return [None] * len(texts)


class TestPainted:
    def test_a_painting_beside_the_truth(self, renderer):
        task = EmojiTasks(renderer)[0]
        (truth,) = renderer.scenes([task.asked.scene], [list(task.looks)])
        (empty,) = renderer.scenes([Scene(ground=task.asked.scene.ground)], [[]])
        reward = RegionReward(nothing, renderer)
        halfway = (truth + empty) / 2
        assert reward.score(truth, task) == 1 and reward.score(empty, task) == 0
        assert reward.score(halfway, task) == pytest.approx(1 - 0.5**2, abs=1e-5)
        assert reward.score(-truth, task) == 0
        larger = truth.repeat_interleave(2, 1).repeat_interleave(2, 2)  # another model's size
        assert reward.score(larger, task) == pytest.approx(1)

    def test_plans_are_painted_once(self, monkeypatch):
        pipe, calls = reasoning_pipeline(), []
        whole = subject(box="0 0 100 100")
        text = f"{whole}{DECIDED}<prompt>image 1 on red</prompt>"
        task = Task(prompt="x", references=(picture("red"),))
        paint = Painter(pipe)
        monkeypatch.setattr(type(pipe), "__call__", counted(type(pipe).__call__, calls))
        pictures = paint([text, "no plan", text], [task] * 3)
        assert paint([text, "no plan", text], [task] * 3) is pictures and len(calls) == 2
        assert pictures[1] is None and torch.equal(pictures[0], pictures[2])
        expected = pipe(plan_in(text, 1, ""), [picture("red")], generator=seeded(), output_type="pt").images[0]
        torch.testing.assert_close((pictures[0] + 1) / 2, expected, atol=1e-6, rtol=0)

    def test_the_same_words_about_other_references_are_painted_anew(self):
        text = f"{subject(box='0 0 100 100')}{DECIDED}<prompt>image 1 on red</prompt>"
        paint = Painter(reasoning_pipeline())
        (red,) = paint([text], [Task(prompt="x", references=(picture("red"),))])
        (blue,) = paint([text], [Task(prompt="x", references=(picture("blue"),))])
        assert not torch.equal(red, blue)

    def test_what_is_no_fault_of_the_plan_is_not_swallowed(self, monkeypatch):
        text = f"{subject(box='0 0 100 100')}{DECIDED}<prompt>image 1 on red</prompt>"
        pipe = reasoning_pipeline()
        monkeypatch.setattr(type(pipe), "_paint", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
        with pytest.raises(ValueError, match="broken"):
            Painter(pipe)([text], [Task(prompt="x", references=(picture("red"),))])

    def test_an_mllm_in_training_paints_the_same(self):
        """Checkpointing activations, it would keep no keys and values; it goes on training afterwards."""
        text = f"{subject(box='0 0 100 100')}{DECIDED}<prompt>image 1 on red</prompt>"
        task, pipe = Task(prompt="x", references=(picture("red"),)), reasoning_pipeline()
        (expected,) = Painter(pipe)([text], [task])
        pipe.mllm.train().gradient_checkpointing_enable()
        (painted,) = Painter(pipe)([text], [task])
        assert torch.equal(painted, expected) and pipe.mllm.training

    def test_what_shows_nothing_is_not_painted(self, renderer):
        text = f"{subject(box='0 0 1 1')}{DECIDED}<prompt>image 1 on red</prompt>"
        task = Task(prompt="x", references=(picture("red", size=(20, 30)),))
        assert Painter(reasoning_pipeline())([text], [task]) == [None]
        assert RegionReward(nothing, renderer)([text], [task]) == [0.0]


def counted(call, calls):
    return lambda pipe, *given, **options: calls.append(given) or call(pipe, *given, **options)


def seeded():
    return torch.Generator().manual_seed(2611)


class TestJudges:
    """Tiny random networks of the classes that the Hub's weights have."""

    def test_dino(self):
        torch.manual_seed(0)
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
        model = Dinov2Model(Dinov2Config(**sizes))
        imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
        processor = BitImageProcessorPil(**sides, **imagenet)
        same, other = picture("red", size=(28, 28)), picture("blue", size=(28, 28))
        reward = DinoReward(nothing, Dino(model, "tiny", side=28))
        pixels = torch.tensor(np.asarray(same)).permute(2, 0, 1) / 127.5 - 1
        assert reward.score(pixels, Task(prompt="", references=(same,))) == pytest.approx(1)
        with torch.no_grad():
            first, second = (
                model(**processor(each, return_tensors="pt")).last_hidden_state[0, 0] for each in (same, other)
            )
        cosine = float(first @ second / first.norm() / second.norm())
        assert cosine < 0.999
        score = reward.score(pixels, Task(prompt="", references=(same, other)))
        assert score == pytest.approx((1 + cosine) / 2, abs=1e-5)

    def test_pickscore(self):
        """A hundredth of what CLIP calls the logit of a pair, when its scale is 100; 0 where that is negative."""
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {**sizes, "vocab_size": 300, "eos_token_id": 2, "max_position_embeddings": 77}
        config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14})
        model = CLIPModel(config).eval()
        model.logit_scale.data.fill_(np.log(100))
        images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        processor = CLIPProcessor(images, tiny_tokenizer())
        shown = picture("red", size=(28, 28))
        pixels = torch.tensor(np.asarray(shown)).permute(2, 0, 1) / 127.5 - 1
        scores = []
        for prompt in ("a red cat", "on the blue ground, a cat"):
            for sign in (1, -1):
                model.text_projection.weight.data.mul_(sign)
                inputs = processor(text=[prompt], images=[shown], return_tensors="pt")
                with torch.no_grad():
                    expected = float(model(**inputs).logits_per_image[0, 0]) / 100
                reward = PickReward(nothing, Clip(model, processor.tokenizer, images, "tiny"))
                scores.append(reward.score(pixels, Task(prompt=prompt, references=())))
                assert scores[-1] == pytest.approx(max(expected, 0), abs=1e-6)
        assert [score > 0 for score in scores].count(True) == 2 and len(set(scores)) == 3
