"""GRPO with tiny random networks: what is logged, kept, resumed and exported, and that rewards rise."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import IMAGE_SIZE
from tiny_pipeline import picture, reasoning_pipeline, shorten_plans
from tiny_subjects import cutout_folder
from transformers import InternVLForConditionalGeneration
from typer.testing import CliRunner

from subjectgen import SubjectPipeline
from subjectgen.cli import app
from subjectgen.train import reasoning
from subjectgen.train.grpo import Reward, Settings, check_reading, dataset_of, given_back, train
from subjectgen.train.tasks import Task

SHORT = {"group": 4, "requests": 2, "max_new_tokens": 4, "rate": 1e-2, "rank": 2, "checkpoint_steps": 1}
ONE_TOKEN = {"group": 16, "max_new_tokens": 1, "rate": 0.1, "rank": 8, "checkpoint_steps": 100}


class Numbered:
    """Task n asks for n, about one or two references."""

    def __getitem__(self, number):
        colours = [(number * 20 % 256, 0, 90), (0, number * 30 % 256, 200)][: 1 + number % 2]
        pictures = tuple(Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), colour) for colour in colours)
        return Task(prompt=f"a red cat {number}", references=pictures)


def ascii_share(texts, tasks):
    return [sum(map(str.isascii, text)) / max(len(text), 1) for text in texts]


def number_asked(texts, tasks):
    return [float(task.prompt.rpartition(" ")[2]) for task in tasks]


def rewards(ascii_share=ascii_share):
    return [Reward("ascii", ascii_share), Reward("number", number_asked)]


def go(out, steps, resume=False, pipe=None, given=None, **changes):
    pipe = pipe or reasoning_pipeline()
    train(pipe, Numbered(), given or rewards(), out, Settings(steps=steps, **{**SHORT, **changes}), resume)
    return pipe


def lora(out, step):
    return load_file(out / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(out):
    with (out / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of four steps, and the pipeline that was trained."""
    out = tmp_path_factory.mktemp("straight")
    return out, go(out, 4)


class TestRun:
    def test_every_reward_is_logged_apart(self, straight):
        """Tasks come one after another, two a step: step n asks for 2n - 2 and 2n - 1."""
        (row,) = logged(straight[0])
        assert row["step"] == "4" and float(row["number"]) == pytest.approx(3.5)
        assert 0 < float(row["ascii"]) < 1
        assert float(row["reward"]) == pytest.approx(float(row["number"]) + float(row["ascii"]), abs=1e-4)

    def test_a_reward_is_given_what_was_asked(self, tmp_path):
        """Every plan of a group comes with the group's task."""
        asked = []
        go(tmp_path, 2, given=[Reward("x", lambda texts, tasks: asked.append(tasks) or [0.0] * len(texts))])
        numbers = [[int(task.prompt.rpartition(" ")[2]) for task in tasks] for tasks in asked]
        assert numbers == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4]

    def test_the_export_is_the_trained_mllm(self, straight, tmp_path):
        out, trained = straight
        reasoning_pipeline().save_pretrained(tmp_path)
        exported = InternVLForConditionalGeneration.from_pretrained(out / "export" / "mllm")
        pipe = SubjectPipeline.from_pretrained(tmp_path, mllm=exported)
        ids = torch.arange(20, 40)[None]
        with torch.no_grad():
            given, expected, before = (
                each.mllm(input_ids=ids).logits for each in (pipe, trained, reasoning_pipeline())
            )
        torch.testing.assert_close(given, expected)
        assert (given - before).abs().max() > 1e-2

    def test_only_the_decoder_learns(self, straight):
        out, _ = straight
        exported = InternVLForConditionalGeneration.from_pretrained(out / "export" / "mllm").state_dict()
        before = reasoning_pipeline().mllm.state_dict()
        changed = {name for name, weight in before.items() if not torch.equal(weight, exported[name])}
        assert changed and all("language_model" in name and "_proj" in name for name in changed)

    def test_rewards_rise(self, tmp_path):
        """Half of the tokens that a random MLLM writes are ASCII: to write only these is all that is asked for."""
        shares = []

        def noted(texts, tasks):
            shares.append(sum(ascii_share(texts, tasks)) / len(texts))
            return ascii_share(texts, tasks)

        go(tmp_path, 25, given=[Reward("ascii", noted)], **ONE_TOKEN)
        assert sum(shares[-8:]) / 8 > sum(shares[:8]) / 8 + 0.2, shares


