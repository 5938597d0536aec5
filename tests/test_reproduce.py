"""The paper's tables in small: every row trains, rows differ in what they say, and words follow from figures."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_reproduction import tiny_configuration, tiny_file, tiny_model
from tiny_subjects import cutout_folder
from typer.testing import CliRunner

from subjectgen.cli import app
from subjectgen.data.batches import generator_of
from subjectgen.evaluate import emoji
from subjectgen.evaluate.cases import Shard
from subjectgen.evaluate.intervals import student
from subjectgen.generate.stages import STAGE_PRESETS, Stage
from subjectgen.models.dit.positions import position_features
from subjectgen.reproduce import budget, run
from subjectgen.reproduce.configuration import PAPER, SHIPPED, Part, Sampling, Training, read_configuration
from subjectgen.reproduce.document import (
    command,
    compared,
    introduction,
    results_of,
    rows_of_run,
    scored,
    scores_of,
    section,
    write_document,
)
from subjectgen.reproduce.measure import FIGURES, benchmark_of, by_subject
from subjectgen.reproduce.order import (
    Comparison,
    Scored,
    between_samplings,
    between_trainings,
    comparisons,
    over_both,
)
from subjectgen.reproduce.phase import RowPhase
from subjectgen.reproduce.readings import Readings, copy_frozen
from subjectgen.reproduce.row import finish, jobs_of, result_path
from subjectgen.reproduce.words import about_chance, about_layers, about_order
from subjectgen.train.loop import run as train
from subjectgen.train.mini import seen_subjects
from subjectgen.train.subject import DRAWS, GRID
from subjectgen.types import Condition, IdentityTokens, SemanticTokens

SHIPPED_CONFIGURATION = read_configuration()
EVERY = [(name, part) for name, each in SHIPPED_CONFIGURATION.trainings.items() for part in each.parts(100)]
CACHED, JOINT = "dla", "joint"
IDENTITY, _, OBEDIENCE, _ = FIGURES


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    return cutout_folder(tmp_path_factory.mktemp("cutouts"), seen=5, unseen=emoji.NUM_SUBJECTS)


@pytest.fixture(scope="module")
def renderer(cutouts):
    return seen_subjects(cutouts, torch.device("cpu"))


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    return tiny_configuration(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def out(configuration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    copy_frozen(configuration.model, folder)
    return folder


def phase_of(configuration, renderer, out, training, name="stage2", begin=0):
    return RowPhase(configuration, training, Part(name=name, begin=begin, steps=1), renderer, out, seed=0)


class TestConfiguration:
    def test_the_rows_of_the_paper_have_its_figures(self):
        """DINO-I, CLIP-I and CLIP-T as secondary sources quote them, and none where none could be read."""
        tables = SHIPPED_CONFIGURATION.tables
        found = {
            name: [(row.label, *map(row.paper.get, PAPER)) for row in table.rows] for name, table in tables.items()
        }
        none = (None, None, None)
        assert tuple(PAPER.values()) == ("DINO-I", "CLIP-I", "CLIP-T")
        assert found == {
            "table-1": [
                ("MLLM only", 0.6788, 0.8228, 0.2988),
                ("MLLM + VAE", 0.7482, 0.8443, 0.3010),
            ],
            "table-6": [
                ("last layer", 0.6566, 0.8128, 0.2893),
                ("last layer + ViT", 0.7118, 0.8286, 0.2850),
                ("one LAP", 0.7524, 0.8502, 0.2878),
                ("DLA", 0.7482, 0.8443, 0.3010),
            ],
            "table-7": [
                ("one stage, no masks", 0.7184, 0.8245, 0.2971),
                ("one stage, masks", 0.5763, 0.7686, 0.2995),
                ("two stages", 0.7482, 0.8443, 0.3010),
            ],
            "table-c": [
                ("tau (0, 0)", 0.6905, 0.8225, 0.3044),
                ("tau (.97, .90)", 0.7490, 0.8466, 0.2963),
                ("tau (.95, .85)", 0.7482, 0.8443, 0.3010),
                ("tau (.85, .70)", 0.7282, 0.8376, 0.3034),
                ("tau (.95, .85), CFG 4", 0.7431, 0.8381, 0.3012),
            ],
            "layers": [("early", *none), ("mid", *none), ("late", *none), ("all", *none)],
            "conditions": [("joint", *none), ("cached", *none)],
        }

    def test_the_note_on_masks_says_what_the_rows_drop(self):
        single, masked = (SHIPPED_CONFIGURATION.phases[name].dropout for name in ("single", "masked"))
        assert (single.semantic, single.identity, masked.semantic, masked.identity) == (0.3, 0.1, 0, 0)
        assert single.both == masked.both == 0.1
        note = SHIPPED_CONFIGURATION.tables["table-7"].note
        assert all(words in note for words in ("meaning alone from 30 %", "identity alone from 10 %", "neither"))

    def test_groups_of_layers(self):
        """Those of the paper for 29 hidden states; for mini's seven each layer is in one group."""
        groups = [Training(phases={"stage1": 1}, layers=name) for name in ("early", "mid", "late", "all")]
        assert [group.layer_range(29) for group in groups] == [(0, 9), (10, 19), (20, 28), (0, 28)]
        assert [group.layer_range(7) for group in groups] == [(0, 2), (3, 4), (5, 6), (0, 6)]

    def test_phases_share_the_budget(self):
        parts = SHIPPED_CONFIGURATION.trainings["dla"].parts(35_000)
        assert [(part.name, part.begin, part.steps) for part in parts] == [
            ("stage1", 0, 25_000),
            ("stage2", 25_000, 10_000),
        ]
        totals = {sum(part.steps for part in each.parts(1001)) for each in SHIPPED_CONFIGURATION.trainings.values()}
        assert totals == {1001}
        with pytest.raises(ValueError, match="steps=1 leave none for one of stage1, stage2"):
            SHIPPED_CONFIGURATION.trainings["dla"].parts(1)

    def test_stages(self):
        assert Sampling().stages == STAGE_PRESETS["paper"]
        assert Sampling(tau=(0.0, 0.0)).stages == (Stage(0.0, identity=0.0),)
        assert Sampling(tau=(0.9, 0.0)).stages == (Stage(0.9, identity=0.0), Stage(0.0))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('aggregator = "last"', 'aggregator = "lats"', "aggregator='lats': expected one of last"),
            ("phases = { masked = 1 }", "phases = { mask = 1 }", "phase 'mask' is not described"),
            ('training = "joint"', 'training = "jiont"', "training 'jiont' is not described"),
            ("batch_size = 8", "batch_sise = 8", "'batch_sise' is unknown: expected model"),
            ("[network]", "[net]", "lacks 'network'"),
        ],
    )
    def test_mistakes_are_named(self, tmp_path, old, new, message):
        text = SHIPPED.read_text()
        assert old in text
        (tmp_path / "wrong.toml").write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            read_configuration(tmp_path / "wrong.toml")

    def test_no_such_file_or_table(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.toml' is not there"):
            read_configuration(tmp_path / "none.toml")
        with pytest.raises(ValueError, match="--only 'table-2': expected one of table-1"):
            SHIPPED_CONFIGURATION.chosen(["table-2"])


class TestTraining:
    @pytest.mark.parametrize(("training", "part"), EVERY, ids=[f"{name}-{part.name}" for name, part in EVERY])
    def test_every_phase_of_every_row_learns(self, configuration, renderer, out, training, part):
        phase = phase_of(configuration, renderer, out, training, part.name)
        loss, _ = phase.loss(0)
        loss.backward()
        moved = {name for name, p in phase.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert torch.isfinite(loss)
        assert any(name.startswith("transformer") for name in moved)
        assert any(name.startswith("aggregator") for name in moved)
        assert any(".pool.weight" in name for name in moved) == (phase.training.aggregator in ("shared", "dual"))

    def test_aggregators_are_those_of_the_table(self, configuration, renderer, out):
        made = {name: phase_of(configuration, renderer, out, name).aggregator for name in configuration.trainings}
        assert {name: made[name].mode for name in ("last", "last-vit", "one-lap", "dla")} == {
            "last": "last",
            "last-vit": "last_vit",
            "one-lap": "shared",
            "dla": "dual",
        }
        assert {name: [*made[name].layers] for name in ("early", "mid", "late", "dla")} == {
            "early": [0],
            "mid": [1],
            "late": [2],
            "dla": [0, 1, 2],
        }

    @pytest.mark.parametrize("training", [CACHED, JOINT])
    @pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True), (False, False)])
    def test_it_trains_what_is_sampled(self, configuration, renderer, out, training, kinds):
        """The velocity of a padded batch is that of the denoiser under a list of conditions, as a pipeline calls it."""
        phase = phase_of(configuration, renderer, out, training)
        with torch.no_grad():  # as after some training: else conditions hardly act
            for weight in phase.model.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
        reading, sigma = phase.readings.at(0), torch.full((2,), 0.6)
        noise = torch.randn(reading.image.shape, generator=torch.Generator().manual_seed(1))
        semantic, identity = (torch.full((2,), kind) for kind in kinds)
        with torch.no_grad():
            ours = phase.velocity(reading, noise, sigma, semantic, identity).float()
            theirs = sampled(phase, reading, noise, sigma, kinds)
            other = sampled(phase, reading, noise, sigma, (not kinds[0], True))
        assert (ours - theirs).abs().max() < 0.1 * (other - theirs).abs().max()

    def test_masks_are_the_paper_s_stages(self, configuration, renderer, out):
        """Meaning alone above .95, both down to .85, identity alone below."""
        settings = replace(configuration.phases["masked"], both=0.0)
        configuration = replace(configuration, phases={**configuration.phases, "masked": settings})
        phase = phase_of(configuration, renderer, out, "masked", "masked")
        sigma = torch.tensor([0.99, 0.96, 0.9, 0.86, 0.84, 0.1])
        semantic, identity = phase.seen(sigma, generator_of(0, 0, torch.device("cpu")))
        assert semantic.tolist() == [True, True, True, True, False, False]
        assert identity.tolist() == [False, False, True, True, True, True]

    def test_all_draws_of_a_picture_drop_the_same(self, configuration, renderer, out):
        phase = phase_of(configuration, renderer, out, "single", "single")
        kinds = phase.seen(torch.full((DRAWS * 500,), 0.5), generator_of(0, 0, torch.device("cpu")))
        semantic, identity = (kind.reshape(DRAWS, 500).float() for kind in kinds)
        assert (semantic[0] == semantic[1]).all() and (identity[0] == identity[1]).all()
        assert semantic[0].mean().item() == pytest.approx(1 - 0.3 - 0.1, abs=0.06)
        assert identity[0].mean().item() == pytest.approx(1 - 0.1 - 0.1, abs=0.06)

    def test_stage_2_goes_on_with_the_next_pictures(self, configuration, renderer, out):
        phase = phase_of(configuration, renderer, out, CACHED, begin=1)
        shown = []
        phase.readings.on = lambda number, _: shown.append(number) or phase.readings.at(number)
        phase.loss(0)
        phase.loss(1)
        assert shown == [1, 2]

    def test_pictures_are_read_once_for_all_rows(self, configuration, renderer, out, tmp_path):
        first = phase_of(configuration, renderer, out, CACHED)
        numbers = []
        readings = Readings(tmp_path, 2, lambda number: numbers.append(number) or first.read(number))
        again = Readings(tmp_path, 2, lambda number: pytest.fail("read twice"))
        for step in (0, 1, 2, 3):
            assert all(torch.equal(a, b) for a, b in pairs(readings.at(step), again.at(step)))
        assert numbers == [0, 1]
        assert all(torch.equal(a, b) for a, b in pairs(readings.at(2), readings.at(0)))

    def test_a_sheet_has_truths_and_paintings(self, configuration, renderer, out):
        assert phase_of(configuration, renderer, out, JOINT).sheet().size == (2 * 128, 2 * 128)


