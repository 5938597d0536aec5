"""The training loop and the phases: nothing is lost, nothing is half-written, what is learned is the method."""

import csv
import json
import os
import signal
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_subjects import cutout_folder
from tiny_training import Sines, flat, tiny_run
from torch import nn
from typer.testing import CliRunner

from subjectgen.cli import app
from subjectgen.data.batches import batch_of, generator_of
from subjectgen.data.render import Renderer
from subjectgen.data.subjects import load_subjects
from subjectgen.data.world import SIDE, Ground, Placement, Scene
from subjectgen.evaluate.sheet import picture_of
from subjectgen.files import whole_folder
from subjectgen.models.vae import latents_from_pixels
from subjectgen.train import checkpoint
from subjectgen.train.checkpoint import NAME
from subjectgen.train.loop import Budget, Schedule, run
from subjectgen.train.mini import STARTS, origins, train
from subjectgen.train.optimizer import Optimizers, is_hidden_matrix
from subjectgen.train.subject import DRAWS, SubjectPhase, box_weights, kept_conditions, shifted
from subjectgen.train.vae import VaePhase
from subjectgen.weights import WeightsError

SCHEDULE = Schedule(rate=1e-2, warmup=5)
OFTEN, NEVER = {"checkpoint_minutes": 0.0, "sheet_minutes": 1e9}, {"checkpoint_minutes": 1e9, "sheet_minutes": 1e9}


class Killed(BaseException):
    """Stands for a death that nothing can catch."""


def at(step, act):
    return lambda now: act() if now == step else None


def die():
    raise Killed


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def train_sines(out, steps=30, before=lambda step: None, **options):
    phase = Sines(before)
    run(phase, out, Budget(steps=steps), SCHEDULE, **{**NEVER, **options})
    return phase