class TestResume:
    def test_a_run_made_longer_is_the_longer_run(self, straight, tmp_path):
        go(tmp_path, 2)
        assert not same(lora(tmp_path, 2), lora(straight[0], 4))
        go(tmp_path, 4, resume=True)
        assert same(lora(tmp_path, 4), lora(straight[0], 4))
        assert [row["step"] for row in logged(tmp_path)] == ["2", "4"]

    def test_ctrl_c_keeps_the_step_under_way(self, straight, tmp_path):
        calls = []

        def stopping(texts, tasks):
            calls.append(tasks)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return ascii_share(texts, tasks)

        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=r"step 3 is saved in .*--resume goes on"):
            go(tmp_path, 4, given=rewards(stopping))
        assert signal.getsignal(signal.SIGINT) is handler and not (tmp_path / "export").exists()
        go(tmp_path, 4, resume=True)
        assert same(lora(tmp_path, 4), lora(straight[0], 4))

    def test_half_a_checkpoint_is_passed_over(self, straight, tmp_path):
        go(tmp_path, 2)
        (tmp_path / "checkpoints" / "checkpoint-3").mkdir()
        go(tmp_path, 4, resume=True)
        assert same(lora(tmp_path, 4), lora(straight[0], 4))

    def test_a_finished_run_is_only_exported_again(self, straight, tmp_path):
        go(tmp_path, 2)
        before = load_file(tmp_path / "export" / "mllm" / "model.safetensors")
        go(tmp_path, 2, resume=True)
        assert same(load_file(tmp_path / "export" / "mllm" / "model.safetensors"), before)

    def test_a_run_is_not_overwritten(self, straight):
        with pytest.raises(ValueError, match=r"holds a run: pass --resume"):
            go(straight[0], 4)

    def test_resuming_what_is_not_there(self, tmp_path):
        """A mistyped --out began anew."""
        with pytest.raises(FileNotFoundError, match=r"--resume: .*settings\.json is not there: .*Leave --resume out"):
            go(tmp_path / "mistyped", 4, resume=True)
        assert not (tmp_path / "mistyped").exists()

    @pytest.mark.parametrize(("begun", "resume"), [(True, False), (False, True)])
    def test_it_is_refused_before_anything_is_measured(self, tmp_path, monkeypatch, begun, resume):
        if begun:
            (tmp_path / "settings.json").write_text("{}")
        for name in ("scores_by_split", "photograph_rewards"):
            monkeypatch.setattr(reasoning, name, pytest.fail)
        with pytest.raises((ValueError, FileNotFoundError), match="--resume"):
            reasoning.on_emoji(pytest.fail, tmp_path, Settings(steps=1), resume=resume, measure=1)
        with pytest.raises((ValueError, FileNotFoundError), match="--resume"):
            reasoning.on_photographs(pytest.fail, tmp_path, Settings(steps=1), "photographs", resume=resume)

    def test_other_settings(self, straight):
        with pytest.raises(ValueError, match=r"trained with group=4, this is group=2: expected the same"):
            go(straight[0], 4, resume=True, group=2)

    def test_other_rewards_tasks_or_weights(self, straight, monkeypatch):
        with pytest.raises(
            ValueError, match=r"trained with rewards=\['ascii', 'number'\], this is rewards=\['ascii'\]"
        ):
            go(straight[0], 4, resume=True, given=rewards()[:1])
        with pytest.raises(ValueError, match=r"trained with mllm=\w+, this is mllm=\w+: expected the same"):
            go(straight[0], 4, resume=True, pipe=straight[1])
        monkeypatch.setattr(
            Numbered, "__getitem__", lambda self, number: Task(prompt="a cat 7", references=(picture("red"),))
        )
        with pytest.raises(ValueError, match="trained with first task="):
            go(straight[0], 4, resume=True)


def state_of(mllm):
    """All that tells one MLLM from another, and how it stands."""
    weights = {name: (weight.clone(), weight.requires_grad) for name, weight in mllm.named_parameters()}
    modules = {name: (type(each), each.training, len(each._forward_hooks)) for name, each in mllm.named_modules()}
    return weights, modules, mllm.config.to_dict(), mllm.generation_config.to_dict(), set(vars(mllm))


def assert_same_state(first, second):
    assert first[1:] == second[1:] and first[0].keys() == second[0].keys()
    for name, (weight, needed) in first[0].items():
        assert needed == second[0][name][1] and torch.equal(weight, second[0][name][0]), name