def pairs(first, second):
    return zip(vars(first).values(), vars(second).values(), strict=True)


def sampled(phase, reading, noise, sigma, kinds):
    """By the lists of conditions that sampling uses, one picture at a time."""
    velocities = []
    with torch.autocast("cpu", torch.bfloat16):
        tokens, pooled = phase.aggregator(reading.states.float(), reading.is_image, reading.mask)
        for row, mask in enumerate(reading.mask):
            condition = Condition(
                semantic=SemanticTokens(tokens=tokens[row, mask].float(), pooled=pooled[row].float()),
                identity=IdentityTokens(
                    tokens=tuple(reading.references[row]),
                    grids=(GRID,) * reading.references.shape[1],
                    masks=tuple(reading.counted[row]),
                ),
            )
            context = phase.denoiser.prepare([condition], GRID, *map(float, kinds), phase.aggregator.null_pooled)
            assert torch.equal(context.features, position_features(*GRID, 16)[None])
            velocities.append(phase.denoiser.velocity(noise[row : row + 1], sigma[row], context))
    return torch.cat(velocities).float()


@pytest.fixture(scope="module")
def small(configuration):
    """Two trainings, three results a seed, one seed."""
    tables = {name: configuration.tables[name] for name in ("table-1", "table-c")}
    tables["table-c"] = replace(tables["table-c"], rows=tables["table-c"].rows[:2])
    return replace(configuration, tables=tables, seeds=[0])


