"""The command line with a stand-in for the model: what is parsed, called, written, refused."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.status import Status
from tiny_benchmark import photograph_folder
from tiny_pipeline import reasoning_pipeline, shorten_plans, tiny_pipeline
from tiny_subjects import cutout_folder
from torch import nn
from typer.testing import CliRunner

import subjectgen
from subjectgen import Plan, PlanError, PlannedSubject, Round, Score, Subject, SubjectPipeline, TowerJudge
from subjectgen.binding import bind
from subjectgen.cli import app
from subjectgen.cli.compare import CELL
from subjectgen.cli.generate import numbered, parse_size
from subjectgen.cli.metrics import JudgeOptions, open_metrics
from subjectgen.cli.model import open_model
from subjectgen.data.subjects import is_unseen
from subjectgen.evaluate.cases import Shard
from subjectgen.evaluate.sheet import GAP, LINE
from subjectgen.extras import MissingExtraError
from subjectgen.memory import OutOfMemory
from subjectgen.weights import WeightsError, model_hash, write_manifest

PLAN = Plan(
    subjects=(PlannedSubject(name="cat", colours=("red",), box=(0, 0, 9, 9), pose="upright", ground="white"),),
    **dict.fromkeys(("scene", "view", "pose", "changes", "keeps"), "x"),
    prompt="image 1 on teal",
    asked="on the colour opposite to its own",
)


class Painter:
    """Stands for a SubjectPipeline: records its calls, paints each picture from its own generator."""

    config = SimpleNamespace(stages="paper", num_inference_steps=25, judge="mllm")
    num_timesteps = 2

    def __init__(self) -> None:
        self.components = {"vae": nn.Linear(2, 2), "scheduler": object()}
        self.calls: list[SimpleNamespace] = []
        self.error: BaseException | None = None
        self.opened: list[dict[str, Any]] = []

    def open(self, *given: Any, **options: Any) -> "Painter":
        self.opened.append(inspect.signature(open_model).bind(*given, **options).arguments)
        return self

    def __call__(self, prompt: str, subjects: Any, **options: Any) -> SimpleNamespace:
        self.calls.append(SimpleNamespace(prompt=prompt, subjects=subjects, **options))
        for step in range(self.num_timesteps):
            assert options["callback_on_step_end"](self, step, 500, {"latents": step}) == {"latents": step}
        if self.error:
            raise self.error
        colours = [torch.randint(256, (3,), generator=generator).tolist() for generator in options["generator"]]
        images = [Image.new("RGB", (8, 8), tuple(colour)) for colour in colours]
        count, rounds = options.get("best_of", 1), options.get("reflect", 0)
        thinks = options.get("reasoning") or count > 1 or rounds
        return SimpleNamespace(
            images=images[count - 1 :: count],  # the last candidate is the best
            bindings=(bind(str(prompt), ["cup"]) if "Cup" in str(prompt) else (),),
            plans=[prompt] if isinstance(prompt, Plan) else [PLAN] if thinks else None,
            kept=[count - 1] * (len(images) // count) if count > 1 else None,
            scores=[tuple(Score(prompt=k + 1) for k in range(count))] * (len(images) // count) if count > 1 else None,
            rounds=[Round(images=images, departures=[("scene", "pose"), ()])] * (rounds + 1) if rounds else None,
        )

    def reason(self, prompt: str, subjects: Any, **options: Any) -> Plan:
        self.calls.append(SimpleNamespace(prompt=prompt, subjects=subjects, **options))
        options["callback_on_token"](self, "<plan>")
        return PLAN

    def encode_subjects(self, images: list[Image.Image]) -> SimpleNamespace:
        return SimpleNamespace(
            save=lambda path: Path(path).write_text(json.dumps([Subject.of(image).read()[0].size for image in images]))
        )


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    made = Painter()
    for command in ("generate", "compare", "encode", "evaluate", "reason"):
        monkeypatch.setattr(f"subjectgen.cli.{command}.open_model", made.open)
    return made


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for colour in ("red", "blue"):
        Image.new("RGB", (6, 4), colour).save(f"{colour}.png")
    yield tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a real pipeline of tiny random networks."""
    tiny_pipeline().save_pretrained(folder := tmp_path_factory.mktemp("model"))
    return str(folder)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def refused(*arguments: str, words: tuple[str, ...]) -> None:
    before = sorted(Path().rglob("*"))
    output = run(*arguments, code=2)
    for word in words:
        assert word in output
    assert sorted(Path().rglob("*")) == before


