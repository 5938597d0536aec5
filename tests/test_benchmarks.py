"""The benchmarks run, and what they count is true; what they time is not judged here."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_pipeline import tiny_pipeline
from tiny_subjects import cutout_folder

from subjectgen.data.render import Renderer
from subjectgen.data.subjects import load_subjects

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def conditions():
    return script("conditions")


def test_the_next_picture_of_a_subject_reads_no_reference(conditions):
    rows = conditions.compare(tiny_pipeline(), rounds=1, steps=2)
    assert set(rows) == {(mode, count) for mode in ("joint", "cached") for count in (0, 1, 2, 4)}
    for (mode, count), row in rows.items():
        assert row.first.reads == (count if mode == "cached" else 0)
        assert row.again.reads == 0
        assert 0 < row.first.step < row.first.image
    table = conditions.comparison_table(rows, tiny_pipeline(), steps=2)
    assert table.row_count == 8


def test_reads_are_seen(conditions):
    """From pictures, a call reads them with the MLLM, the VAE and the transformer."""
    pipe = conditions.variant(tiny_pipeline(), "cached")
    images = conditions.references(pipe, 2)
    with conditions.reference_reads(pipe) as reads:
        pipe("a cat", images, num_inference_steps=2)
    assert sorted(reads) == ["mllm", "transformer", "transformer", "vae", "vae"]


def test_the_networks_alone_do_the_same_work(conditions):
    """Replayed, the forwards give what they gave in the pipeline."""
    pipe = tiny_pipeline()
    images, outputs = conditions.references(pipe, 1), []
    hook = pipe.vae.decoder.register_forward_hook(lambda *given: outputs.append(given[-1]))
    forwards = conditions.recorded(pipe, lambda: pipe("a cat", images, num_inference_steps=2))
    for forward in forwards:
        conditions.replay(*forward)
    hook.remove()
    networks = [network for network, _, _ in forwards]
    assert networks.count(pipe.transformer) == 2 + 2  # steps, and two readings of conditions
    assert networks.count(pipe.mllm) == 2  # references, prompt
    assert {pipe.aggregator, pipe.vae.encoder, pipe.vae.decoder} <= set(networks)
    torch.testing.assert_close(outputs[1], outputs[0])


def test_pictures_per_second(tmp_path):
    renderer = Renderer(load_subjects(cutouts=cutout_folder(tmp_path, seen=3, unseen=0)))
    assert script("data").pictures_per_second(renderer, 2, 0.2) > 1
