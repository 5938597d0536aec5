"""SubjectEmbeds on disk, and who may use them."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_processor
from tiny_pipeline import picture, seeded_generators, tiny_pipeline

from subjectgen import SubjectEmbeds, SubjectPipeline
from subjectgen.weights import state_hash

RED, BLUE = picture("red"), picture("blue")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def encoded(pipe):
    return pipe.encode_subjects([RED, BLUE])


@pytest.fixture
def file(encoded, tmp_path):
    path = tmp_path / "deep" / "subject.safetensors"
    encoded.save(path)
    return path


def paint(pipe, subject):
    return pipe("a red cat", subject, generator=seeded_generators(0), output_type="latent", stages="faithful").images


class TestFile:
    def test_comes_back_bit_for_bit(self, pipe, file):
        assert torch.equal(paint(pipe, SubjectEmbeds.load(file)), paint(pipe, [RED, BLUE]))

    def test_holds_hashes_of_what_made_it(self, pipe, file):
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        assert state_hash(pipe.mllm) in metadata["fingerprints"]
        assert metadata["num_references"] == "2"
        assert SubjectEmbeds.load(file).num_references == 2

    def test_whole_or_not_at_all(self, pipe, file, monkeypatch):
        before = file.read_bytes()

        def full(tensors, path, metadata):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("subjectgen.embeds.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            pipe.encode_subjects(RED).save(file)
        assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
            SubjectEmbeds.load(tmp_path / "none.safetensors")

    def test_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"is a folder: expected a file written by SubjectEmbeds\.save\(\)"):
            SubjectEmbeds.load(tmp_path)

    def test_cut_off(self, file):
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"corrupt or cut off.*encode_subjects"):
            SubjectEmbeds.load(file)

    def test_another_kind_of_file(self, tmp_path):
        save_file({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
        with pytest.raises(ValueError, match=r"lora\.safetensors.*format None"):
            SubjectEmbeds.load(tmp_path / "lora.safetensors")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("grids", "[[2, 2]]"),
            ("grids", "[[2, 2], [2, 3]]"),
            ("grids", "[[-2, -2], [2, 2]]"),
            ("grids", "[4, 4]"),
            ("grids", "2"),
            ("grids", ""),
            ("names", "[null]"),
            ("names", "[null, 7]"),
            ("names", "{"),
            ("fingerprints", "[]"),
            ("fingerprints", '{"mllm": 7}'),
            ("fingerprints", "[" * 100_000),
            ("num_references", "two"),
            ("num_references", "1"),
            ("num_references", "-1"),
            ("position", "x"),
            ("position", "-1"),
            ("num_dropped", "0.5"),
        ],
    )
    def test_altered_metadata(self, file, name, value):
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        save_file(load_file(file), file, {**metadata, name: value})
        with pytest.raises(ValueError, match=r"subject\.safetensors' was altered \(.*encode_subjects"):
            SubjectEmbeds.load(file)

    def test_tensors_missing(self, file):
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        del tensors["prefix.keys"]
        save_file(tensors, file, metadata)
        with pytest.raises(ValueError, match=r"prefix\.keys"):
            SubjectEmbeds.load(file)


class TestAnotherModel:
    @pytest.mark.parametrize("component", ["mllm", "vae"])
    def test_with_other_weights_refuses_by_name(self, file, component):
        other = tiny_pipeline()
        with torch.no_grad():
            next(getattr(other, component).parameters()).add_(1e-3)
        with pytest.raises(ValueError, match=rf"different model: {component} \(made by .*encode_subjects"):
            paint(other, SubjectEmbeds.load(file))

    def test_with_another_normalisation_of_latents(self, file):
        other = tiny_pipeline()
        other.vae.register_to_config(scaling_factor=0.25)
        with pytest.raises(ValueError, match=r"different model: vae \("):
            paint(other, SubjectEmbeds.load(file))

    def test_with_another_template(self, file):
        other = tiny_pipeline()
        other.processor = tiny_processor()
        other.processor.chat_template = other.processor.chat_template.replace("assistant", "painter")
        with pytest.raises(ValueError, match=r"different model: processor \("):
            paint(other, SubjectEmbeds.load(file))

    def test_with_another_reference_size_names_both(self, file):
        other = tiny_pipeline(reference_size=48)
        with pytest.raises(ValueError, match=r"reference_size \(made by 32, here 48\)"):
            paint(other, SubjectEmbeds.load(file))

    def test_weights_changed_after_the_first_look(self, file):
        other, subject = tiny_pipeline(), SubjectEmbeds.load(file)
        paint(other, subject)
        with torch.no_grad():
            next(other.mllm.parameters()).add_(1e-3)
        with pytest.raises(ValueError, match=r"different model: mllm"):
            paint(other, subject)

    def test_another_transformer_may_use_them(self, pipe, file):
        other, subject = tiny_pipeline(), SubjectEmbeds.load(file)
        with torch.no_grad():
            for weight in other.transformer.parameters():
                weight.mul_(1.1)
        paint(pipe, subject)  # leaves condition K/V of its own behind
        assert torch.equal(paint(other, subject), paint(other, [RED, BLUE]))
        assert not torch.equal(paint(other, subject), paint(pipe, subject))

    def test_the_same_model_saved_and_loaded(self, pipe, file, tmp_path):
        pipe.save_pretrained(tmp_path / "model")
        again = SubjectPipeline.from_pretrained(tmp_path / "model")
        # Weights mapped from a file may lie at other addresses, which changes the order of sums in a product.
        torch.testing.assert_close(paint(again, SubjectEmbeds.load(file)), paint(pipe, [RED, BLUE]), atol=1e-5, rtol=0)


def test_hashing_happens_once(pipe, monkeypatch):
    hashed = []
    monkeypatch.setattr("subjectgen.embeds.state_hash", lambda module: hashed.append(module) or state_hash(module))
    fresh = tiny_pipeline()
    paint(fresh, RED)
    assert hashed == []  # images need no fingerprints
    subject = fresh.encode_subjects(RED)
    paint(fresh, subject)
    for weight in fresh.mllm.parameters():  # what offloading does: the same weights elsewhere
        weight.data = weight.data.clone()
    fresh.encode_subjects(BLUE)
    assert len(hashed) == 2  # the MLLM and the VAE


class TestBadInput:
    def test_nothing(self, pipe):
        with pytest.raises(ValueError, match="has none"):
            pipe.encode_subjects([])

    def test_too_many(self, pipe):
        with pytest.raises(ValueError, match=r"4 references.*at most 3"):
            pipe.encode_subjects([RED] * 4)

    def test_embeds_mixed_with_images(self, pipe):
        subject = pipe.encode_subjects(RED)
        with pytest.raises(ValueError, match="encode_subjects"):
            pipe("a red cat", [[subject, BLUE]])

    def test_more_references_than_the_model_takes(self, pipe):
        subject = pipe.encode_subjects([RED, BLUE])
        fewer = tiny_pipeline(max_references=1)
        with pytest.raises(ValueError, match=r"2 references.*at most 1"):
            fewer("a red cat", subject)