class TestGenerate:
    def test_defaults_leave_the_choice_to_the_model(self, painter: Painter):
        assert "out.png" in run("generate", "--prompt", "a red ground")
        (call,) = painter.calls
        assert (call.prompt, call.subjects, call.num_images_per_prompt) == ("a red ground", None, 1)
        assert (call.height, call.width, call.num_inference_steps, call.stages) == (None, None, None, None)
        assert (call.guidance_scale, call.negative_prompt) == (None, None)
        assert Image.open("out.png").size == (8, 8)

    def test_what_stands_for_which_reference(self, painter: Painter):
        output = run("generate", "--prompt", "the Cup on red", "--subject", "red.png", "--name", "cup")
        assert "'Cup' is image 1" in output
        assert "is image" not in run("generate", "--prompt", "it on red", "--subject", "red.png")

    def test_every_flag(self, painter: Painter):
        run("generate", "--prompt", "p", "--subject", "red.png", "--subject", "blue.png", "--out", "a/b/c.png",
            "--seed", "5", "--steps", "3", "--stages", "free", "--num-images", "2", "--size", "64x48",
            "--guidance-scale", "2.5", "--negative-prompt", "a cat", "--model", "mini")  # fmt: skip
        (call,) = painter.calls
        assert [image.getpixel((0, 0)) for image in call.subjects] == [(255, 0, 0), (0, 0, 255)]
        assert (call.width, call.height, call.num_inference_steps, call.stages) == (64, 48, 3, "free")
        assert (call.guidance_scale, call.negative_prompt) == (2.5, "a cat")
        assert [generator.initial_seed() for generator in call.generator] == [5, 6]
        assert all(generator.device.type == "cpu" for generator in call.generator)
        assert sorted(path.name for path in Path("a/b").iterdir()) == ["c-1.png", "c-2.png"]

    @pytest.mark.parametrize("arguments", [("generate", "--prompt", "p"), ("encode", "--subject", "red.png")])
    def test_model_and_how_it_is_loaded(self, painter: Painter, arguments: tuple[str, ...]):
        run(*arguments)
        run(*arguments, "--model", "a/base", "--adapter", "mine.safetensors", "--quantization", "int8",
            "--offload", "group", "--attention-backend", "flash", "--compile", "--dtype", "bfloat16")  # fmt: skip
        defaults = {"quantization": "none", "offload": "none", "attention_backend": None, "compile": False}
        defaults |= {"dtype": None}
        chosen = {"quantization": "int8", "offload": "group", "attention_backend": "flash", "compile": True}
        chosen |= {"dtype": "bfloat16"}
        assert painter.opened == [
            {"name": "mini", "adapter": None, **defaults},
            {"name": "a/base", "adapter": "mine.safetensors", **chosen},
        ]
        assert chosen.keys() <= inspect.signature(subjectgen.load).parameters.keys()

    def test_png_remembers_how_it_was_made(self, painter: Painter):
        prompt = "un café à 茶\nsecond line"
        run("generate", "--prompt", prompt, "--subject", "red.png", "--seed", "7", "--stages", "free")
        text = Image.open("out.png").text
        assert text["prompt"] == prompt
        assert (text["seed"], text["stages"], text["steps"], text["model"]) == ("7", "free", "25", "mini")
        assert text["model_hash"] == model_hash(painter.components)
        assert json.loads(text["subjects"]) == ["red.png"]

    def test_what_guided_it_is_written_where_it_was_given(self, painter: Painter):
        run("generate", "--prompt", "p", "--guidance-scale", "0", "--negative-prompt", "a cat")
        text = Image.open("out.png").text
        assert (text["guidance_scale"], text["negative_prompt"]) == ("0.0", "a cat")
        run("generate", "--prompt", "p", "--negative-prompt", "")
        assert not {"guidance_scale", "negative_prompt"} & Image.open("out.png").text.keys()

    def test_own_stages_of_the_model_are_written(self, painter: Painter, monkeypatch: pytest.MonkeyPatch):
        own = [{"until": 0.5, "semantic": 1.0, "identity": 0.0}]
        monkeypatch.setattr(painter, "config", SimpleNamespace(stages=own, num_inference_steps=4))
        run("generate", "--prompt", "p")
        assert json.loads(Image.open("out.png").text["stages"]) == own

    def test_a_written_seed_paints_the_picture_again(self, painter: Painter):
        run("generate", "--prompt", "p", "--num-images", "3", "--out", "many.png")
        third = Image.open("many-3.png")
        run("generate", "--prompt", "p", "--seed", third.text["seed"], "--out", "again.png")
        assert Image.open("again.png").tobytes() == third.tobytes()

    def test_left_out_seed_differs(self, painter: Painter):
        run("generate", "--prompt", "p")
        run("generate", "--prompt", "p")
        first, second = (call.generator[0].initial_seed() for call in painter.calls)
        assert first != second

    def test_encoded_subject(self, painter: Painter, monkeypatch: pytest.MonkeyPatch):
        Path("red.safetensors").touch()
        monkeypatch.setattr("subjectgen.embeds.SubjectEmbeds.load", lambda path: f"embeds of {path}")
        run("generate", "--prompt", "p", "--subject", "red.safetensors")
        assert painter.calls[0].subjects == "embeds of red.safetensors"

    def test_notes_are_one_plain_line(self, painter: Painter):
        Image.new("RGBA", (4, 4), (255, 0, 0, 9)).save("glass.png")
        output = run("generate", "--prompt", "p", "--subject", "glass.png")
        assert "Note: image file 'glass.png' is partly transparent: it is laid on white.\n" in output
        assert "images.py" not in output


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--subject", "none.png"], ("none.png", "does not exist")),
            (["--subject", "empty.png"], ("empty.png", "0 bytes")),
            (["--subject", "none.safetensors"], ("none.safetensors", "subjectgen encode")),
            (["--subject", "broken.safetensors"], ("broken.safetensors", "corrupt")),
            (["--subject", "red.png", "--subject", "none.safetensors"], ("none.safetensors", "already encoded")),
            (["--size", "big"], ("--size 'big'", "128")),
            (["--size", "1x2x3"], ("1x2x3", "WIDTHxHEIGHT")),
            (["--size", "-5"], ("-5",)),
            (["--out", "a.jpg"], ("a.jpg", "'.png'")),
            (["--out", "picture"], ("picture", "'.png'")),
            (["--out", "taken.png"], ("taken.png", "is a folder")),
            (["--out", "red.png/a.png"], ("red.png/a.png", "is a file")),
            (["--steps", "0"], ("--steps",)),
            (["--steps", "many"], ("--steps",)),
            (["--guidance-scale", "nan"], ("--guidance-scale nan", "finite")),
            (["--guidance-scale", "much"], ("--guidance-scale",)),
            (["--negative-prompt", "\udcff"], ("negative_prompt", "half a character")),
            (["--seed", "-1"], ("--seed",)),
            (["--seed", str(2**64)], ("--seed",)),
            (["--num-images", "0"], ("--num-images",)),
            (["--dtype", "int8"], ("--dtype", "bfloat16")),
            (["--colour", "red"], ("--colour",)),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_before_the_model_is_loaded(self, painter: Painter, arguments: list[str], words: tuple[str, ...]):
        Path("empty.png").touch()
        Path("broken.safetensors").write_bytes(b"\xff" * 20)
        Path("taken.png").mkdir()
        refused("generate", "--prompt", "p", *arguments, words=words)
        assert not painter.calls

    def test_no_prompt(self, painter: Painter):
        refused("generate", words=("--prompt",))

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("stages='mild': expected paper, free or faithful"),
            FileNotFoundError("weights/mine is not there"),
            WeightsError("vae.safetensors is altered"),
            MissingExtraError("peft is not installed"),
            OutOfMemory("out of memory while painting: 2.50 GiB more were asked for"),
            OSError(28, "No space left on device"),
            RuntimeError("unexpected"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_of_the_library(self, painter: Painter, error: Exception):
        painter.error = error
        if type(error) is RuntimeError:  # a bug is not dressed up as a refusal
            with pytest.raises(RuntimeError, match="unexpected"):
                CliRunner().invoke(app, ["generate", "--prompt", "p"], catch_exceptions=False)
            return
        refused("generate", "--prompt", "p", words=("Error:", str(error)))

    def test_disk_full_while_writing(self, painter: Painter, monkeypatch: pytest.MonkeyPatch):
        Path("out.png").write_bytes(b"what was there")

        def fill(self: Image.Image, file: Any, **_: Any) -> None:
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", fill)
        refused("generate", "--prompt", "p", words=("disk is full", "free some space"))
        assert Path("out.png").read_bytes() == b"what was there"

    def test_interrupt(self, painter: Painter):
        before = sorted(Path().iterdir())
        painter.error = KeyboardInterrupt()
        assert "Stopped" in run("generate", "--prompt", "p", code=130)
        assert sorted(Path().iterdir()) == before

    def test_interrupt_while_writing(self, painter: Painter, monkeypatch: pytest.MonkeyPatch):
        def interrupted(self: Image.Image, file: Any, **_: Any) -> None:
            Path(file).write_bytes(b"half")
            raise KeyboardInterrupt

        before = sorted(Path().iterdir())
        monkeypatch.setattr(Image.Image, "save", interrupted)
        run("generate", "--prompt", "p", code=130)
        assert sorted(Path().iterdir()) == before


class TestReason:
    def test_prints_and_writes(self, painter: Painter):
        output = run("reason", "--prompt", "p", "--subject", "red.png", "--out", "a/plan.json", "--max-new-tokens", "9")
        (call,) = painter.calls
        assert (call.prompt, call.max_new_tokens, len(call.subjects)) == ("p", 9, 1)
        assert str(PLAN) in output and "a/plan.json" in output
        assert Plan.from_json(Path("a/plan.json").read_text()) == PLAN

    def test_the_default_is_that_of_the_library(self, painter: Painter):
        run("reason", "--prompt", "p")
        default = inspect.signature(SubjectPipeline.reason).parameters["max_new_tokens"].default
        assert painter.calls[0].max_new_tokens == default
        assert sorted(path.name for path in Path().iterdir()) == ["blue.png", "red.png"]

    def test_generate_with_reasoning(self, painter: Painter):
        output = run("generate", "--prompt", "p", "--subject", "red.png", "--reasoning")
        assert painter.calls[0].reasoning is True and str(PLAN) in output
        text = Image.open("out.png").text
        assert text["prompt"] == PLAN.asked and Plan.from_json(text["plan"]) == PLAN

    @pytest.mark.parametrize(
        ("arguments", "before"), [((), "reading"), (("--reasoning",), "planning"), (("--reflect", "1"), "planning")]
    )
    def test_what_is_done_until_the_first_step_is_not_painting(self, painter: Painter, monkeypatch, arguments, before):
        monkeypatch.setattr("subjectgen.cli.generate.screen", screen := Console(file=StringIO(), force_terminal=True))
        run("generate", "--prompt", "p", *arguments)
        shown = screen.file.getvalue()
        assert 0 <= shown.find(before) < shown.find("painting")

    def test_what_is_written_of_a_plan_is_counted(self, painter: Painter, monkeypatch):
        shown = []
        monkeypatch.setattr(Status, "update", lambda self, text: shown.append(text))
        run("reason", "--prompt", "p")
        assert shown == ["reasoning, 6 characters so far"]

    def test_generate_a_plan(self, painter: Painter):
        Path("plan.json").write_text(PLAN.to_json())
        run("generate", "--plan", "plan.json", "--subject", "red.png")
        (call,) = painter.calls
        assert call.prompt == PLAN and len(call.subjects) == 1 and not call.reasoning
        assert Plan.from_json(Image.open("out.png").text["plan"]) == PLAN

    def test_the_best_of_several(self, painter: Painter):
        arguments = ("--best-of", "3", "--num-images", "2", "--seed", "7", "--out", "a.png")
        output = run("generate", "--prompt", "p", *arguments)
        assert painter.calls[0].best_of == 3 and painter.calls[0].num_images_per_prompt == 2
        assert [generator.initial_seed() for generator in painter.calls[0].generator] == [7, 8, 9, 10, 11, 12]
        assert output.splitlines()[-8:] == [
            "a-1.png  (seed 9)", *(f"  seed {6 + k}: {k} (prompt {k})" for k in (1, 2, 3)),
            "a-2.png  (seed 12)", *(f"  seed {9 + k}: {k} (prompt {k})" for k in (1, 2, 3)),
        ]  # fmt: skip
        assert str(PLAN) in output
        with Image.open("a-2.png") as written:
            assert written.text["seed"] == "12" and written.text["best_of"] == "3"
        run("generate", "--prompt", "p", "--seed", "12", "--out", "b.png")
        with Image.open("a-2.png") as kept, Image.open("b.png") as alone:
            assert kept.tobytes() == alone.tobytes() and "best_of" not in alone.text

    def test_what_the_tower_finds_best(self, painter: Painter):
        run("generate", "--prompt", "p", "--subject", "red.png", "--best-of", "2", "--judge", "tower")
        run("generate", "--prompt", "p", "--best-of", "2", "--out", "b.png")
        assert isinstance(painter.calls[0].judge, TowerJudge) and painter.calls[1].judge is None
        with Image.open("out.png") as tower, Image.open("b.png") as mllm:
            assert (tower.text["judge"], mllm.text["judge"]) == ("tower", "mllm")

    def test_reflection(self, painter: Painter):
        output = run("generate", "--prompt", "p", "--reflect", "1", "--num-images", "2", "--seed", "7")
        assert painter.calls[0].reflect == 1
        assert output.splitlines()[-6:] == [
            "out-1.png  (seed 7)", *(f"  round {k}: scene, pose departs from the plan" for k in (0, 1)),
            "out-2.png  (seed 8)", *(f"  round {k}: nothing departs from the plan" for k in (0, 1)),
        ]  # fmt: skip
        with Image.open("out-1.png") as written:
            assert written.text["reflect"] == "1"

    def test_no_plan_no_text_chunk(self, painter: Painter):
        run("generate", "--prompt", "p")
        assert "plan" not in Image.open("out.png").text

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("reason", "--prompt", "p", "--out", "plan.png"), ("plan.png", ".json")),
            (("reason", "--prompt", "p", "--subject", "none.png"), ("none.png",)),
            (("reason",), ("--prompt",)),
            (("generate", "--prompt", "p", "--best-of", "0"), ("--best-of",)),
            (("generate", "--prompt", "p", "--judge", "mllm"), ("--judge mllm without --best-of", "--best-of 4")),
            (("generate", "--plan", "p.json", "--judge", "tower", "--best-of", "1"), ("--judge tower without",)),
            (("generate", "--prompt", "p", "--reflect", "-1"), ("--reflect",)),
            (("generate",), ("--prompt", "--plan")),
            (("generate", "--plan", "none.json"), ("none.json", "subjectgen reason")),
            (("generate", "--plan", "broken.json"), ("broken.json", "no JSON")),
            (("generate", "--plan", "folder.safetensors"), ("--plan 'folder.safetensors' is a folder", "reason --out")),
            (("generate", "--prompt", "p", "--subject", "folder.safetensors"), ("is a folder", "SubjectEmbeds.save")),
            (("generate", "--plan", "deep.json"), ("deep.json", "no JSON")),
            (("generate", "--prompt", "p", "--stages", "slow"), ("stages='slow'", "paper, free, faithful")),
            *(
                ((command, *subject, "--prompt", prompt), (f"prompt={prompt!r}", word))
                for command, *subject in (("generate",), ("reason",), ("compare", "--subject", "red.png"))
                for prompt, word in ((" ", "is empty"), ("\udcff", "half a character"))
            ),
            (("generate", "--plan", "old.json"), ("old.json", "subjectgen.Plan/0", "subjectgen.Plan/2")),
            (("generate", "--plan", "old.json", "--prompt", "p"), ("--plan", "--prompt")),
            (("generate", "--plan", "old.json", "--reasoning"), ("--plan", "--reasoning")),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_refused(self, painter: Painter, arguments: tuple[str, ...], words: tuple[str, ...]):
        Path("broken.json").write_text("{")
        Path("folder.safetensors").mkdir()
        Path("deep.json").write_text("[" * 100_000)
        Path("old.json").write_text(json.dumps({**PLAN.to_dict(), "format": "subjectgen.Plan/0"}))
        refused(*arguments, words=words)
        assert not painter.opened

    def test_no_plan(self, painter: Painter, monkeypatch: pytest.MonkeyPatch):
        def unfinished(*_: Any, **__: Any) -> None:
            raise PlanError("the plan has no end after max_new_tokens=3: give more. It wrote: '<subject>'", "<subject>")

        monkeypatch.setattr(Painter, "reason", unfinished)
        refused("reason", "--prompt", "p", "--out", "plan.json", words=("no end", "It wrote: '<subject>'"))


