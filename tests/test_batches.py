"""A file of rows: each line by itself, nothing twice and nothing missing after a kill, a subject encoded once."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_pipeline import picture, seeded_generators, tiny_pipeline
from typer.testing import CliRunner

from subjectgen.batches.manifest import Manifest
from subjectgen.batches.rows import grouped, read_rows
from subjectgen.batches.run import run
from subjectgen.batches.shard import Shard
from subjectgen.cli import app
from subjectgen.engine import Engine, EngineClosed
from subjectgen.engine.facts import ModelFacts
from subjectgen.png import read_recipe

GOOD = [
    {"prompt": "image 1 on red", "subjects": "red.png", "seed": 1},
    {"id": "wide", "prompt": "cat", "size": "96x48", "steps": 2, "stages": "free", "guidance_scale": 2},
    {"prompt": "the shoe", "subjects": [{"image": "blue.png", "name": "shoe", "box": [0, 0, 9, 9]}, "red.png"]},
    {"prompt": "image 1 on blue", "subjects": ["red.png"], "negative_prompt": "cat"},
]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def facts(pipe):
    return ModelFacts.of(pipe, "tiny")


@pytest.fixture
def folder(tmp_path):
    for colour in ("red", "blue"):
        picture(colour).save(tmp_path / f"{colour}.png")
    return tmp_path


def written(folder, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (file := folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    return file


def paint(pipe, facts, file, out, shard=Shard()):  # noqa: B008  (frozen)
    """What the command does, told of each row."""
    told = []
    rows, _ = read_rows(file)
    manifest = Manifest(out, shard.manifest, facts)
    with Engine(lambda _: pipe) as engine:
        run(
            manifest.missing(shard.of(grouped(rows))),
            engine,
            facts,
            manifest,
            under_way=4,
            on_row=lambda *each: told.append(each),
        )
        return told, engine.state


def entries(out):
    return [json.loads(line) for file in out.glob("manifest*.jsonl") for line in file.read_text().splitlines()]


class TestRows:
    def test_what_a_line_may_say(self, folder):
        rows, bad = read_rows(written(folder, GOOD))
        assert not bad
        assert [row.id for row in rows] == ["000001", "wide", "000003", "000004"]
        assert [row.painting.seed for row in rows][:1] == [1]
        wide = rows[1].painting
        assert (wide.width, wide.height, wide.num_inference_steps, wide.guidance_scale) == (96, 48, 2, 2)
        shoe, red = rows[2].read_subjects()
        assert (shoe.name, shoe.box, Path(shoe.image)) == ("shoe", (0, 0, 9, 9), folder / "blue.png")
        assert Path(red.image) == folder / "red.png"

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ('{"prompt": "a', "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("\udcff", "is not JSON"),
            ("[1]", "expected a JSON object"),
            ('{"prompt": "a", "prompts": 1}', "expected a JSON object with any of id, prompt"),
            ('{"seed": 1}', "has no prompt"),
            ('{"prompt": ""}', "prompt is empty"),
            (r'{"prompt": "a \ud800"}', "prompt='a \\ud800' holds half a character"),
            (r'{"prompt": "a", "negative_prompt": "\udc80"}', "negative_prompt='\\udc80' holds half"),
            ('{"prompt": "a", "id": "../a"}', 'id="../a"'),
            ('{"prompt": "a", "id": 5}', "id=5"),
            ('{"prompt": "a", "size": "wide"}', "size 'wide'"),
            ('{"prompt": "a", "size": true}', "size 'True'"),
            ('{"prompt": "a", "stages": "slow"}', "paper, free, faithful"),
            ('{"prompt": "a", "seed": -1}', "seed=-1"),
            ('{"prompt": "a", "subjects": 5}', "subject 5"),
            ('{"prompt": "a", "subjects": [{"path": "a"}]}', "expected a path, or an object with image"),
            ('{"prompt": "a", "subjects": {"image": "a", "box": [1]}}', "box=[1]"),
            ('{"prompt": "a", "subjects": ["a.safetensors", "b.png"]}', "encoded already"),
            ('{"prompt": "a", "subjects": [{"image": "a.safetensors"}, "b.png"]}', "encoded already"),
            ('{"prompt": "a", "subjects": {"image": "a.safetensors", "name": "cup"}}', "expected no name beside it"),
            ('{"prompt": "a", "subjects": {"image": null}}', "path null"),
            ('{"prompt": "a", "id": "WIDE"}', "is that of line 2"),
        ],
    )
    def test_a_bad_line_is_told_by_its_number(self, folder, line, words):
        file = folder / "jobs.jsonl"
        good = [json.dumps(each).encode() for each in GOOD]
        file.write_bytes(b"\n".join([*good[:2], b"", line.encode(errors="surrogateescape"), *good[2:]]))
        rows, (bad,) = read_rows(file)
        assert len(rows) == 4
        assert str(bad).startswith("line 4: ") and words in bad.error

    def test_no_file_and_no_line(self, folder):
        with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
            read_rows(folder / "none.jsonl")
        with pytest.raises(ValueError, match="is a folder: expected a file with a JSON object"):
            read_rows(folder)
        with pytest.raises(ValueError, match="has no lines"):
            read_rows(written(folder, [" "]))

    def test_groups_stand_together(self, folder):
        rows, _ = read_rows(written(folder, GOOD))
        assert [row.line for row in grouped(rows)] == [1, 4, 2, 3]

    def test_a_seed_of_its_own_is_the_same_in_every_run(self, folder):
        twice = [{"prompt": "a"}, {"prompt": "a"}]
        seeds = [[row.painting.seed for row in read_rows(written(folder, twice))[0]] for _ in range(2)]
        assert seeds[0] == seeds[1]
        assert seeds[0][0] != seeds[0][1]


class TestShard:
    def test_parts_are_all_and_none_is_twice(self):
        for count in (1, 2, 3, 7, 12):
            parts = [Shard(k + 1, count).of(range(10)) for k in range(count)]
            assert [each for part in parts for each in part] == list(range(10))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2"])
    def test_refuses(self, text):
        with pytest.raises(ValueError, match=f"--shard '{text}'"):
            Shard.parse(text)

    def test_as_torchrun_says(self, monkeypatch):
        assert Shard.launched() == Shard(1, 1)
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert Shard.launched() == Shard(3, 4) == Shard.parse("3/4")


class TestRun:
    def test_pictures_are_those_of_single_calls_and_remember_how(self, pipe, facts, folder):
        file, out = written(folder, GOOD), folder / "out"
        told, state = paint(pipe, facts, file, out)
        assert sorted(told) == [(line, "") for line in (1, 2, 3, 4)]
        assert state.subjects_encoded == 2  # red.png once for both its rows
        rows, _ = read_rows(file)
        for row in rows:
            asked = row.painting
            (alone,) = pipe(
                asked.prompt, row.read_subjects(), generator=seeded_generators(asked.seed),
                negative_prompt=asked.negative_prompt, **asked.shared,
            ).images  # fmt: skip
            saved = Image.open(out / f"{row.id}.png")
            pairs = zip(saved.tobytes(), alone.tobytes(), strict=True)
            assert saved.size == alone.size and max(abs(a - b) for a, b in pairs) <= 1
        recipe = read_recipe(out / "wide.png")
        assert (recipe["prompt"], recipe["stages"], recipe["steps"], recipe["guidance_scale"]) == (
            "cat",
            "free",
            "2",
            "2",
        )
        by_line = {entry["line"]: entry for entry in entries(out)}
        assert by_line[2] == {"file": "wide.png", "line": 2, **recipe}
        assert json.loads(by_line[3]["subjects"]) == ["blue.png", "red.png"]

    def test_a_row_that_cannot_be_painted_stops_no_other(self, pipe, facts, folder):
        rows = [
            {"prompt": "image 2", "subjects": "red.png"},
            {"prompt": "a", "subjects": "none.png"},
            {"prompt": "a", "size": 50},
            {"prompt": "a"},
        ]
        told, _ = paint(pipe, facts, written(folder, rows), folder / "out")
        assert {line: error[:20] for line, error in told} == {
            1: "the prompt speaks of", 2: f"image file '{folder}"[:20], 3: "size 50x50 (width x ", 4: "",
        }  # fmt: skip
        assert [entry["line"] for entry in entries(folder / "out")] == [4]

    def test_no_device_left(self, facts, folder):
        file, out = written(folder, GOOD), folder / "out"

        def load(_):
            raise OSError("no weights")

        with Engine(load) as engine, pytest.raises(EngineClosed, match="no weights"):
            manifest = Manifest(out, "manifest.jsonl", facts)
            run(read_rows(file)[0], engine, facts, manifest, under_way=4, on_row=print)

    def test_encoded_subjects(self, pipe, facts, folder):
        pipe.encode_subjects(picture("red")).save(folder / "red.safetensors")
        told, _ = paint(pipe, facts, written(folder, [{"prompt": "a", "subjects": "red.safetensors"}]), folder / "out")
        assert told == [(1, "")]


class TestGoingOn:
    def test_nothing_is_painted_twice(self, pipe, facts, folder):
        file, out = written(folder, GOOD), folder / "out"
        paint(pipe, facts, file, out, Shard(1, 2))
        assert len(entries(out)) == 2
        told, _ = paint(pipe, facts, file, out)
        assert len(told) == 2
        assert paint(pipe, facts, file, out)[0] == []
        assert sorted(entry["line"] for entry in entries(out)) == [1, 2, 3, 4]

    def test_what_a_kill_can_leave(self, pipe, facts, folder):
        file, out = written(folder, GOOD), folder / "out"
        paint(pipe, facts, file, out)
        manifest, before = out / "manifest.jsonl", entries(out)
        lines = manifest.read_bytes().splitlines(keepends=True)
        manifest.write_bytes(b"".join(lines[:2]) + lines[2][:30])  # a torn line, and a whole picture without one
        (out / f"{before[3]['id']}.png").unlink()
        (part := out / f".{before[3]['id']}.png.123.part").write_bytes(b"half")
        told, _ = paint(pipe, facts, file, out)
        assert told == [(before[3]["line"], "")]
        assert entries(out) == before
        assert not part.exists()

    def test_a_line_that_changed_is_painted_again(self, pipe, facts, folder):
        out = folder / "out"
        paint(pipe, facts, written(folder, GOOD), out)
        told, _ = paint(pipe, facts, written(folder, [{**GOOD[0], "prompt": "image 1 on blue"}, *GOOD[1:]]), out)
        assert told == [(1, "")]
        assert read_recipe(out / "000001.png")["prompt"] == "image 1 on blue"

    def test_another_model_is_refused(self, pipe, facts, folder):
        file, out = written(folder, GOOD[:1]), folder / "out"
        paint(pipe, facts, file, out)
        with pytest.raises(ValueError, match=r"has pictures by tiny \(.*expected other"):
            Manifest(out, "manifest.jsonl", replace(facts, name="other"))


class TestCommand:
    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        tiny_pipeline().save_pretrained(saved := tmp_path_factory.mktemp("model"))
        return str(saved)

    def test_exit_code_tells_of_bad_lines(self, model, folder):
        file = written(folder, [GOOD[0], "{"])
        result = CliRunner().invoke(app, ["batch", str(file), "--out", str(folder / "out"), "--model", model])
        assert result.exit_code == 1, result.output
        assert "line 2: b'{' is not JSON" in result.output
        assert "1 of 1 pictures are there, 1 lines could not be read" in result.output
        file = written(folder, [GOOD[0]])
        result = CliRunner().invoke(app, ["batch", str(file), "--out", str(folder / "out"), "--model", model])
        assert result.exit_code == 0, result.output

    def test_rows_are_not_taken_for_a_manifest(self, model, folder):
        (file := folder / "manifest.jsonl").write_text(text := '{"prompt": "a"}\n{"prompt": "no newline"}')
        result = CliRunner().invoke(app, ["batch", str(file), "--out", str(folder), "--model", model])
        assert result.exit_code == 2 and "has the name of a manifest" in result.output
        assert file.read_text() == text

    def test_a_folder_that_is_a_file_is_refused_before_the_model_is_loaded(self, folder):
        (out := folder / "out").touch()
        for each in (out, out / "deeper"):
            arguments = ["batch", str(written(folder, GOOD)), "--out", str(each), "--model", "maxi"]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 2 and f"'{out}' is a file: expected a folder" in result.output

    def test_a_model_that_is_none_is_refused(self, folder):
        file = written(folder, GOOD)
        result = CliRunner().invoke(app, ["batch", str(file), "--out", str(folder / "out"), "--model", "maxi"])
        assert result.exit_code == 2 and "there is no model 'maxi'" in result.output

    @pytest.mark.slow
    def test_killed_it_goes_on(self, model, folder):
        rows = [{"prompt": f"image 1 on red {k}", "subjects": "red.png", "steps": 12} for k in range(24)]
        file, out = written(folder, rows), folder / "out"
        arguments = ["batch", str(file), "--out", str(out), "--model", model, "--max-batch", "2"]
        killed = subprocess.Popen([sys.executable, "-m", "subjectgen", *arguments], stderr=subprocess.DEVNULL)
        while not (out.is_dir() and len(entries(out)) >= 3):
            assert killed.poll() is None
            time.sleep(0.01)
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        done = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
        assert 3 <= len(done) < 24
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert {name: (out / name).stat().st_mtime_ns for name in done} == done
        assert sorted(entry["line"] for entry in entries(out)) == list(range(1, 25))
        assert {file.name for file in out.glob("*.png")} == {f"{k:06d}.png" for k in range(1, 25)}
        assert not list(out.glob(".*"))

    @pytest.mark.slow
    def test_torchrun_shares_the_lines(self, model, folder):
        rows = [{"prompt": f"image 1 on red {k}", "subjects": "red.png", "steps": 2} for k in range(7)]
        file, out = written(folder, rows), folder / "out"
        arguments = ["-m", "subjectgen", "batch", str(file), "--out", str(out), "--model", model]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
        subprocess.run(torchrun, check=True, capture_output=True)
        parts = {file.name: file.read_text().splitlines() for file in out.glob("manifest*.jsonl")}
        assert {name: len(lines) for name, lines in parts.items()} == {
            "manifest-1-of-2.jsonl": 3,
            "manifest-2-of-2.jsonl": 4,
        }
        assert sorted(entry["line"] for entry in entries(out)) == list(range(1, 8))


@pytest.mark.slow
def test_on_a_cluster_of_two_machines(tmp_path, folder, monkeypatch):
    """By a worker of Ray Data on each, which has a manifest of its own; what is there is not painted again."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from subjectgen.batches.cluster import _machines

    tiny_pipeline().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"cat {k}", "steps": 1} for k in range(20)]
    file, out = written(folder, [*rows, {"prompt": "image 1"}]), folder / "out"
    arguments = ["batch", str(file), "--out", str(out), "--model", str(tmp_path / "model"), "--max-batch", "1", "--ray"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        for _ in range(2):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 1, result.output
            assert "line 21: the prompt speaks of 'image 1'" in result.output
            assert sorted(entry["line"] for entry in entries(out)) == list(range(1, 21))
            assert _machines() == 2  # a worker each, but who comes first may have painted all
    finally:
        ray.shutdown()
        cluster.shutdown()
