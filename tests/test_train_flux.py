"""Training the adapter of a FLUX pipeline: precomputed conditions, two stages, and what is left unchanged by them."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file
from test_train import NEVER, Killed, die, press_ctrl_c, same
from tiny_pipeline import tiny_pipeline
from tiny_triples import SIZE, bfloat16_pipeline, triples_folder, untrained_pipeline, write_metadata
from typer.testing import CliRunner

from subjectgen import SubjectAdapter, WeightsError
from subjectgen.cli import app
from subjectgen.data.batches import generator_of
from subjectgen.data.triples import open_rows
from subjectgen.generate.sample import _shift
from subjectgen.train import precompute
from subjectgen.train.checkpoint import NAME
from subjectgen.train.conditions import INDEX, Conditions, Epochs, file_of, read
from subjectgen.train.dropout import kept
from subjectgen.train.flux import ADAMW, train
from subjectgen.train.flux_phase import DROPOUTS, STAGES, FluxPhase, shown_rows, without_text
from subjectgen.train.loop import Budget, Schedule, run

HERE = Path(__file__).parent
LINES = 20


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums are in the order of the processes that are compared with, which have one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return triples_folder(tmp_path_factory.mktemp("triples"), LINES)


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """A run after precompute and a stage 1 of two steps."""
    out = tmp_path_factory.mktemp("run")
    train(untrained_pipeline, "precompute", out, data=str(data), size=SIZE)
    train(untrained_pipeline, "stage1", out, steps=2, batch_size=2, accumulate=1, rate=1e-2)
    return out


@pytest.fixture
def run_folder(begun, tmp_path):
    """The same, to be changed."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture(scope="module")
def conditions(begun):
    return Conditions.open(begun / "conditions")


def phase_of(conditions, name="stage2", kind=FluxPhase, **options):
    return kind(untrained_pipeline(rank=16), conditions, name, **options)


def base_of(transformer):
    return {name: p.detach().clone() for name, p in transformer.named_parameters() if "lora_" not in name}