class TestCutOut:
    """What of an image is the subject."""

    @pytest.mark.parametrize("command", ["generate", "reason"])
    def test_of_one(self, painter: Painter, command: str):
        run(command, "--prompt", "the bug", "--subject", "red.png", "--name", "bug", "--box", "1,0,5,4")
        (subject,) = painter.calls[0].subjects
        assert (subject.name, subject.box, subject.mask, subject.read()[0].size) == ("bug", (1, 0, 5, 4), None, (4, 4))

    def test_of_several(self, painter: Painter):
        Image.fromarray(np.eye(4, 6, dtype=np.uint8) * 255).save("mask.png")
        run("generate", "--prompt", "the cup", "--subject", "red.png", "--subject", "blue.png", "--subject", "red.png",
            "--mask", "3=mask.png", "--name", "3=a=b", "--name", "2=cup", "--box", "2=0,0,2,2")  # fmt: skip
        first, second, third = painter.calls[0].subjects
        assert isinstance(first, Image.Image)
        assert (second.name, second.box, second.mask) == ("cup", (0, 0, 2, 2), None)
        assert (third.name, third.box) == ("a=b", None)
        assert third.read()[1].tolist() == np.eye(4, 6, dtype=bool).tolist()
        text = Image.open("out.png").text
        assert json.loads(text["names"]) == ["3=a=b", "2=cup"] and json.loads(text["masks"]) == ["3=mask.png"]

    def test_of_what_is_encoded(self, painter: Painter):
        run("encode", "--subject", "red.png", "--box", "0,0,3,2", "--out", "a.safetensors")
        assert json.loads(Path("a.safetensors").read_text()) == [[3, 2]]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--subject", "blue.png", "--name", "cup"], ("--name 'cup'", "any of 2", "'1=cup'")),
            (["--box", "2=0,0,2,2"], ("--box '2=0,0,2,2'", "subject 2", "1 subject(s)")),
            (["--name", "0=cup"], ("--name '0=cup'", "subject 0")),
            (["--name", "cup", "--name", "1=mug"], ("--name '1=mug'", "second", "subject 1")),
            (["--box", "0,0,x,2"], ("--box '0,0,x,2'", "LEFT,TOP,RIGHT,BOTTOM")),
            (["--box", "0,0,2"], ("red.png", "box=(0, 0, 2)", "left < right")),
            (["--box", "0,0,7,2"], ("red.png", "outside", "6x4")),
            (["--mask", "none.png"], ("none.png", "does not exist")),
            (["--mask", "dark.png"], ("red.png", "mask has no subject")),
        ],
        ids=lambda value: " ".join(value),
    )
    @pytest.mark.parametrize("command", ["generate", "reason", "compare", "encode"])
    def test_refused_before_the_model_is_loaded(self, command: str, arguments: list[str], words: tuple[str, ...]):
        Image.new("L", (6, 4)).save("dark.png")
        prompt = () if command == "encode" else ("--prompt", "p")
        refused(command, *prompt, "--subject", "red.png", *arguments, "--model", "nowhere/at-all", words=words)

    def test_what_is_encoded_is_cut_already(self):
        refused(
            "generate", "--prompt", "p", "--subject", "a.safetensors", "--box", "0,0,2,2", words=("encoded", "--box")
        )

    def test_without_a_subject(self):
        refused("generate", "--prompt", "p", "--name", "cup", words=("--name 'cup'", "0 subject(s)"))