@pytest.fixture(scope="module")
def done(small, cutouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    run.reproduce(small, folder, folder / "document.md", cutouts=cutouts)
    return folder


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tiny_reproduction import tiny_configuration
from subjectgen.reproduce import phase, run

real = phase.RowPhase.loss

def killed_in_stage_2(self, step):
    if self.name == "stage2":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, step)

phase.RowPhase.loss = killed_in_stage_2
model, out, cutouts = sys.argv[1:]
whole = tiny_configuration(model, seeds=[0])
table = replace(whole.tables["table-c"], rows=whole.tables["table-c"].rows[:2])
run.reproduce(replace(whole, tables={"table-c": table}), Path(out), Path(out) / "document.md", cutouts=Path(cutouts))
"""


def results(folder):
    return {path.name: path.read_bytes() for path in (folder / "results").iterdir()}


class TestRuns:
    def test_rows_that_are_alike_share_a_result(self):
        """11 trainings a seed; Table C samples one of them in four more ways."""
        jobs = jobs_of(SHIPPED_CONFIGURATION)
        assert len(jobs) == 2 * len(SHIPPED_CONFIGURATION.trainings) == 22
        assert sum(len(job.rows) for job in jobs) == 2 * (11 + 4)
        assert {job.seed for job in jobs[:11]} == {0}

    def test_a_result_a_row(self, small, done):
        assert set(results(done)) == {
            "mllm-only-tau0-0-cfg2.5-seed0.json",
            "dla-tau0.95-0.85-cfg2.5-seed0.json",
            "dla-tau0-0-cfg2.5-seed0.json",
            "dla-tau0.97-0.9-cfg2.5-seed0.json",
        }
        made = [json.loads(each) for each in results(done).values()]
        assert len({each["frozen"] for each in made}) == len({each["cases"] for each in made}) == 1
        result = json.loads(results(done)["dla-tau0-0-cfg2.5-seed0.json"])
        assert len(result["scores"]) == 3 and set(result["scores"][0]) == {figure.name for figure in FIGURES}
        assert {kind: len(weights) for kind, weights in result["layer_weights"].items()} == {"text": 3, "image": 3}

    def test_what_is_done_is_not_done_again(self, small, done, cutouts, renderer, monkeypatch):
        before = results(done)
        monkeypatch.setattr("subjectgen.reproduce.row.RowPhase", lambda *_, **__: pytest.fail("trained again"))
        run.reproduce(small, done, done / "document.md", cutouts=cutouts)
        assert results(done) == before

    def test_a_lost_result_is_measured_again_and_not_trained(self, small, done, cutouts, monkeypatch):
        before = results(done)
        (done / "results" / "dla-tau0-0-cfg2.5-seed0.json").unlink()
        monkeypatch.setattr("subjectgen.reproduce.row.run", lambda *_, **__: pytest.fail("trained again"))
        run.reproduce(small, done, done / "document.md", cutouts=cutouts)
        assert results(done) == before

    def test_a_run_that_was_stopped_goes_on(self, small, done, cutouts, tmp_path, monkeypatch):
        """Stopped in stage 2: the results are those of a run that was not."""
        real = RowPhase.loss

        def stopped(phase, step):
            if phase.name == "stage2":
                signal_to_stop()
            return real(phase, step)

        only = replace(small, tables={"table-c": small.tables["table-c"]})
        monkeypatch.setattr(RowPhase, "loss", stopped)
        with pytest.raises(KeyboardInterrupt, match="run the same again"):
            run.reproduce(only, tmp_path, tmp_path / "document.md", cutouts=cutouts)
        assert not (tmp_path / "results").exists()
        monkeypatch.setattr(RowPhase, "loss", real)
        run.reproduce(only, tmp_path, tmp_path / "document.md", cutouts=cutouts)
        assert results(tmp_path).items() <= results(done).items()

    def test_a_run_that_was_killed_goes_on(self, small, done, cutouts, tmp_path, monkeypatch):
        """By SIGKILL, in stage 2, in a process of its own: stage 1 is not trained again, and all results come."""
        tests = Path(__file__).parent
        places = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
        words = [sys.executable, "-c", KILLED, small.model, str(tmp_path), str(cutouts)]
        assert subprocess.run(words, env=places, check=False).returncode == -signal.SIGKILL
        assert not (tmp_path / "results").exists()
        trained = []

        def noted(phase, *given, **options):
            trained.append(phase.name)
            return train(phase, *given, **options)

        monkeypatch.setattr("subjectgen.reproduce.row.run", noted)
        only = replace(small, tables={"table-c": small.tables["table-c"]})
        run.reproduce(only, tmp_path, tmp_path / "document.md", cutouts=cutouts)
        assert trained == ["stage2"]
        assert results(tmp_path).keys() == {name for name in results(done) if "dla-tau0" in name and "0.95" not in name}

    def test_shards_share_the_work(self, small, done, cutouts, tmp_path):
        for index in (1, 2):
            run.reproduce(small, tmp_path, tmp_path / "document.md", shard=Shard(index=index, count=2), cutouts=cutouts)
            trained = {path.name for path in (tmp_path / "trained").iterdir()}
            assert trained == ({"mllm-only-seed0"} if index == 1 else {"mllm-only-seed0", "dla-seed0"})
        assert results(tmp_path) == results(done)

    def test_another_configuration_is_refused(self, small, done, cutouts):
        with pytest.raises(ValueError, match="holds rows with steps=3, this is 4: expected one configuration a folder"):
            run.reproduce(replace(small, steps=4), done, done / "document.md", cutouts=cutouts)

    def test_other_subjects_or_scores_are_refused(self, small, done, cutouts, tmp_path, monkeypatch):
        """What was read and measured of the one is not compared with the other."""
        others = cutout_folder(tmp_path / "others", seen=6, unseen=emoji.NUM_SUBJECTS)
        with pytest.raises(ValueError, match="holds rows with subjects of sha256='"):
            run.reproduce(small, done, done / "document.md", cutouts=others)
        before = emoji.VERSION
        monkeypatch.setattr(emoji, "VERSION", "emoji@later")
        with pytest.raises(ValueError, match=f"holds rows with scored by='{before}', this is 'emoji@later'"):
            run.reproduce(small, done, done / "document.md", cutouts=cutouts)

    def test_a_folder_of_an_earlier_version_is_read_and_not_added_to(self, small, done, cutouts, tmp_path):
        out = tmp_path / "out"
        shutil.copytree(done, out)
        noted = {name: value for name, value in run.settled(out).items() if name not in (run.SUBJECTS, run.SCORED_BY)}
        (out / run.SETTLED).write_text(json.dumps(noted))
        (out / "document.md").unlink()
        run.reproduce(small, out, out / "document.md", cutouts=cutouts)
        assert (out / "document.md").read_text() == (done / "document.md").read_text()
        (out / "results" / "dla-tau0-0-cfg2.5-seed0.json").unlink()
        with pytest.raises(ValueError, match=r"did not note their subjects of sha256: .*Choose another --out"):
            run.reproduce(small, out, out / "document.md", cutouts=cutouts)

    def test_hours_become_steps(self, small, renderer, out, monkeypatch):
        """A timed act takes a second: 3 readings, 3 prompts (4 a second) of 4 rows, a step of each of 2 trainings."""
        monkeypatch.setattr(budget, "timed", lambda act: 1.0)
        monkeypatch.setattr(budget, "seconds_a_step", lambda phase: 1.0)
        jobs = jobs_of(small)
        assert budget.steps_within(1.1 * (3 + 3 + 2 * 50.5), small, jobs, renderer, None, out) == 50
        with pytest.raises(ValueError, match="2 trainings beside them do not fit into"):
            budget.steps_within(1.1 * 7, small, jobs, renderer, None, out)

    def test_steps_are_timed_without_training(self, small, cutouts, renderer, out):
        jobs = [job for job in jobs_of(small) if job.training == "dla"]
        phase = budget.last_phase(small, jobs[0], renderer, out)
        before = [weight.clone() for weight in phase.model.parameters()]
        assert budget.seconds_a_step(phase) > 0
        assert all(torch.equal(*both) for both in zip(phase.model.parameters(), before, strict=True))
        assert budget.steps_within(1e6, small, jobs, renderer, benchmark_of(4, cutouts), out) > 1000

    def test_hours_count_once(self, small, cutouts, tmp_path, monkeypatch, capsys):
        """The first start settles the steps, also for shards that come later."""
        monkeypatch.setattr(run, "steps_within", lambda *_: 4)
        run.reproduce(
            small,
            tmp_path,
            tmp_path / "d.md",
            only=["table-1"],
            hours=1.0,
            shard=Shard(index=2, count=2),
            cutouts=cutouts,
        )
        monkeypatch.setattr(run, "steps_within", lambda *_: pytest.fail("timed again"))
        run.reproduce(small, tmp_path, tmp_path / "d.md", only=["table-1"], hours=1.0, cutouts=cutouts)
        assert run.settled(tmp_path)["steps"] == 4
        assert "are trained for 4 steps" in " ".join(capsys.readouterr().err.split())

    def test_command_line(self, configuration, cutouts, tmp_path):
        file = tiny_file(configuration.model, tmp_path / "tiny.toml")
        words = ["reproduce", "--only", "conditions", "--steps", "2", "--out", tmp_path / "out", "--config", file]
        words += ["--document", tmp_path / "docs/reproduction.md", "--cutouts", cutouts, "--shard", "1/1"]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        text = (tmp_path / "docs/reproduction.md").read_text()
        assert f"`subjectgen reproduce --only conditions --steps 2 --config {file} --cutouts {cutouts} --out" in text
        assert "| joint |" in text
        assert text.count("Not all rows have been run") == 5  # of tables that share the row that is cached

    def test_refusals(self):
        for words, said in (
            (["--steps", "2", "--hours", "1"], "expected one budget"),
            (["--shard", "3/2"], "expected i/n with i from 1 to n"),
            (["--only", "table-9"], "expected one of table-1"),
        ):
            result = CliRunner().invoke(app, ["reproduce", *words])
            assert result.exit_code == 2 and said in result.output.replace("\n", " ")


def signal_to_stop():
    os.kill(os.getpid(), signal.SIGINT)


def simulated(trainings, seeds=1.0, subjects=1.0, both=1.0, samplings=1, rng=None):
    """Rows without any true difference, of 2 seeds and 60 subjects: how far a score depends on what."""
    rows = trainings * samplings
    scores = rng.normal(size=(1, 2, 1)) + rng.normal(size=(1, 1, 60))  # what all rows have in common
    for scale, size in ((seeds, (rows, 2, 1)), (subjects, (rows, 1, 60)), (both, (rows, 2, 60))):
        scores = scores + scale * rng.normal(size=size)
    return [Scored(label=str(k), training=str(k // samplings), scores=each) for k, each in enumerate(scores)]


def told_apart_by_chance(rows, times=400, **scales):
    """The share of pairs of the first rows of a run."""
    rng = np.random.default_rng(0)
    runs = [simulated(rng=rng, **scales) for _ in range(times)]
    return np.mean([pair.told_apart for run in runs for pair in comparisons(run[:rows], run)])


class TestOrder:
    @pytest.mark.parametrize("rows", [2, 4])
    @pytest.mark.parametrize("seeds", [0.05, 0.15, 1.0], ids=["subjects matter", "both", "seeds matter"])
    def test_one_of_twenty_pairs_is_told_apart_by_chance(self, rows, seeds):
        """In tables of a run of as many trainings as the shipped one."""
        apart = told_apart_by_chance(rows, trainings=len(SHIPPED_CONFIGURATION.trainings), seeds=seeds, both=0.5)
        assert 0.02 < apart < 0.08

    @pytest.mark.parametrize("rows", [2, 4])
    @pytest.mark.parametrize("seeds", [0.15, 1.0])
    def test_a_table_that_is_the_whole_run_is_told_apart_no_more_often(self, rows, seeds):
        """Seeds are known by 1 degree of freedom for 2 rows, where 2 standard errors told a fifth of them apart."""
        assert told_apart_by_chance(rows, trainings=rows, seeds=seeds) < 0.08

    def test_rows_of_one_training_are_told_apart_no_more_often(self):
        assert 0.02 < told_apart_by_chance(5, trainings=1, samplings=5, seeds=0.3, both=0.5) < 0.08

    def test_a_difference_is_found(self):
        """Of 6 standard errors."""
        run = simulated(11, seeds=0.1, both=0.5, rng=np.random.default_rng(0))
        error = np.sqrt(0.1**2 + 2 * 1.0 / 60 + 0.5**2 / 60)
        better = replace(run[0], scores=run[0].scores + 6 * error)
        assert comparisons([better, run[1]], [better, *run[1:]])[0].told_apart

    def test_quantiles_of_student(self):
        """As printed tables have them."""
        degrees = {1: 12.706, 2: 4.303, 4: 2.776, 10: 2.228, 59: 2.001}
        assert {each: round(student(each), 3) for each in degrees} == degrees

    def test_lead_and_margin(self):
        """Differences of two seeds and four subjects by hand: 1 0 1 0 and 1 2 1 2."""
        first, second = np.array([[2.0, 2, 2, 2], [3, 4, 3, 4]]), np.array([[1.0, 2, 1, 2], [2, 2, 2, 2]])
        (pair,) = compared_alone(a=first, b=second)
        seeds, both = np.var([0.5, 1.5], ddof=1) / 2, 8 * 0.5**2 / 3 / 8  # all subjects are alike: 1 1 1 1
        assert pair.lead == 1.0 and over_both(first - second) == pytest.approx(both)
        assert pair.margin == pytest.approx(student(1) * np.sqrt(seeds))
        (pair,) = compared_alone(a=first[:1], b=second[:1])
        expected = student(3) * np.sqrt(np.var([1, 0, 1, 0], ddof=1) / 4)
        assert (pair.lead, pair.margin) == (0.5, pytest.approx(expected))

    def test_seeds_are_pooled_over_trainings(self):
        """Rows a and b move together from seed to seed, c does not: no pair is surer than another."""
        a, b, c = (np.array([[x] * 4, [y] * 4], dtype=float) for x, y in ((1, 3), (2, 4), (0, 6)))
        seeds = (0 + 4 + 4) / 3  # the mean of all pairs' squared errors
        expected = student(2) * np.sqrt(seeds)
        assert [pair.margin for pair in compared_alone(a=a, b=b, c=c)] == pytest.approx([expected] * 3)

    def test_rows_of_one_training_have_a_pool_of_their_own(self):
        run = simulated(2, rng=np.random.default_rng(0))
        again = replace(run[0], label="again", scores=run[0].scores + np.array([[0.0], [0.2]]))
        trainings, samplings = between_trainings([*run, again]), between_samplings([*run, again])
        assert trainings.square == pytest.approx(between_trainings(run).square)
        assert trainings.degrees == samplings.degrees == 1
        assert samplings.square == pytest.approx(np.var([0, 0.2], ddof=1) / 2) and between_samplings(run).degrees == 0
        pair = comparisons([run[0], again], [*run, again])[0]
        assert pair.margin == pytest.approx(student(1) * 0.1)

    def test_prompts_about_one_subject_are_averaged(self, cutouts):
        """That prompt i is about subject i % 60 is the benchmark's: its cases say so."""
        cases = benchmark_of(2 * emoji.NUM_SUBJECTS, cutouts).cases
        names = [case.subject for case in cases]
        values = np.random.default_rng(0).random(len(names))
        expected = [
            np.mean([value for value, other in zip(values, names, strict=True) if other == name])
            for name in dict.fromkeys(names)
        ]
        assert by_subject(values) == pytest.approx(np.array(expected)) and len(expected) == emoji.NUM_SUBJECTS
        assert by_subject(values[:61])[:2] == pytest.approx([(values[0] + values[60]) / 2, values[1]])

    def test_a_second_prompt_about_the_same_subjects_makes_no_pair_surer(self):
        once = np.random.default_rng(0).random(60)
        result = {"scores": [{IDENTITY.name: value} for value in [*once, *once]]}
        assert scores_of(result, IDENTITY) == pytest.approx(once)

    def test_pairs(self):
        scores = {"a": np.array([[1.0, 1, 0, 0]]), "b": np.zeros((1, 4)), "c": np.ones((1, 4)) * 9}
        ab, ac, bc = compared_alone({"a": 0.7, "b": 0.6}, **scores)
        assert (ab.first, ab.second, ab.lead, ab.paper) == ("a", "b", 0.5, pytest.approx(0.1))
        assert not ab.told_apart and ab.agrees
        assert (ac.lead, ac.paper, ac.told_apart) == (-8.5, None, True)
        assert (bc.lead, bc.margin, bc.told_apart) == (-9, 0, True)
        with pytest.raises(ValueError, match="expected rows that the paper has figures of"):
            _ = ac.agrees

    def test_words(self):
        def pair(lead, paper, names="ab"):
            return Comparison(first=names[0], second=names[1], lead=lead, margin=2.0, paper=paper)

        said = about_order(IDENTITY, [pair(5.0, 0.1), pair(-4.0, 0.0252, "ac"), pair(1.5, -0.01, "bc")])
        assert said == (
            "**Identity**, against the paper's DINO-I: 1 of 3 pairs in its order, 1 the other way round, 1 not told "
            "apart. "
            "In the paper *a* leads *c* by 0.0252; here *c* leads *a* by 4.0 ± 2.0 points. "
            "In the paper *c* leads *b* by 0.0100; here *b* and *c* are not told apart (*b* ahead by 1.5 ± 2.0 points)."
        )
        assert about_order(OBEDIENCE, [pair(-3.0, None)]) == "**Obedience**: *b* leads *a* by 3.0 ± 2.0 points."

        (decibels,) = (figure for figure in FIGURES if figure.unit == "dB")
        assert about_order(decibels, [pair(2.25, None)]) == "**Region PSNR**: *a* leads *b* by 2.25 ± 2.00 dB."

    def test_words_about_chance(self):
        leads = [(5.0, 0.1), (-4.0, 0.1), (1.0, 0.1), (1.0, -0.1), (3.0, None)]
        pairs = [Comparison(first="a", second="b", lead=lead, margin=2.0, paper=paper) for lead, paper in leads]
        assert about_chance(pairs * 4) == [
            "20 comparisons of two rows by one figure were made and 12 told apart. Did no row differ from another, 1.0 "
            "would be by chance. For 16 of them the paper has an order: 4 are told apart in it, 4 the other way round, "
            "8 not at all; by chance alone 0.4 would be told apart in it and as many the other way round."
        ]
        assert "order" not in about_chance(pairs[-1:])[0] and about_chance([]) == []

    def test_words_about_layers(self):
        said = about_layers({"text": [[0.1, -0.6], [0.3, -0.2]], "image": [[0.5, 0.25], [0.5, 0.25]]})
        assert said.startswith("Text tokens: hidden state 1 weighs most (-0.400), 1 of 2 are negative. Image tokens:")
        assert "hidden state 0 weighs most (+0.500), 0 of 2 are negative." in said