class TestWhole:
    def test_from_triples_to_a_pipeline_that_paints(self, begun, run_folder, data):
        train(untrained_pipeline, "stage2", run_folder, steps=2, batch_size=2, accumulate=1, rate=1e-2)
        first, second = (SubjectAdapter.load(run_folder / name / "export") for name in ("stage1", "stage2"))
        assert second.config.settings["stages"][0]["until"] == 0.95 and second.config.settings["image_size"] == SIZE
        assert len(first.config.settings["stages"]) == 1 and first.config.settings["stages"][0]["identity"] == 0
        for kind in ("lora_state", "aggregator_state"):
            one, two = getattr(first, kind), getattr(second, kind)
            assert not any(torch.equal(one[name], two[name]) for name in one if "lora_B" in name or "qkv" in name)
        pipe = tiny_pipeline(conditions="joint")
        second.apply(pipe)
        row = open_rows(str(data))[0]
        latents = pipe(row.prompt, list(row.references), output_type="latent").images
        assert latents.shape == (1, 4, SIZE // 8, SIZE // 8) and latents.isfinite().all()
        assert {file.name for file in (run_folder / "stage2").iterdir()} == {
            NAME, "export", "losses.csv", "sheet-0000002.png",
        }  # fmt: skip

    def test_the_base_is_left_as_it_was(self, conditions, tmp_path):
        phase = phase_of(conditions, batch_size=2)
        before, vae = base_of(phase.pipe.transformer), load_state(phase.pipe.vae)
        run(phase, tmp_path, Budget(steps=2), Schedule(rate=1e-2, warmup=1), **NEVER)
        assert same(base_of(phase.pipe.transformer), before) and same(load_state(phase.pipe.vae), vae)

    def test_dtypes(self, conditions):
        pipe = bfloat16_pipeline()
        phase = FluxPhase(pipe, conditions, "stage2", batch_size=2)
        assert {parameter.dtype for parameter in phase.model.parameters()} == {torch.float32}
        assert {weight.dtype for weight in base_of(pipe.transformer).values()} == {torch.bfloat16}
        assert {parameter.device.type for parameter in pipe.mllm.parameters()} == {"meta"}
        phase.loss(0)[0].backward()
        assert all(parameter.grad.isfinite().all() for parameter in phase.model.parameters())
        assert phase.sheet().size[1] > 256

    def test_it_overfits_one_row(self, conditions, tmp_path):
        losses = []

        class OneRow(FluxPhase):
            def loss(self, step):
                loss, figures = super().loss(0)
                losses.append(loss.item())
                return loss, figures

            def sheet(self):
                return Image.new("RGB", (8, 8))

        run(
            phase_of(conditions, kind=OneRow),
            tmp_path,
            Budget(steps=25),
            Schedule(rate=2e-2, warmup=3),
            optimizer=ADAMW,
            **NEVER,
        )
        assert sum(losses[-3:]) < 0.7 * sum(losses[:3]), losses[::6]


def load_state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Unpictured(FluxPhase):
    def sheet(self):
        return Image.new("RGB", (8, 8))


class Stopped(Unpictured):
    def loss(self, step):
        if step == 3:  # the second batch of the second step
            press_ctrl_c()
        return super().loss(step)


class TestResume:
    def test_bit_exactly(self, conditions, tmp_path):
        def go(kind, out, **options):
            phase = phase_of(conditions, kind=kind, batch_size=2)
            schedule = Schedule(rate=1e-2, warmup=2)
            run(phase, out, Budget(steps=3), schedule, accumulate=2, optimizer=ADAMW, **NEVER, **options)

        go(Unpictured, tmp_path / "straight")
        with pytest.raises(KeyboardInterrupt, match=r"step 2 is saved"):
            go(Stopped, tmp_path / "cut")
        go(Unpictured, tmp_path / "cut", resume=True)
        straight, cut = (load_file(tmp_path / name / "stage2" / NAME) for name in ("straight", "cut"))
        assert same(straight, cut)
        kept_by_optimizer = {name.rsplit(".")[-1] for name in straight if name.startswith("optimizer.")}
        assert kept_by_optimizer == {"step", "exp_avg", "exp_avg_sq"}  # AdamW alone
        adapters = [SubjectAdapter.load(tmp_path / name / "stage2" / "export") for name in ("straight", "cut")]
        assert adapters[0].sha256 == adapters[1].sha256


class TestPrecompute:
    @pytest.fixture
    def written(self, monkeypatch):
        """Names of the files that are written."""
        names, write = [], precompute.write

        def noting(path, *rest):
            write(path, *rest)
            names.append(path.name)

        monkeypatch.setattr(precompute, "write", noting)
        return names

    @pytest.fixture
    def few(self, data, tmp_path):
        folder = tmp_path / "few"
        folder.mkdir()
        rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()[:4]]
        for name in {name for row in rows for name in (*row["references"], row["target"])}:
            shutil.copy(data / name, folder)
        write_metadata(folder, rows)
        return folder

    def go(self, few, out, make=untrained_pipeline, size=SIZE, **options):
        train(make, "precompute", out, data=str(few), size=size, **options)

    def test_rows_are_what_the_pipeline_makes_of_them(self, data, conditions):
        pipe = untrained_pipeline()
        reader, _ = pipe.adapters()
        row, example = open_rows(str(data))[2], conditions.read(2)
        images = precompute.read_images(row.references, pipe.limits).images
        hidden = reader.read_prompt(row.prompt, reader.read_references(images))
        assert torch.equal(example.hidden.states, hidden.states.to(torch.bfloat16))
        assert torch.equal(example.hidden.is_image, hidden.is_image) and example.prompt == row.prompt
        embeds = pipe.encode_subjects(list(row.references))
        packed = [pipe.adapters()[1].pack(latents[None])[0] for latents in example.references]
        assert all(torch.equal(a, b) for a, b in zip(packed, embeds.identity.tokens, strict=True))
        assert example.target.shape == (4, SIZE // 8, SIZE // 8)
        empty = reader.read_prompt("", reader.read_references(images))
        assert torch.equal(without_text(example.hidden).states, empty.states.to(torch.bfloat16))

    def test_a_kill_loses_one_row_at_most(self, few, tmp_path, written, monkeypatch):
        encode = precompute.Encoder.encode
        monkeypatch.setattr(precompute.Encoder, "encode", lambda *a: die() if len(written) == 2 else encode(*a))
        with pytest.raises(Killed):
            self.go(few, tmp_path / "run")
        assert not (tmp_path / "run" / "conditions" / INDEX).exists()
        with pytest.raises(FileNotFoundError, match=r"index\.json is not there.*Run --phase precompute again"):
            train(untrained_pipeline, "stage1", tmp_path / "run", steps=1)
        monkeypatch.setattr(precompute.Encoder, "encode", encode)
        self.go(few, tmp_path / "run")
        assert written == [file_of(tmp_path, row).name for row in range(4)]
        self.go(few, tmp_path / "run")
        assert len(written) == 4 and len(Conditions.open(tmp_path / "run" / "conditions").num_references) == 4

    def test_what_is_stale_is_computed_again(self, few, tmp_path, written):
        def rewritten(**options):
            written.clear()
            self.go(few, tmp_path / "run", **options)
            return sorted(int(name[4:12]) for name in written)

        def other_vae():
            pipe = untrained_pipeline()
            with torch.no_grad():
                next(pipe.vae.parameters()).add_(0.1)
            return pipe

        assert rewritten() == [0, 1, 2, 3] and rewritten() == []
        rows = [json.loads(line) for line in (few / "metadata.jsonl").read_text().splitlines()]
        rows[1]["prompt"] += " again"
        write_metadata(few, rows)
        assert rewritten() == [1]
        Image.open(few / rows[2]["target"]).rotate(90).save(few / rows[2]["target"])
        assert rewritten() == [2]
        file_of(tmp_path / "run" / "conditions", 3).write_bytes(b"cut off")
        assert rewritten() == [3]
        assert rewritten(size=SIZE // 2) == [0, 1, 2, 3]
        assert rewritten(size=SIZE // 2, make=other_vae) == [0, 1, 2, 3]

    def test_bad_rows(self, few, tmp_path, capsys):
        rows = [json.loads(line) for line in (few / "metadata.jsonl").read_text().splitlines()]
        rows[0]["prompt"], rows[3]["target"] = "", "gone.png"
        write_metadata(few, rows)
        with pytest.raises(ValueError, match=r"2 of 4 rows(?s:.*)row 0: (?s:.*)row 3: (?s:.*)--skip-bad-rows"):
            self.go(few, tmp_path / "run")
        self.go(few, tmp_path / "run", skip_bad_rows=True)
        assert "2 of 4 rows are skipped" in capsys.readouterr().err
        assert list(Conditions.open(tmp_path / "run" / "conditions").num_references) == [1, 2]

    def test_nothing_but_bad_rows(self, few, tmp_path):
        with pytest.raises(ValueError, match=r"4 of 4 rows(?s:.*)expected at least one row"):
            self.go(few, tmp_path / "run", size=256, skip_bad_rows=True)

    def test_a_size_that_does_not_fit(self, few, tmp_path):
        with pytest.raises(ValueError, match=r"size 60x60 .*nearest sizes are 48x48 and 64x64"):
            self.go(few, tmp_path / "run", size=60)

    def test_a_disk_that_is_too_small(self, few, tmp_path, monkeypatch):
        monkeypatch.setattr(precompute.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
        with pytest.raises(OSError, match=r"3 more rows like .* need .* GB more"):
            self.go(few, tmp_path / "run")

    @pytest.mark.parametrize(
        ("before", "free", "fits"), [(10, 270, True), (10, 269, False), (200, 0, True), (0, 299, False)]
    )
    def test_room_for_what_is_left(self, tmp_path, monkeypatch, before, free, fits):
        """Three rows of 100 bytes beside files of another size, which they replace; others stay."""
        monkeypatch.setattr(precompute.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, free))
        first, *left = (file_of(tmp_path, row) for row in range(4))
        first.write_bytes(bytes(100))
        for path in left if before else ():
            path.write_bytes(bytes(before))
        file_of(tmp_path, 9).write_bytes(bytes(1000))
        with nullcontext() if fits else pytest.raises(OSError, match=r"3 more rows like"):
            assert precompute.check_room(first, left)

    def test_views_and_what_was_left_out(self, tmp_path, capsys):
        """UNO's labels: the index knows which raw row each view is of, and it is told what was not good enough."""
        (tmp_path / "images").mkdir()
        for name in ("a", "b"):
            Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "images" / f"{name}.png")
        label = {"img_path1": "a.png", "img_path2": "b.png", "caption": {"img_path1": "one", "img_path2": "two"}}
        labels = [{**label, "vlm_filter_cot": {"score_final": score}} for score in (4.0, 3.5, 4.0)]
        (tmp_path / "labels.json").write_text(json.dumps(labels))
        self.go(tmp_path / "labels.json", tmp_path / "run")
        assert "2 of 3 rows kept" in capsys.readouterr().err
        assert Conditions.open(tmp_path / "run" / "conditions").sources == {0: 0, 1: 0, 2: 2, 3: 2}

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", '{"size": 64, "num_references": {"0": 1}}', b"\xff", '{"num_references": 3}']
    )
    def test_an_index_that_is_none(self, tmp_path, text):
        (tmp_path / "conditions").mkdir()
        (tmp_path / "conditions" / INDEX).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(WeightsError, match=r"index\.json cannot be read .*Run --phase precompute again"):
            train(pytest.fail, "stage1", tmp_path, steps=1)

    def test_an_index_without_rows(self, tmp_path):
        nothing = {"size": 64, "made_of": "", "num_references": {}, "sources": {}}
        (tmp_path / INDEX).write_text(json.dumps(nothing))
        with pytest.raises(WeightsError, match=r"index\.json lists 0 rows"):
            Conditions.open(tmp_path)

    def test_a_damaged_row(self, tmp_path):
        path = file_of(tmp_path, 0)
        path.write_bytes(b"cut off")
        with pytest.raises(WeightsError, match=r"cannot be read .*Run --phase precompute again"):
            read(path)


class TestEpochs:
    COUNTS = {row: 1 + row % 3 % 2 for row in range(40)}  # noqa: RUF012

    def test_an_epoch_has_every_row(self):
        epochs = Epochs(self.COUNTS, range(40), batch_size=4, seed=0)
        for epoch in (0, 1):
            numbers = range(epoch * epochs.batches_per_epoch, (epoch + 1) * epochs.batches_per_epoch)
            batches = [epochs.batch(number) for number in numbers]
            assert all(len(batch) == 4 and len({self.COUNTS[row] for row in batch}) == 1 for batch in batches)
            seen = Counter(row for batch in batches for row in batch)
            assert set(seen) == set(range(40)) and sum(seen.values()) < 40 + 2 * 4

    def test_it_depends_on_the_number_only(self):
        first, second = (Epochs(self.COUNTS, range(40), batch_size=4, seed=0) for _ in range(2))
        forward = [first.batch(number) for number in range(30)]
        assert [second.batch(number) for number in reversed(range(30))] == forward[::-1]
        assert forward[:10] != [Epochs(self.COUNTS, range(40), batch_size=4, seed=1).batch(n) for n in range(10)]

    def test_rows_held_out(self, conditions):
        rows, held_out = conditions.split(8)
        assert len(held_out) == LINES // 10 and sorted(rows + held_out) == list(range(LINES))
        assert conditions.split(8) == (rows, held_out)

    @pytest.mark.parametrize(("pairs", "kept_back"), [(1, 0), (2, 1), (9, 1), (30, 3), (400, 8)])
    def test_views_of_a_raw_row_are_held_out_together(self, pairs, kept_back):
        """Rows 2k and 2k + 1 show the same two pictures; every third raw row was skipped."""
        sources = {2 * k + view: 3 * k for k in range(pairs) for view in (0, 1)}
        conditions = Conditions(
            folder=HERE, size=SIZE, made_of="", num_references=dict.fromkeys(sources, 1), sources=sources
        )
        rows, held_out = conditions.split(8)
        assert sorted(rows + held_out) == list(range(2 * pairs)) and len(held_out) == 2 * kept_back
        assert not {row // 2 for row in rows} & {row // 2 for row in held_out}

    def test_a_sheet_of_rows_that_are_trained_on_says_so(self):
        assert shown_rows([1, 2], [3]) == [3] and shown_rows([], list(range(16))) == list(range(8))
        with pytest.warns(UserWarning, match=r"all 2 rows .* trained on: sheets show them"):
            assert shown_rows([1, 2], []) == [1, 2]


class TestLoss:
    def test_the_target_is_noise_minus_image(self, conditions):
        """A net that knows the image: x = (1 - sigma) image + sigma noise, so the velocity is (x - image) / sigma."""
        phase = phase_of(conditions, batch_size=2)
        targets = torch.stack([example.target for example in phase.feed.batch(0)])
        image = phase.denoiser.pack(targets)

        def knowing(noisy, sigma, *_):
            return (noisy - image) / sigma[:, None, None]

        phase.denoiser.velocity = knowing
        assert phase.loss(0)[0] < 1e-6
        phase.denoiser.velocity = lambda *given: -knowing(*given)
        assert phase.loss(0)[0] > 1

    @pytest.mark.parametrize("dynamic", [True, False])
    def test_sigmas(self, conditions, dynamic):
        """Their share below sigma is sigma / (s - (s - 1) sigma), s the shift of this resolution."""
        pipe, tokens = untrained_pipeline(), (SIZE // 16) ** 2
        options = {"use_dynamic_shifting": True} if dynamic else {"shift": 3.0}
        pipe.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(**options))
        drawn = FluxPhase(pipe, conditions, "stage1").drawn_sigmas(20000, torch.Generator().manual_seed(0))
        shift = torch.tensor(_shift(pipe.scheduler, tokens)).exp() if dynamic else torch.tensor(3.0)
        for level in (0.2, 0.5, 0.85, 0.95):
            share = (drawn <= level).float().mean()
            assert share == pytest.approx(float(level / (shift - (shift - 1) * level)), abs=0.012)
        assert drawn.min() > 0 and drawn.max() <= 1

    def test_shares_of_dropped_conditions(self):
        def shares(name):
            draws = [kept(DROPOUTS[name], 1, generator_of(0, step, torch.device("cpu"))) for step in range(4000)]
            found = Counter((bool(semantic), bool(identity)) for semantic, identity in draws)
            pairs = ((True, True), (True, False), (False, True), (False, False))
            return [found[pair] / len(draws) for pair in pairs]

        assert shares("stage1") == pytest.approx([0, 0.95, 0, 0.05], abs=0.02)
        assert shares("stage2") == pytest.approx([0.55, 0.1, 0.3, 0.05], abs=0.025)

    def test_every_stage_of_sampling_is_among_them(self):
        for name, stages in STAGES.items():
            drop = DROPOUTS[name]
            seen = {(1.0, 1.0): 1 - drop.semantic - drop.identity - drop.both}
            seen |= {(1.0, 0.0): drop.identity, (0.0, 1.0): drop.semantic, (0.0, 0.0): drop.both}
            assert all(seen[stage.semantic, stage.identity] > 0 for stage in stages)

    @pytest.mark.parametrize("name", ["stage1", "stage2"])
    def test_every_weight_has_a_gradient_whatever_is_dropped(self, conditions, name, monkeypatch):
        phase = phase_of(conditions, name, batch_size=2)
        for pair in ((True, True), (True, False), (False, True), (False, False)):
            monkeypatch.setattr("subjectgen.train.flux_phase.kept", lambda *_, pair=pair: map(torch.tensor, pair))
            phase.model.zero_grad(set_to_none=True)
            phase.loss(0)[0].backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in phase.model.parameters())
            learned = any(p.grad.any() for n, p in phase.model.named_parameters() if "pooling" in n)
            assert learned == pair[0]

    def test_the_sheet_paints_what_the_pipeline_paints(self, conditions, data):
        """But for the rounding of hidden states to bfloat16."""
        rows = [open_rows(str(data))[row] for row in (0, 1)]
        pipe = untrained_pipeline(stages="paper")
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        prompts, references = [row.prompt for row in rows], [list(row.references) for row in rows]
        expected = pipe(prompts, references, generator=generators, output_type="latent").images
        phase = FluxPhase(untrained_pipeline(), conditions, "stage2")
        with torch.no_grad():
            painted = phase.painted([conditions.read(row) for row in (0, 1)])
        torch.testing.assert_close(painted, expected, atol=0.03, rtol=0)
        assert (painted[0] - expected[1]).abs().max() > 0.3


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}