class TestEncode:
    def test_writes(self, painter: Painter):
        run("encode", "--subject", "red.png", "--subject", "blue.png", "--out", "two.safetensors")
        assert json.loads(Path("two.safetensors").read_text()) == [[6, 4], [6, 4]]

    def test_refuses(self, painter: Painter):
        refused("encode", "--subject", "none.png", words=("none.png", "does not exist"))
        refused("encode", "--subject", "red.png", "--out", "a.png", words=("a.png", ".safetensors"))
        refused("encode", words=("--subject",))


class TestWithAModel:
    """The commands meet the interface they call."""

    def test_generate_and_encode_agree(self, model: str):
        common = ("--prompt", "a red ground", "--seed", "3", "--model", model)
        run("generate", *common, "--subject", "red.png", "--num-images", "2", "--size", "64x48", "--out", "a.png")
        run("encode", "--subject", "red.png", "--model", model, "--out", "red.safetensors")
        run("generate", *common, "--subject", "red.safetensors", "--size", "64x48", "--out", "b.png")
        encoded, first, second = (Image.open(name) for name in ("b.png", "a-1.png", "a-2.png"))
        assert encoded.size == (64, 48)
        difference = np.abs(np.asarray(encoded, dtype=int) - np.asarray(first, dtype=int))
        assert difference.max() <= 1
        assert first.tobytes() != second.tobytes()
        assert len({picture.text["model_hash"] for picture in (encoded, first, second)}) == 1

    def test_a_plan_is_painted_as_reasoning_paints_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        reasoning_pipeline().save_pretrained(tmp_path / "model")
        shorten_plans(monkeypatch)
        common = ("--prompt", "p", "--subject", "red.png", "--model", str(tmp_path / "model"))
        run("reason", *common, "--out", "plan.json")
        run("generate", "--plan", "plan.json", *common[2:], "--seed", "3", "--out", "a.png")
        run("generate", *common, "--seed", "3", "--reasoning", "--out", "b.png")
        first, second = Image.open("a.png"), Image.open("b.png")
        assert first.tobytes() == second.tobytes() and first.text["plan"] == second.text["plan"]

    def test_compare_paints_what_generate_paints(self, model: str):
        common = ("--prompt", "a red ground", "--subject", "red.png", "--seed", "3", "--model", model)
        common += ("--guidance-scale", "3")
        run("compare", *common, "--stages", "free", "--stages", "faithful", "--num-images", "2", "--out", "sheet.png")
        run("generate", *common, "--stages", "faithful", "--num-images", "2", "--out", "a.png")
        sheet, second = Image.open("sheet.png"), Image.open("a-2.png").resize((CELL, CELL), Image.Resampling.LANCZOS)
        left, top = GAP + 2 * (CELL + GAP), LINE + GAP + CELL + GAP  # after image 1 and free, below the first seed
        cell = sheet.crop((left, top, left + CELL, top + CELL))
        assert np.abs(np.asarray(cell, dtype=int) - np.asarray(second, dtype=int)).max() <= 1

    def test_compare_shows_what_is_cut_out(self, model: str):
        common = ("--prompt", "a red ground", "--model", model, "--stages", "free", "--num-images", "1")
        Image.new("RGB", (12, 4), "white").save("half.png")
        with Image.open("half.png") as half:
            half.paste("red", (0, 0, 6, 4))
            half.save("half.png")
        run("compare", *common, "--subject", "half.png", "--box", "0,0,6,4", "--out", "cut.png")
        run("compare", *common, "--subject", "red.png", "--out", "whole.png")
        with Image.open("cut.png") as cut, Image.open("whole.png") as whole:
            assert cut.tobytes() == whole.tobytes()

    def test_compare_refuses_before_the_model_is_loaded(self):
        common = ("compare", "--prompt", "p", "--subject", "red.png", "--model", "nowhere/at-all")
        refused(*common, "--stages", "mild", words=("mild", "paper", "free", "faithful"))
        refused(*common, "--out", "a.jpg", words=("a.jpg", ".png"))
        refused(*common, "--seed", str(2**64), words=("--seed",))
        refused(*common, "--guidance-scale", "inf", words=("--guidance-scale inf", "finite"))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--quantization", "int4"], ("quantization='int4'", "none, int8, fp8, nf4")),
            (["--offload", "disk"], ("offload='disk'", "none, model, group, sequential")),
            (["--attention-backend", "telepathy"], ("attention_backend='telepathy'", "native")),
        ],
        ids=lambda value: " ".join(value),
    )
    @pytest.mark.parametrize("command", [("generate", "--prompt", "p"), ("encode", "--subject", "red.png")])
    def test_how_it_is_loaded(self, model: str, command: tuple[str, ...], arguments: list[str], words: tuple[str, ...]):
        refused(*command, "--model", model, *arguments, words=words)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--stages", "mild"], ("mild", "paper", "free", "faithful")),
            (["--size", "70"], ("70x70", "64x64", "80x80")),
            (["--subject", "red.png"] * 9, ("9 references", "at most 3")),
            (["--prompt", " "], ("prompt", "empty")),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_refused(self, model: str, arguments: list[str], words: tuple[str, ...]):
        refused("generate", "--prompt", "p", "--model", model, *arguments, words=words)

    def test_no_such_model(self):
        refused("generate", "--prompt", "p", "--model", "maxi", words=("'maxi'", "mini"))

    def test_truncated_model(self, model: str, tmp_path: Path):
        shutil.copytree(model, broken := tmp_path / "broken")
        file = next((broken / "transformer").glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:1000])
        refused("generate", "--prompt", "p", "--model", str(broken), words=("broken", "cannot be loaded"))