def compared_alone(paper=None, **scores):
    """The pairs of a table that is the whole run, of one training a row."""
    paper = paper or {}
    rows = [Scored(label=name, training=name, scores=each, paper=paper.get(name)) for name, each in scores.items()]
    return comparisons(rows, rows)


class TestDocument:
    def made(self, configuration, out, scores):
        """A result of each row of a table: the same figures for all prompts but the first."""
        for row, by_seed in scores:
            for seed, identity in enumerate(by_seed):
                path = result_path(out, row, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                others = {"closeness": 0.75, "obedience": 0.5, "region_psnr": 12.0}
                prompts = [{"identity": float(k < identity), **others} for k in range(10)]
                weights = {"text": [0.5, 0.5], "image": [0.5, -0.5]}
                made = {"scores": prompts, "layer_weights": weights, "frozen": "0123456789abcdef", "cases": "f" * 64}
                path.write_text(json.dumps(made))

    def test_a_table(self, tmp_path):
        table = SHIPPED_CONFIGURATION.tables["table-1"]
        self.made(SHIPPED_CONFIGURATION, tmp_path, zip(table.rows, ([2, 3], [8, 9]), strict=True))
        results = results_of(table, [0, 1], tmp_path)
        pairs = compared(table, results, [(row, results[row.label]) for row in table.rows])
        text = section(table, results, pairs, command("table-1", SHIPPED_CONFIGURATION, ()))
        assert (
            "| MLLM only | 25.0 (20.0 to 30.0) | 75.0 (75.0 to 75.0) | 50.0 (50.0 to 50.0) | 12.0 (12.0 to 12.0) | "
            "0.6788 | 0.8228 | 0.2988 |"
        ) in text
        assert "| MLLM + VAE | 85.0 (80.0 to 90.0) |" in text
        assert "DINO-I: 1 of 1 pair in its order, 0 the other way round, 0 not told apart." in text
        assert "here *MLLM only* and *MLLM + VAE* are not told apart (equal)" in text
        assert text.endswith(f"`subjectgen reproduce --only table-1 --steps {SHIPPED_CONFIGURATION.steps}`")

    def test_rows_that_are_alike_are_one_of_the_run(self, tmp_path):
        """Else each table would make the pool of seeds surer by the same training."""
        rows = SHIPPED_CONFIGURATION.rows
        self.made(SHIPPED_CONFIGURATION, tmp_path, [(row, [2, 3]) for row in rows])
        found = {name: results_of(table, [0, 1], tmp_path) for name, table in SHIPPED_CONFIGURATION.tables.items()}
        run = rows_of_run(SHIPPED_CONFIGURATION, found)
        assert len(run) == 11 + 4 < len(rows)
        scores = scored(run, [0, 1], IDENTITY)
        assert (between_trainings(scores).degrees, between_samplings(scores).degrees) == (10, 4)
        write_document(SHIPPED_CONFIGURATION, tmp_path, tmp_path / "reproduction.md")
        assert "108 comparisons of two rows by one figure were made" in (tmp_path / "reproduction.md").read_text()

    def test_what_is_not_there_is_said(self, tmp_path):
        table = SHIPPED_CONFIGURATION.tables["layers"]
        self.made(SHIPPED_CONFIGURATION, tmp_path, [(table.rows[3], [2])])
        write_document(SHIPPED_CONFIGURATION, tmp_path, tmp_path / "docs" / "reproduction.md")
        text = (tmp_path / "docs" / "reproduction.md").read_text()
        assert "| early | not run | not run | not run | not run |" in text
        assert "| all | 20.0 | 75.0 | 50.0 | 12.0 |" in text
        assert "Not all rows have been run: nothing is said of their order." in text
        assert "frozen (sha256 0123456789ab); prompts and seeds have sha256 ffffffffffff." in text
        assert "Not run yet" not in text  # the training of this row is in every table

    def test_pictures_that_come_again_and_seeds_that_have_run(self):
        """800 batches of 8 are read once; 1000 steps go round them."""
        assert "800 steps of 8 pictures, 6400 in all, whatever" in introduction(SHIPPED_CONFIGURATION, [0, 1])
        longer = introduction(replace(SHIPPED_CONFIGURATION, steps=1000), [1])
        assert "1000 steps of 8 pictures, 8000 in all (6400 different ones, over and over), whatever" in longer
        assert "mean over those of the seeds 1 that its row has run with" in longer
        assert "of the seeds (none yet) that" in introduction(SHIPPED_CONFIGURATION, [])
        assert "Of other seeds one seed says nothing" in longer

    def test_the_plot_has_both_laps(self, tmp_path):
        table = SHIPPED_CONFIGURATION.tables["layers"]
        self.made(SHIPPED_CONFIGURATION, tmp_path, [(table.rows[3], [2, 3])])
        write_document(SHIPPED_CONFIGURATION, tmp_path, tmp_path / "reproduction.md")
        picture = (tmp_path / "reproduction-layers.svg").read_text()
        assert "text tokens" in picture and "image tokens" in picture and "hidden state" in picture
        assert "(reproduction-layers.svg)" in (tmp_path / "reproduction.md").read_text()

    def test_nothing_but_results_is_needed(self, configuration, renderer, tmp_path):
        job = jobs_of(configuration)[0]
        self.made(configuration, tmp_path, [(row, [1]) for row in job.rows])
        finish(job, configuration, renderer, None, tmp_path)
        assert not (tmp_path / "trained").exists()