def fsdp_environment():
    """What `accelerate launch --config_file examples/fsdp.yaml` tells the processes it starts."""
    config = str(HERE.parent / "examples" / "fsdp.yaml")
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", config, "run.py"]))
    told = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in told.items() if name.startswith(("FSDP_", "ACCELERATE_"))}


def launched(out, data, word, sharded):
    """Two processes of flux_run.py, and what they say."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**ENVIRONMENT, **(fsdp_environment() if sharded else {})}
    command = [*launch, str(HERE / "flux_run.py"), str(out), str(data), word]
    return subprocess.run(command, check=True, env=environment, timeout=400, capture_output=True, text=True).stdout


def close_share(first, second):
    """Share of the numbers of two runs, in checkpoint and adapter, that are equal up to the order of sums."""
    files = [[load_file(run / "stage2" / NAME), *states_of(run)] for run in (first, second)]
    close = []
    for one, two in zip(*files, strict=True):
        assert one.keys() == two.keys()
        close += [torch.isclose(two[name], one[name], rtol=1e-3, atol=1e-5).flatten() for name in one]
    return torch.cat(close).float().mean().item()


def states_of(run):
    adapter = SubjectAdapter.load(run / "stage2" / "export")
    return adapter.lora_state, adapter.aggregator_state


def alone(begun, folder, open_pipeline):
    """A run of one process that sees both batches of every step."""
    shutil.copytree(begun, folder)
    train(open_pipeline, "stage2", folder, steps=2, batch_size=2, accumulate=2, rate=1e-2)
    return folder


@pytest.mark.slow
def test_two_processes_are_one(begun, tmp_path, run_folder, data):
    """In precompute, where they share the rows, and in training, where their gradients are averaged."""
    assert launched(run_folder, data, "precompute", sharded=False).count("weights are Tensor") == 1
    assert close_share(alone(begun, tmp_path / "alone", untrained_pipeline), run_folder) == 1
    found, expected = run_folder / "again" / "conditions", run_folder / "conditions"
    assert (found / INDEX).read_text() == (expected / INDEX).read_text()
    assert all(same(load_file(file), load_file(expected / file.name)) for file in found.glob("row-*"))


@pytest.mark.slow
def test_two_processes_that_share_the_weights_are_one(begun, tmp_path, run_folder, data):
    """FSDP of a bfloat16 base and float32 weights that learn, interrupted after the first of two steps, and resumed.

    Products are bfloat16: a sum in another order can make them round the other way, and AdamW begins with the signs
    of gradients, of which those near 0 may flip. With other batches hardly any number would be equal.
    """
    assert "step 1 is saved" in launched(run_folder, data, "stop", sharded=True)
    assert launched(run_folder, data, "resume", sharded=True).count("weights are DTensor") == 2
    assert close_share(alone(begun, tmp_path / "alone", bfloat16_pipeline), run_folder) > 0.99


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"phase": "stage3"}, r"'stage3': expected one of precompute, stage1, stage2"),
            ({"phase": "precompute"}, r"--phase precompute without --data"),
        ],
    )
    def test_arguments(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            train(pytest.fail, out=tmp_path, **options)

    @pytest.mark.parametrize("phase", ["precompute", "stage1"])
    def test_a_file_in_the_folder_s_place(self, tmp_path, phase):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match=r"file' is a file: expected a folder"):
            train(pytest.fail, phase, tmp_path / "file", data="x")

    def test_resuming_what_is_not_there(self, run_folder):
        with pytest.raises(FileNotFoundError, match=r"--resume: .*stage2.*is not there: .*Leave --resume out"):
            train(pytest.fail, "stage2", run_folder, steps=1, resume=True)

    def test_resuming_on_other_conditions_or_another_stage_1(self, run_folder):
        """What a stage begins with and is shown is noted: stage 1 is gone on with only on the same rows."""
        options = {"batch_size": 2, "accumulate": 1, "rate": 1e-2, "resume": True}
        index = run_folder / "conditions" / INDEX
        index.write_text(json.dumps({**json.loads(index.read_text()), "made_of": "others"}))
        with pytest.raises(ValueError, match=r"with conditions of sha256 \w{64} \(this is others\): expected the same"):
            train(untrained_pipeline, "stage1", run_folder, steps=3, **options)

    def test_stage2_before_stage1(self, run_folder):
        shutil.rmtree(run_folder / "stage1")
        with pytest.raises(FileNotFoundError, match=r"train --phase stage1 into .* first"):
            train(untrained_pipeline, "stage2", run_folder, steps=1)

    def test_a_stage_1_of_another_rank(self, run_folder):
        with pytest.raises(WeightsError, match=r"rank=4.*expected LoraSettings\(rank=2"):
            train(lambda: untrained_pipeline(rank=2), "stage2", run_folder, steps=1)

    def test_cached_conditions(self, conditions):
        with pytest.raises(ValueError, match=r"conditions='cached': expected 'joint'"):
            FluxPhase(untrained_pipeline(conditions="cached"), conditions, "stage1")

    def test_without_a_lora(self, conditions):
        with pytest.raises(ValueError, match=r"no LoRA named 'identity'"):
            FluxPhase(tiny_pipeline(conditions="joint"), conditions, "stage1")


class TestCommand:
    def test_arguments_reach_the_training(self, monkeypatch, tmp_path):
        called = {}
        monkeypatch.setattr("subjectgen.train.flux.train", lambda *a, **k: called.update(k, phase=a[1], out=a[2]))
        words = "train flux-internvl3 --phase precompute --data triples --size 768 --skip-bad-rows"
        result = CliRunner().invoke(app, [*words.split(), "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert called["phase"] == "precompute" and called["out"] == tmp_path and called["data"] == "triples"
        assert called["size"] == 768 and called["skip_bad_rows"]
        words = (
            "train flux-internvl3 --phase stage2 --batch-size 2 --accumulate 4 --rate 2e-4 --steps 9 --resume --seed 7"
        )
        result = CliRunner().invoke(app, words.split())
        assert result.exit_code == 0, result.output
        assert [called[name] for name in ("phase", "batch_size", "accumulate", "rate", "steps", "resume", "seed")] == [
            "stage2", 2, 4, 2e-4, 9, True, 7,
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("words", "unread"),
        [
            ("stage1 --data /does/not/exist --size 512", "does not read --data, --size: expected only --out, --steps"),
            ("stage2 --skip-bad-rows --steps 3", "does not read --skip-bad-rows: expected only"),
            ("precompute --data x --steps 3 --rate 1e-4 --resume", "does not read --steps, --resume, --rate: expected"),
            ("stage3 --data x", "expected one of precompute, stage1, stage2"),
        ],
    )
    def test_options_that_a_phase_does_not_read(self, tmp_path, words, unread):
        """Also one that is given with the value it has by itself."""
        words = ["train", "flux-internvl3", "--out", str(tmp_path), "--phase", *words.split()]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2 and unread in result.output

    def test_a_refusal_is_a_message(self, tmp_path):
        words = ["train", "flux-internvl3", "--phase", "stage1", "--out", str(tmp_path)]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2 and "Run --phase precompute again" in result.output