class TestDtype:
    """Its name on the command line => the torch.dtype that loading takes."""

    def test_of_the_weights(self, model: str):
        assert open_model(model).transformer.dtype == torch.float32
        assert open_model(model, dtype="bfloat16").transformer.dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("command", "opener", "opened"),
        [
            (("compare", "--prompt", "p", "--subject", "red.png"), "subjectgen.cli.compare.open_model", "float16"),
            (("reason", "--prompt", "p"), "subjectgen.cli.reason.open_model", "float16"),
            (("batch", "jobs.jsonl", "--out", "pictures"), "subjectgen.cli.batch.show_opening", torch.float16),
            (("serve", "--port", "0"), "subjectgen.cli.serve.show_opening", torch.float16),
            (("web",), "subjectgen.web.studio.open_studio", torch.float16),
        ],
    )
    def test_reaches_what_opens_a_model(self, monkeypatch: pytest.MonkeyPatch, command, opener: str, opened: Any):
        def opening(*given: Any, **options: Any) -> None:
            assert opened in (options.get("dtype"), given[-1])
            raise ValueError("as asked")

        if command[0] == "web":
            pytest.importorskip("gradio")
        Path("jobs.jsonl").write_text('{"prompt": "p"}\n')
        monkeypatch.setattr(opener, opening)
        assert "as asked" in run(*command, "--dtype", "float16", code=2)