class TestGivenBack:
    def failing(self, call, error):
        """At this call of the reward."""
        calls = []

        def reward(texts, tasks):
            calls.append(tasks)
            if len(calls) == call:
                error()
            return ascii_share(texts, tasks)

        return rewards(reward)

    def test_after_an_interruption_which_the_same_pipeline_resumes(self, straight, tmp_path):
        pipe = reasoning_pipeline()
        before = state_of(pipe.mllm)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, 4, pipe=pipe, given=self.failing(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
        assert_same_state(before, state_of(pipe.mllm))
        go(tmp_path, 4, pipe=pipe, resume=True)
        assert same(lora(tmp_path, 4), lora(straight[0], 4))

    def test_after_a_reward_that_raises(self, straight, tmp_path):
        pipe = reasoning_pipeline()
        before = state_of(pipe.mllm)
        with pytest.raises(ZeroDivisionError):
            go(tmp_path, 4, pipe=pipe, given=self.failing(3, lambda: 1 / 0))
        assert_same_state(before, state_of(pipe.mllm))
        go(tmp_path, 4, pipe=pipe, resume=True)
        assert same(lora(tmp_path, 4), lora(straight[0], 4))

    def test_also_from_gradient_checkpointing(self):
        """Which is for GPUs: as TRL turns it on there."""
        mllm = reasoning_pipeline().mllm
        mllm.model.language_model.train()
        before = state_of(mllm)
        with given_back(mllm):
            mllm.train().requires_grad_(False).gradient_checkpointing_enable()
            mllm.enable_input_require_grads()
            assert mllm.is_gradient_checkpointing
        assert_same_state(before, state_of(mllm))
        assert not mllm.is_gradient_checkpointing

    def test_a_whole_run_changes_weights_alone(self, straight):
        """And those it leaves ready to be used: nothing drops out, and a further training finds what it may change."""
        before, after = state_of(reasoning_pipeline().mllm), state_of(straight[1].mllm)
        written = ("architectures", "dtype")  # by the export
        for settings in (before[2], after[2]), (before[2]["text_config"], after[2]["text_config"]):
            assert (
                len({str({**each, **dict.fromkeys((*written, "text_config", "vision_config"))}) for each in settings})
                == 1
            )
        assert (before[1], before[3:]) == (after[1], after[3:])
        assert all(needed == after[0][name][1] for name, (_, needed) in before[0].items())
        assert not any(training for _, training, _ in after[1].values())
        assert any(not torch.equal(weight, after[0][name][0]) for name, (weight, _) in before[0].items())


class TestRefused:
    @pytest.mark.parametrize(("name", "value"), [("group", 1), ("steps", 0), ("rate", 0.0), ("max_new_tokens", 0)])
    def test_settings(self, name, value):
        with pytest.raises(ValueError, match=rf"{name}={value}.*expected"):
            Settings(**{"steps": 1, name: value})

    def test_an_mllm_with_words_of_its_own(self):
        from tiny_qwen import tiny_qwen_pipeline  # skips the test where diffusers has no Qwen-Image 2.1

        with pytest.raises(ValueError, match=r"Qwen3VL.*expected an InternVL"):
            check_reading(tiny_qwen_pipeline(), Numbered()[0])

    def test_references_lie_on_the_paper_on_which_boxes_are_read(self):
        """A photograph of another shape is not squashed, as the processor alone would."""
        pipe, wide = reasoning_pipeline(), Image.new("RGB", (4 * IMAGE_SIZE, IMAGE_SIZE), "red")
        task = Task(prompt="a", references=(wide,))
        check_reading(pipe, task)
        ((shown,),) = dataset_of({0: task}, 1, pipe)[:1]["images"]
        pixels = np.asarray(shown)
        assert shown.size == (pipe.limits.reference_size,) * 2 and (pixels[0] == 255).all()
        assert (pixels[len(pixels) // 2] == (255, 0, 0)).all()

    def test_a_processor_that_cuts_pictures_up(self):
        pipe = reasoning_pipeline()
        check_reading(pipe, Numbered()[1])
        pipe.processor.image_processor.crop_to_patches, pipe.processor.image_processor.min_patches = True, 4
        with pytest.raises(ValueError, match=r"reads [4-9] tiles .*\.crop_to_patches = False"):
            check_reading(pipe, Numbered()[0])


class TestCommand:
    @pytest.fixture
    def command(self, tmp_path, monkeypatch):
        """On emoji drawn here, with a tiny random model."""
        shorten_plans(monkeypatch)
        reasoning_pipeline().save_pretrained(tmp_path / "model")
        cutouts = cutout_folder(tmp_path / "cutouts", seen=4, unseen=3)
        sizes = ("--group", "2", "--requests", "1", "--max-new-tokens", "4", "--rank", "2")
        given = ("train", "grpo", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), *sizes)
        return lambda *more: CliRunner().invoke(app, [*given, "--cutouts", str(cutouts), *more])

    def test_it_trains_measures_and_goes_on(self, command, tmp_path):
        result = command("--steps", "1", "--measure", "1")
        assert result.exit_code == 0, result.output
        assert result.output.strip().endswith(str(tmp_path / "out" / "export"))
        scores = json.loads((tmp_path / "out" / "scores.json").read_text())
        assert [list(each) for each in scores.values()] == [["seen", "unseen"]] * 2
        assert all(each["format"] == 1 for when in scores.values() for each in when.values())
        again = command("--steps", "2")
        assert again.exit_code == 2 and "pass --resume" in again.output
        assert command("--steps", "2", "--resume").exit_code == 0
        assert [row["step"] for row in logged(tmp_path / "out")] == ["1", "2"]
        assert {"format", "subject", "obedience"} < set(logged(tmp_path / "out")[0])

    def test_paintings_are_rewarded_apart(self, command, tmp_path, monkeypatch):
        """A random MLLM writes no plan, so nothing is painted."""
        assert command("--steps", "1", "--paint").exit_code == 0
        (row,) = logged(tmp_path / "out")
        assert float(row["painted"]) == 0

    def test_what_is_for_emoji_alone(self, command):
        result = command("--data", "photographs", "--paint")
        assert result.exit_code == 2 and "expected --data emoji" in result.output