def saved(out, name="sines"):
    return load_file(out / name / NAME)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbed, and its phase."""
    out = tmp_path_factory.mktemp("straight")
    return out, train_sines(out)


class TestPlans:
    def test_budget(self):
        assert Budget(steps=200).progress(50, 1e9) == 0.25
        assert Budget(minutes=2.0).progress(10**9, 60.0) == 0.5
        assert Budget(steps=200, minutes=2.0).progress(50, 60.0) == 0.5
        assert Budget(steps=200).progress(300, 0.0) == 1

    @pytest.mark.parametrize("budget", [{}, {"steps": 0}, {"minutes": 0.0}, {"steps": 5, "minutes": -1.0}])
    def test_a_budget_must_end(self, budget):
        with pytest.raises(ValueError, match="budget"):
            Budget(**budget)

    def test_schedule(self):
        schedule = Schedule(rate=0.5, warmup=10, cooldown=0.4)
        assert schedule.at(0, 0.0) == pytest.approx(0.05)
        assert schedule.at(9, 0.1) == schedule.at(500, 0.6) == 0.5
        assert schedule.at(500, 0.8) == pytest.approx(0.25)
        assert schedule.at(500, 0.99) == pytest.approx(0.0125)

    @pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"warmup": 0}, {"cooldown": 0.0}, {"cooldown": 1.5}])
    def test_schedules_that_make_no_sense(self, wrong):
        with pytest.raises(ValueError, match="expected rate > 0"):
            Schedule(**{"rate": 0.1, **wrong})


class TestLoop:
    def test_it_learns(self, tmp_path):
        losses = train_sines(tmp_path, steps=150).losses
        assert sum(losses[-10:]) < sum(losses[:10]) / 5

    def test_ctrl_c_is_kept_and_resumes_bit_exactly(self, straight, tmp_path):
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=r"step 12 .*--resume"):
            train_sines(tmp_path, before=at(11, press_ctrl_c))
        assert signal.getsignal(signal.SIGINT) is handler
        assert {file.name for file in (tmp_path / "sines").iterdir()} == {NAME, "losses.csv"}
        phase = train_sines(tmp_path, resume=True)
        assert len(phase.losses) == 30 - 12
        assert phase.losses == straight[1].losses[12:]
        assert same(saved(tmp_path), saved(straight[0]))

    def test_a_second_ctrl_c_acts_at_once(self, straight, tmp_path):
        def twice():
            press_ctrl_c()
            press_ctrl_c()

        with pytest.raises(KeyboardInterrupt):
            train_sines(tmp_path, before=at(11, twice), **OFTEN)
        train_sines(tmp_path, resume=True)
        assert same(saved(tmp_path), saved(straight[0]))

    @pytest.mark.parametrize(("options", "redone"), [(OFTEN, 0), (NEVER, 17)])
    def test_a_kill_loses_what_came_after_the_checkpoint_only(self, straight, tmp_path, options, redone):
        with pytest.raises(Killed):
            train_sines(tmp_path, before=at(17, die), **options)
        phase = train_sines(tmp_path, resume=True)
        assert len(phase.losses) == 30 - 17 + redone
        assert same(saved(tmp_path), saved(straight[0]))

    def test_a_kill_while_the_checkpoint_is_written(self, straight, tmp_path, monkeypatch):
        """The one before is still there; what was left unfinished goes away."""
        calls = []

        def save_half(tensors, path, metadata):
            calls.append(path)
            if len(calls) == 8:
                path.write_bytes(b"half")
                os.link(path, tmp_path / "sines" / ".left.1.part")  # a real kill cleans nothing up
                die()
            return save_file(tensors, path, metadata)

        save_file = checkpoint.save_file
        monkeypatch.setattr(checkpoint, "save_file", save_half)
        with pytest.raises(Killed):
            train_sines(tmp_path, **OFTEN)
        phase = train_sines(tmp_path, resume=True)
        assert len(phase.losses) == 30 - 7
        assert same(saved(tmp_path), saved(straight[0]))
        assert not list((tmp_path / "sines").glob(".*"))

    def test_a_kill_while_the_component_is_written(self, tmp_path):
        class Dying(Sines):
            def export(self, folder):
                super().export(folder)
                die()

        with pytest.raises(Killed):
            run(Dying(), tmp_path, Budget(steps=3), SCHEDULE)
        assert not (tmp_path / "sines" / "export").exists()
        train_sines(tmp_path, steps=3, resume=True)
        assert (tmp_path / "sines" / "export" / "weights.safetensors").exists()

    def test_a_run_is_not_overwritten(self, straight):
        before = saved(straight[0])
        with pytest.raises(ValueError, match=r"holds a run: pass --resume"):
            train_sines(straight[0])
        assert same(saved(straight[0]), before)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"accumulate": 2}, r"with --accumulate 1 \(this is 2\): expected the same\. Give it again"),
            ({"facts": {"seed": 1, "data": "a"}}, r"with seed 0 \(this is 1\): expected"),
            ({"facts": {"seed": 0, "data": "b"}}, r"with data a \(this is b\): expected"),
            ({"facts": {"seed": 0}}, r"with data a \(this is None\): expected"),
            ({"facts": {"seed": 0, "data": "a", "start": "c"}}, r"with start None \(this is c\): expected"),
            ({"facts": {"seed": 1, "data": "b"}}, r"with seed 0 \(this is 1\), data a \(this is b\): expected"),
        ],
    )
    def test_a_run_of_something_else_is_not_gone_on_with(self, tmp_path, change, message):
        facts = {"seed": 0, "data": "a"}
        train_sines(tmp_path, steps=3, facts=facts)
        before = saved(tmp_path)
        with pytest.raises(ValueError, match=message):
            train_sines(tmp_path, steps=6, resume=True, **{"facts": facts, **change})
        assert same(saved(tmp_path), before)
        assert len(train_sines(tmp_path, steps=6, resume=True, facts=facts).losses) == 3

    def test_another_rate_or_as_many_pictures_in_other_batches_are_another_run(self, tmp_path):
        train_sines(tmp_path, steps=3, accumulate=2)
        with pytest.raises(ValueError, match=r"the rate 0\.01 \(this is 0\.02\): expected"):
            run(Sines(), tmp_path, Budget(steps=6), replace(SCHEDULE, rate=2e-2), accumulate=2, resume=True)
        whole = Sines()
        whole.batch_size = 16
        with pytest.raises(ValueError, match=r"--batch-size 8 \(this is 16\), --accumulate 2 \(this is 1\): expected"):
            run(whole, tmp_path, Budget(steps=6), SCHEDULE, resume=True)

    def test_a_checkpoint_of_an_earlier_version_is_gone_on_with_and_says_so(self, straight, tmp_path):
        """It knew its pictures a step, and neither facts nor a hash."""
        train_sines(tmp_path, steps=12)
        file = tmp_path / "sines" / NAME
        with safe_open(file, framework="pt") as opened:
            state = {"pictures": 8, **json.loads(opened.metadata()["state"])}
            metadata = {"state": json.dumps(state), "ema_steps": opened.metadata()["ema_steps"]}
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}  # not the file they are read from
        save_file(tensors, file, metadata)
        with pytest.warns(UserWarning, match=r"earlier version.*cannot be checked"):
            phase = train_sines(tmp_path, steps=13, resume=True)
        assert len(phase.losses) == 1
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*earlier version")  # what it saves can be checked
            train_sines(tmp_path, steps=14, resume=True)

    def test_a_larger_budget_goes_on(self, tmp_path):
        train_sines(tmp_path, steps=5)
        assert len(train_sines(tmp_path, steps=8, resume=True).losses) == 3

    def test_ema_is_what_is_exported(self, straight):
        """The decay warms up as 1 - (1 + t)^-.75, t counted from the second step."""
        out, phase = straight
        states = [*phase.weights[1:], flat(phase.model)]
        average = states[0]
        for t, weights in enumerate(states[1:], start=1):
            decay = min(0.999, 1 - (1 + t) ** -0.75)
            average = decay * average + (1 - decay) * weights
        exported = load_file(out / "sines" / "export" / "weights.safetensors")["weights"]
        torch.testing.assert_close(exported, average, atol=1e-6, rtol=0)
        assert not torch.allclose(exported, flat(phase.model), atol=1e-3)
        kept = saved(out)
        raw = torch.cat([kept[f"model.{name}"].flatten() for name, _ in phase.model.named_parameters()])
        assert torch.equal(flat(phase.model), raw)

    def test_a_gradient_that_is_not_finite(self, tmp_path):
        class Exploding(Sines):
            def loss(self, step):
                loss, figures = super().loss(step)
                return (loss * float("inf") if step == 3 else loss), figures

        phase = Exploding()
        with pytest.raises(ValueError, match=r"gradient of step 3 is (nan|inf)"):
            run(phase, tmp_path, Budget(steps=6), SCHEDULE, **OFTEN)
        assert torch.equal(flat(phase.model), phase.weights[3])
        assert all(tensor.isfinite().all() for tensor in saved(tmp_path).values())

    def test_losses(self, tmp_path):
        """Means over 20 steps; what a kill undid is not told twice."""
        with pytest.raises(Killed):
            train_sines(tmp_path, steps=50, before=at(44, die))
        losses = train_sines(tmp_path, steps=50, resume=True).losses
        with (tmp_path / "sines" / "losses.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == [20, 40, 50]
        assert float(rows[1]["loss"]) == pytest.approx(sum(losses[20:40]) / 20, abs=1e-6)
        assert float(rows[1]["double"]) == pytest.approx(2 * float(rows[1]["loss"]), abs=2e-6)
        assert {"seconds", "rate", "gradient"} <= rows[0].keys()

    def test_sheets(self, tmp_path):
        train_sines(tmp_path, steps=3, sheet_minutes=0.0)
        assert sorted(file.name for file in (tmp_path / "sines").glob("*.png")) == [
            f"sheet-000000{step}.png" for step in (1, 2, 3)
        ]

    def test_checkpoints_that_do_not_fit(self, tmp_path):
        class Wider(Sines):
            def __init__(self):
                super().__init__()
                self.model[4] = nn.Linear(20, 4)

        train_sines(tmp_path, steps=2)
        with pytest.raises(WeightsError, match=r"2 parameters differ, the first is 4\.bias"):
            run(Wider(), tmp_path, Budget(steps=4), SCHEDULE, resume=True)
        file = tmp_path / "sines" / NAME
        whole = file.read_bytes()
        middle = len(whole) // 2
        inverted = bytes(255 - byte for byte in whole[middle : middle + 400])
        file.write_bytes(whole[:middle] + inverted + whole[middle + 400 :])
        with pytest.raises(WeightsError, match=r"is altered: sha256 .* expected .*choose another --out"):
            train_sines(tmp_path, resume=True)
        file.write_bytes(whole.replace(b'\\"step\\": 2', b'\\"step\\": 1'))
        with pytest.raises(WeightsError, match="is altered"):
            train_sines(tmp_path, resume=True)
        file.write_bytes(whole[:200])
        with pytest.raises(WeightsError, match="corrupt or cut off"):
            train_sines(tmp_path, resume=True)


class TestFiles:
    def test_a_folder_is_replaced_whole(self, tmp_path):
        for text in ("old", "new"):
            with whole_folder(tmp_path / "a") as folder:
                (folder / text).write_text(text)
        assert [file.name for file in tmp_path.rglob("*")] == ["a", "new"]

    def test_a_folder_stays_when_writing_fails(self, tmp_path):
        with whole_folder(tmp_path / "a") as folder:
            (folder / "old").touch()
        with pytest.raises(Killed), whole_folder(tmp_path / "a") as folder:
            (folder / "new").touch()
            die()
        assert [file.name for file in tmp_path.rglob("*")] == ["a", "old"]


class TestOptimizers:
    def test_round_trip(self):
        def descend(model, optimizers, steps):
            for step in steps:
                x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
                model(x).square().mean().backward()
                optimizers.step(1e-2)

        first, second = Sines().model, Sines().model
        one, other = Optimizers(first), Optimizers(second)
        descend(first, one, range(3))
        second.load_state_dict(first.state_dict())
        other.load_tensors({name: tensor.clone() for name, tensor in one.tensors().items()})
        descend(first, one, range(3, 6))
        descend(second, other, range(3, 6))
        assert torch.equal(flat(first), flat(second))
        fresh = Sines().model
        descend(fresh, Optimizers(fresh), range(3))
        fresh_optimizers = Optimizers(fresh)
        descend(fresh, fresh_optimizers, range(3, 6))
        assert not torch.equal(flat(first), flat(fresh))  # the state matters

    def test_muon_takes_hidden_matrices(self):
        weight = torch.zeros(32, 32)
        assert is_hidden_matrix("blocks.0.to_q.weight", weight)
        assert not is_hidden_matrix("blocks.0.to_q.bias", weight[0])
        assert not is_hidden_matrix("model.embed_tokens.weight", weight)
        assert not is_hidden_matrix("proj_out.weight", weight)
        assert not is_hidden_matrix("thin.weight", weight[:8])
        assert not is_hidden_matrix("convolution.weight", torch.zeros(32, 32, 3, 3))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=6, unseen=0)
    return load_subjects(cutouts=folder).split(unseen=False)


@pytest.fixture(scope="module")
def renderer(subjects):
    return Renderer(subjects)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))


class Unpictured(SubjectPhase):
    """Samples take longer than the steps of these tests."""

    def sheet(self):
        return Image.new("RGB", (8, 8))


class OnePicture(Unpictured):
    """The same picture at every step, at the same noise levels."""

    losses: ClassVar[list[float]] = []

    def loss(self, step):
        loss, figures = super().loss(0)
        self.losses.append(loss.item())
        return loss, figures


class Stopped(Unpictured):
    def loss(self, step):
        if step == 1:
            press_ctrl_c()
        return super().loss(step)


class TestSubjectPhase:
    def test_it_overfits_one_picture(self, renderer, begun, tmp_path):
        phase = OnePicture(renderer, begun, "stage2", batch_size=1)
        run(phase, tmp_path, Budget(steps=50), Schedule(rate=1e-2, warmup=5), **NEVER)
        assert sum(phase.losses[-5:]) < sum(phase.losses[:5]) / 5, phase.losses[::5]

    def test_it_resumes_bit_exactly(self, renderer, begun, tmp_path):
        def go(kind, out, **options):
            run(kind(renderer, begun, "stage2", batch_size=2), out, Budget(steps=3), SCHEDULE, **NEVER, **options)

        go(Unpictured, tmp_path / "straight")
        with pytest.raises(KeyboardInterrupt):
            go(Stopped, tmp_path / "cut")
        go(Unpictured, tmp_path / "cut", resume=True)
        assert same(saved(tmp_path / "cut", "stage2"), saved(tmp_path / "straight", "stage2"))

    def test_samples(self, renderer, begun):
        """References, truths and paintings, eight each."""
        sheet = SubjectPhase(renderer, begun, "stage1").sheet()
        assert sheet.size == (8 * SIDE, 3 * SIDE)
        example = batch_of(renderer, 1, 0, 8)
        assert sheet.crop((0, SIDE, SIDE, 2 * SIDE)).tobytes() == picture_of(example.target[0]).tobytes()

    def test_the_target_is_noise_minus_image(self, renderer, begun):
        """A net that knows the image: x = (1 - sigma) image + sigma noise, so the velocity is (x - image) / sigma."""
        phase = SubjectPhase(renderer, begun, "stage2", batch_size=3)
        batch = batch_of(renderer, 0, 0, 3)
        with torch.autocast("cpu", torch.bfloat16):
            image = torch.cat([phase.denoiser.pack(phase.latents(batch.target))] * DRAWS)

        def knowing(noisy, sigma, *_):
            return (noisy - image) / sigma[:, None, None]

        phase.denoiser.denoise_with_kv = knowing
        loss, _ = phase.velocity_loss(batch, generator_of(0, 0, renderer.device))
        assert loss < 1e-4
        phase.denoiser.denoise_with_kv = lambda *given: -knowing(*given)
        assert phase.velocity_loss(batch, generator_of(0, 0, renderer.device))[0] > 1

    def test_dropped_conditions_have_no_influence(self, renderer, begun):
        phase = SubjectPhase(renderer, begun, "stage2", batch_size=2)
        batch, other = (batch_of(renderer, 0, index, 2, count=1) for index in range(2))
        noise = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))

        def painted(batch, *keep):
            keep = (torch.tensor(kind) for kind in keep)
            kept, seen, pooled = phase.conditions(batch, *keep)
            return phase.denoiser.denoise_with_kv(noise, torch.full((2,), 0.7), pooled, (8, 8), kept, seen)

        with torch.no_grad():
            nothing = [painted(each, [True, False], [True, False]) for each in (batch, other)]
            everything = [painted(each, [True, True], [True, True]) for each in (batch, other)]
        torch.testing.assert_close(nothing[0][1], nothing[1][1], atol=1e-5, rtol=0)
        assert (nothing[0][0] - nothing[1][0]).abs().max() > 1e-4
        assert (everything[0] - everything[1]).abs().amax((1, 2)).min() > 1e-4

    def test_shares_of_dropped_conditions(self):
        def kept(name):
            return torch.stack(kept_conditions(name, 20000, torch.Generator().manual_seed(0)))

        semantic, identity = kept("stage1")
        assert not identity.any() and abs(semantic.float().mean() - 0.95) < 0.01
        semantic, identity = kept("stage2")
        shares = [(semantic & identity), (semantic & ~identity), (~semantic & identity), (~semantic & ~identity)]
        for share, expected in zip(shares, (0.75, 0.1, 0.1, 0.05), strict=True):
            assert abs(share.float().mean() - expected) < 0.01

    def test_weights_of_boxes(self):
        """A small subject at the top left covers pixels 4..44: 12 of token 0's 16, token 1, 12 of token 2's."""
        (weights,) = box_weights(
            [Scene(ground=Ground(colour="red"), placements=(Placement(place="top left", size="small"),))]
        )
        covered = torch.zeros(8)
        covered[:3] = torch.tensor([0.75, 1, 0.75])
        torch.testing.assert_close(weights.view(8, 8), 1 + 3 * covered[:, None] * covered[None])

    def test_shift(self):
        assert shifted(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, 1.25 / 1.75, 1])


class TestVaePhase:
    def test_exported_latents_have_deviation_one(self, renderer, tmp_path):
        phase = VaePhase(renderer, batch_size=2)
        run(phase, tmp_path, Budget(steps=2), Schedule(rate=1e-3), **NEVER)
        vae = type(phase.model).from_pretrained(tmp_path / "vae" / "export")
        pixels = torch.cat([batch_of(renderer, 1, index, 4).target for index in range(4)])
        with torch.no_grad():
            assert latents_from_pixels(vae, pixels).square().mean().sqrt() == pytest.approx(1, abs=0.15)


class TestTrain:
    def test_ctrl_c_on_the_command_line(self, tmp_path, monkeypatch):
        def stopped(**_):
            raise KeyboardInterrupt("step 3 is saved in runs/mini/vae; --resume goes on with it")

        monkeypatch.setattr("subjectgen.train.mini.train", stopped)
        result = CliRunner().invoke(app, ["train", "mini", "--phase", "vae", "--steps", "5"])
        assert result.exit_code == 130 and "Stopped. step 3 is saved" in result.output

    def test_a_seed_of_the_command_line(self, monkeypatch):
        told: list = []
        monkeypatch.setattr("subjectgen.train.mini.train", lambda **given: told.append(given["seed"]))
        for words in ([], ["--seed", "7"]):
            assert CliRunner().invoke(app, ["train", "mini", "--phase", "vae", "--steps", "5", *words]).exit_code == 0
        assert told == [0, 7]

    def test_compile_is_for_all_that_learns_and_only_when_asked(self, subjects, begun, monkeypatch):
        compiled = []
        monkeypatch.setattr(nn.Module, "compile", lambda network, **how: compiled.append((network, how)))
        monkeypatch.setattr("subjectgen.train.mini.run", lambda phase, *_, **__: phases.append(phase))
        monkeypatch.setattr("subjectgen.train.mini.seen", lambda *_: subjects)
        for phase in ("vae", "sight", "stage1"):
            phases: list = []
            train(phase, begun, steps=1)
            assert not compiled
            train(phase, begun, steps=1, compile=True)
            learned = {id(parameter) for parameter in phases[-1].model.parameters()}
            assert {id(parameter) for network, _ in compiled for parameter in network.parameters()} == learned
            compiled.clear()

    @pytest.mark.parametrize("leads", [True, False])
    def test_only_the_leading_process_puts_the_pipeline_together(self, subjects, begun, monkeypatch, leads):
        """The others are done before it has written its weights."""
        put_together = []
        monkeypatch.setattr("subjectgen.train.mini.run", lambda *_, **__: None)
        monkeypatch.setattr("subjectgen.train.mini.seen", lambda *_: subjects)
        monkeypatch.setattr("subjectgen.train.mini.assemble", lambda out: put_together.append(out) or nn.Module())
        monkeypatch.setattr(nn.Module, "save_pretrained", lambda *_, **__: None, raising=False)
        monkeypatch.setattr("subjectgen.train.mini.Workers", lambda model: SimpleNamespace(leads=leads))
        train("stage2", begun, steps=1)
        assert put_together == [begun] * leads

    def test_a_run_is_of_its_subjects_its_seed_and_the_weights_it_begins_with(self, subjects, begun, monkeypatch):
        """Facts of stage 2, before and after each of them is changed: that one alone is another."""
        noted: list = []
        monkeypatch.setattr("subjectgen.train.mini.run", lambda *_, facts, **__: noted.append(facts))
        monkeypatch.setattr("subjectgen.train.mini.Workers", lambda model: SimpleNamespace(leads=False))
        given = [subjects, subjects, replace(subjects, rgba=255 - subjects.rgba), subjects]
        monkeypatch.setattr("subjectgen.train.mini.seen", lambda *_: given[len(noted)])
        for seed in (0, 0, 0, 1):
            train("stage2", begun, steps=1, seed=seed)
        first, again, recoloured, reseeded = noted
        changed = [{name for name in first if first[name] != other[name]} for other in (again, recoloured, reseeded)]
        assert changed == [set(), {"subjects of sha256"}, {"seed"}]
        assert {name for name in first if "export" in name} == {
            f"{name}/export of sha256" for name in ("vae", "mllm", "stage1")
        }

    @pytest.mark.parametrize(
        ("phase", "start", "expected"),
        [
            ("vae", False, set()),
            ("sight", False, set()),
            ("sight", True, {"--init-from/mllm", "--init-from/processor"}),
            ("mllm", False, {"sight/export"}),
            ("mllm", True, {"--init-from/mllm", "--init-from/processor"}),
            ("stage1", False, {"vae/export", "mllm/export"}),
            ("align", True, {"vae/export", "mllm/export", *(f"--init-from/{name}" for name in STARTS["align"])}),
        ],
    )
    def test_weights_that_a_phase_begins_with(self, tmp_path, phase, start, expected):
        """Those whose change changes what the run is noted to be of."""
        places = {"vae/export", "mllm/export", "sight/export", *(f"--init-from/{each}" for each in STARTS["align"])}
        for place in places:
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "a.safetensors").write_bytes(b"first")
        told = {}
        for place in places:
            before = origins(phase, tmp_path, tmp_path / "--init-from" if start else None)
            (tmp_path / place / "a.safetensors").write_bytes(b"second")
            told[place] = before != origins(phase, tmp_path, tmp_path / "--init-from" if start else None)
        assert {place for place, changed in told.items() if changed} == expected

    def test_resuming_what_is_not_there(self, begun, subjects, monkeypatch):
        """A mistyped --out began anew."""
        monkeypatch.setattr("subjectgen.train.mini.seen", pytest.fail)
        with pytest.raises(FileNotFoundError, match=r"--resume: .*vae.*is not there: .*Leave --resume out"):
            train("vae", begun / "mistyped", steps=1, resume=True)
        assert not (begun / "mistyped").exists()

    def test_a_file_in_the_folder_s_place(self, tmp_path):
        (tmp_path / "file").touch()
        for out in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(NotADirectoryError, match=r"file' is a file: expected a folder.*another --out"):
                train("vae", out, steps=1)

    def test_unknown_phase(self, tmp_path):
        with pytest.raises(ValueError, match=r"'stage3': expected one of vae, sight, mllm, stage1, align, stage2"):
            train("stage3", tmp_path, steps=1)

    def test_phases_in_order(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"train --phase vae .*first"):
            train("stage1", tmp_path, steps=1)

    def test_too_few_subjects(self, tmp_path):
        with pytest.raises(ValueError, match=r"2 subjects .*expected at least 3"):
            train("vae", tmp_path, steps=1, cutouts=cutout_folder(tmp_path / "cutouts", seen=2, unseen=4))