class TestTrainAndEvaluate:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        stand_in = types.ModuleType("subjectgen.train.mini")
        stand_in.train = lambda *given, **options: calls.append({"given": given, **options})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "subjectgen.train.mini", stand_in)
        return calls

    def test_train(self, calls: list[dict[str, Any]]):
        run("train", "mini", "--phase", "vae", "--out", "runs/a", "--minutes", "2.5", "--resume",
            "--cutouts", "animals", "--batch-size", "4", "--compile", "--init-from", "earlier",
            "--seed", "3")  # fmt: skip
        budget = {"minutes": 2.5, "steps": None, "resume": True, "compile": True, "start": Path("earlier"), "seed": 3}
        assert calls == [
            {"given": (), "phase": "vae", "out": Path("runs/a"), "cutouts": Path("animals"), "batch_size": 4, **budget}
        ]

    def test_the_functions_take_what_is_passed(self):
        """The stand-in above hides a change of the real function; its signature does not."""
        from subjectgen.train.mini import train

        passed = {"phase", "out", "minutes", "steps", "resume", "cutouts", "batch_size", "compile", "start", "seed"}
        assert passed <= inspect.signature(train).parameters.keys()

    @pytest.mark.parametrize("budget", [[], ["--minutes", "1", "--steps", "2"]])
    def test_train_needs_one_budget(self, calls: list[dict[str, Any]], budget: list[str]):
        refused("train", "mini", "--phase", "vae", *budget, words=("exactly one budget",))
        assert not calls


class TestEvaluate:
    @pytest.fixture
    def done(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What was to be evaluated: benchmark, folder, order, pipeline."""
        done: list[Any] = []
        monkeypatch.setattr("subjectgen.evaluate.run.evaluate", lambda *given: done.extend(given))
        return done

    @pytest.fixture
    def cutouts(self, tmp_path: Path) -> Path:
        return cutout_folder(tmp_path / "animals", seen=1, unseen=60)

    def test_emoji(self, done: list[Any], painter: Painter, cutouts: Path):
        run(
            "evaluate", "emoji", "--num-prompts", "4", "--out", "sheet", "--cutouts", str(cutouts), "--offload", "model"
        )
        benchmark, out, order, open_pipe = done
        assert [case.part for case in benchmark.cases[::2]] == ["one", "one", "wordings", "two", "three", "copying"]
        assert (out, order.phase, order.num_seeds, order.settings.batch_size) == (Path("sheet"), "all", 4, 20)
        assert not painter.opened
        assert open_pipe() is painter and painter.opened[0]["offload"] == "model"

    def test_settings_are_chosen_on_trained_subjects(self, done: list[Any], tmp_path: Path):
        folder = cutout_folder(tmp_path / "animals", seen=60, unseen=60)
        run("evaluate", "emoji", "--cutouts", str(folder), "--num-prompts", "2", "--seen", "--guidance-scale", "3")
        benchmark, _, order, _ = done
        assert not any(map(is_unseen, benchmark.renderer.names)) and order.settings.guidance_scale == 3

    def test_reasoning(self, monkeypatch: pytest.MonkeyPatch, painter: Painter, cutouts: Path):
        done: list[Any] = []
        monkeypatch.setattr("subjectgen.evaluate.reasoning_run.evaluate", lambda *given: done.extend(given))
        run("evaluate", "reasoning", "--cutouts", str(cutouts), "--num-prompts", "1", "--num-riddles", "1", "--adapter",
            "further", "--offload", "model", "--quantization", "int8", "--guidance-scale", "3")  # fmt: skip
        *_, order, open_pipe = done
        assert (order.settings.guidance_scale, order.settings.batch_size) == (3, 20) and open_pipe() is painter
        assert painter.opened[0].items() >= {"adapter": "further", "offload": "model", "quantization": "int8"}.items()

    def test_a_shard_of_a_part(self, done: list[Any], painter: Painter, cutouts: Path):
        run("evaluate", "emoji", "--cutouts", str(cutouts), "--part", "two", "--num-prompts", "4", "--num-seeds", "1",
            "--phase", "paint", "--shard", "2/3", "--stages", "free", "--steps", "5", "--size", "64")  # fmt: skip
        benchmark, _, order, _ = done
        assert {case.part for case in benchmark.cases} == {"two"} and len(benchmark.cases) == 2
        assert (order.shard, order.stages, order.num_seeds) == (Shard(index=2, count=3), ["free"], 1)
        assert (order.settings.size, order.settings.steps) == ((64, 64), 5)

    def test_dreambench(self, done: list[Any], painter: Painter, tmp_path: Path):
        """Painting needs no metric."""
        data = photograph_folder(tmp_path / "data")
        run("evaluate", "dreambench", "--data", str(data), "--phase", "paint", "--num-prompts", "5")
        benchmark, out, order, _ = done
        assert [case.part for case in benchmark.cases] == ["one"] * 5 + ["two"] * 5 and not benchmark.figures
        assert (out, order.model, order.num_seeds) == (Path("out/dreambench"), "qwen-image-2.1", 4)

    def test_metrics_reach_the_device_when_they_are_asked(
        self, done: list[Any], painter: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """What they lack is told before painting; where nothing is painted they are there at once."""
        devices: list[str] = []

        class Eyes:
            names, checkpoints = ("dino_i",), ("eyes@1",)

            def __call__(self, pictures: Any, *_: Any) -> list[dict[str, float]]:
                return [{"dino_i": 0.5} for _ in pictures]

        def opened(device: Any, **_: Any) -> Any:
            devices.append(str(device))
            if (tmp_path / "lost").exists():
                raise WeightsError("DINO is not on this machine")
            return Eyes()

        monkeypatch.setattr("subjectgen.evaluate.metrics.similarity.DinoSimilarity.from_pretrained", opened)
        monkeypatch.setattr("subjectgen.placement.best_device", lambda: "accelerator")
        dreambench = ("evaluate", "dreambench", "--data", str(photograph_folder(tmp_path / "data")), "--metric", "dino")
        run(*dreambench, "--num-prompts", "1")
        benchmark = done[0]
        assert devices == ["cpu"] and list(benchmark.scorers) == ["dino_i by eyes@1"]
        for _ in range(2):
            (score,) = benchmark.scorers.values()
            assert score(benchmark.cases[0], [Image.new("RGB", (8, 8))])[0].scores == {"dino_i": 0.5}
        assert devices == ["cpu", "accelerator"]
        run(*dreambench, "--num-prompts", "1", "--phase", "score")
        assert devices[2:] == ["accelerator"]
        (tmp_path / "lost").touch()
        refused(*dreambench, words=("DINO is not on this machine",))
        assert not painter.opened

    def test_refused(self, painter: Painter, cutouts: Path, tmp_path: Path):
        refused("evaluate", "emoji", "--shard", "2", words=("--shard '2'", "expected i/n"))
        refused("evaluate", "emoji", "--shard", "1/2", words=("--phase paint",))
        refused("evaluate", "emoji", "--cutouts", str(cutouts), "--phase", "score", "--out", str(tmp_path / "none"),
                words=("run.json", "--images"))  # fmt: skip
        dreambench = ("evaluate", "dreambench")
        refused(*dreambench, "--data", str(tmp_path), words=("backpack has 0 of 6", "google/dreambooth"))
        refused(*dreambench, words=("--data was not given", "google/dreambooth"))
        refused(
            *dreambench, "--phase", "paint", "--metric", "dino", words=("--metric with --phase paint", "is scored here")
        )
        refused(*dreambench, "--metric", "dion", words=("'dion' is no metric",))
        refused(*dreambench, "--metric", "dino", "--metric", "dino=folder", words=("--metric dino is given more than",))
        refused(*dreambench, "--judge-model", "eyes", words=("--judge-model", "without --metric judge"))
        refused(
            *dreambench, "--metric", "judge", "--judge-scale", "taste", words=("--judge-scale 'taste'", "omnicontext")
        )
        refused(*dreambench, "--metric", "judge=folder", "--judge-model", "eyes", words=("judge=folder", "one judge"))
        for metric, words in (("taste", ("'taste' is no metric", "dino")), ("pose", ("pose=FOLDER",))):
            with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
                open_metrics([metric], JudgeOptions())
        with pytest.raises(ValueError, match="without --judge-model"):
            JudgeOptions(url="http://127.0.0.1:1")
        assert not painter.opened

    @pytest.mark.parametrize(
        "given",
        [
            ("--stages", "free"), ("--model", "mini"), ("--steps", "3"), ("--size", "64"), ("--adapter", "nope"),
            ("--quantization", "none"), ("--offload", "none"), ("--batch-size", "20"), ("--compile",),
            ("--guidance-scale", "3"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("done_by", [("--phase", "score"), ("--phase", "cases"), ("--images", "painted")])
    def test_an_option_that_is_not_read(self, painter: Painter, given: tuple[str, ...], done_by: tuple[str, ...]):
        """Even where it is the default: what was painted need not have been."""
        refused("evaluate", "emoji", *done_by, *given, words=(f"{given[0]} with --phase", "nothing is painted here"))
        assert not painter.opened

    def test_an_option_that_painting_does_not_read(self):
        refused(
            "evaluate", "emoji", "--phase", "paint", "--allow-missing", words=("--allow-missing with --phase paint",)
        )
        refused("evaluate", "reasoning", "--phase", "score", "--model", "x", words=("--model with --phase score",))


class TestInfo:
    def test_versions_devices_backends(self):
        output = run("info")
        for word in ("torch", torch.__version__.partition("+")[0], "cpu", "native", "_native_math"):
            assert word in output
        assert "npu" not in output

    def test_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (model := tmp_path / "weights" / "tiny").mkdir(parents=True)
        (model / "model_index.json").write_text("{}")
        (entry,) = write_manifest(tmp_path / "weights", {"tiny": ("Apache-2.0", "made here")})
        monkeypatch.setattr("subjectgen.weights.find_folder", lambda name: tmp_path / name)
        output = run("info")
        assert "as shipped" in output and "Apache-2.0" in output
        assert entry.sha256[:8] in output
        (model / "model_index.json").write_text("{ }")
        output = re.sub(r"[\s│]+", " ", run("info"))
        assert "tiny/model_index.json is altered" in output
        assert re.findall(r"(\w+) as shipped", output) == ["not"]

    def test_no_weights(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setattr("subjectgen.weights.PACKAGE", tmp_path / "subjectgen")
        assert "reinstall" in run("info")

    def test_what_fits(self, monkeypatch: pytest.MonkeyPatch):
        """A GPU of 24 GiB, and 16-bit weights of 20 billion and more: something has to leave."""
        from subjectgen.cli import fits

        monkeypatch.setattr(fits, "this_machine", lambda: fits.Machine("cuda", 24 * 2**30, 128 * 2**30))
        rows = fits.rows(fits.this_machine(), ["mini", "flux-internvl3"], references=2, size=None)
        assert [(row[0], row[1]) for row in rows[::4]] == [
            ("mini, 128 px", "none"),
            ("flux-internvl3, 1024 px", "none"),
        ]
        assert "fits (fastest)" in rows[0][2]
        assert "lacks" in rows[4][2]
        assert sum("fastest" in cell for row in rows[4:] for cell in row) == 1
        assert rows[7][3:] == ("-", "-")  # nothing quantised goes layer by layer

    def test_a_model_that_cannot_take_what_is_asked_says_so_in_its_row(self):
        from subjectgen.cli import fits

        machine = fits.Machine("cuda", 80 * 2**30, 128 * 2**30)
        first, *others = fits.rows(machine, ["mini", "flux-internvl3"], references=4, size=None)
        assert first == ("mini", "", "4 references: expected 0 to 3, which this model takes", "", "")
        assert others[0][0] == "flux-internvl3, 1024 px" and "GiB" in others[0][2]
        refused("info", "--model", "mini", "--references", "4", words=("4 references: expected 0 to 3",))

    def test_the_device_is_that_of_generate(self, monkeypatch: pytest.MonkeyPatch):
        """Memory of Apple's is that of the CPU, Intel's GPUs have their own."""
        from types import SimpleNamespace

        import torch

        from subjectgen.cli import fits

        card = SimpleNamespace(mem_get_info=lambda: (7 * 2**30, 8 * 2**30))
        monkeypatch.setattr(torch, "get_device_module", lambda device: card)
        told = {}
        for name in ("mps", "xpu", "cpu"):
            monkeypatch.setattr("subjectgen.placement.best_device", lambda name=name: torch.device(name))
            told[name] = fits.this_machine()
        assert [(each.device, each.has_accelerator) for each in told.values()] == [
            ("mps", True),
            ("xpu", True),
            ("cpu", False),
        ]
        assert told["mps"].free == told["mps"].ram and told["xpu"].free == 7 * 2**30
        assert "GiB free, shared with the CPU" in str(told["mps"]) and "no GPU" in str(told["cpu"])

    def test_offloaded_networks_need_ram(self):
        from subjectgen.cli.fits import Machine
        from subjectgen.estimate.result import Memory

        memory = Memory(
            weight_bytes={"mllm": 50}, activation_bytes={"encode": 10}, resident_bytes={"model": {"encode": 50}}
        )
        assert Machine("cuda", free=70, ram=50).lacks(memory, "model") <= 0
        assert Machine("cuda", free=70, ram=30).lacks(memory, "model") == 20
        assert Machine("cuda", free=50, ram=50).lacks(memory, "model") == 16

    def test_what_one_model_needs(self):
        output = run("info", "--model", "mini", "--references", "1", "--size", "256")
        assert "mini, 256 px" in output and "fits" in output
        assert "flux" not in output and "Versions" not in output

    def test_refuses_an_unknown_model(self):
        refused("info", "--model", "maxi", words=("--model 'maxi'", "flux-internvl3, mini"))


class TestParts:
    def test_numbered(self):
        assert numbered(Path("a/b.png"), 1) == [Path("a/b.png")]
        assert numbered(Path("a/b.c.png"), 2) == [Path("a/b.c-1.png"), Path("a/b.c-2.png")]

    @pytest.mark.parametrize(
        ("text", "size"), [(None, (None, None)), ("64", (64, 64)), ("160x128", (160, 128)), ("160X128", (160, 128))]
    )
    def test_parse_size(self, text: str | None, size: tuple[int | None, int | None]):
        assert parse_size(text) == size

    def test_commands_stay_light(self):
        """Parsing must not pull in what only running needs; the package's own imports are not at issue here."""
        script = (
            "import sys, types; package = types.ModuleType('subjectgen'); package.__path__ = [sys.argv[1]];"
            "sys.modules['subjectgen'] = package; import subjectgen.cli;"
            "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if name in sys.modules])"
        )
        source = Path(__file__).parent.parent / "subjectgen"
        ended = subprocess.run([sys.executable, "-c", script, source], capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == "[]"
