"""Opening models by name: the recipe of mini on stand-in weights, and what it refuses."""

import pytest
import torch
from diffusers import AutoencoderDC
from test_quantization import BOUND, num_bytes
from tiny_pipeline import picture, seeded_generators, tiny_pipeline

import subjectgen
from subjectgen import WeightsError, weights
from subjectgen.load import recipe
from subjectgen.weights import find_folder, write_manifest


def tiny_autoencoder():
    """Of mini's class: 8 pixels per latent, 4 channels."""
    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * 4,
        decoder_block_types=("ResBlock",) * 4,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
    ).eval()


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Stand-in weights where those of mini lie, and the pipeline they came from."""
    pipe = tiny_pipeline(stages="free", license="apache-2.0")
    pipe.vae = tiny_autoencoder()
    pipe.save_pretrained(tmp_path / "weights/mini")
    write_manifest(tmp_path / "weights", {"mini": ("Apache-2.0", "a test")})
    pipelines = find_folder("pipelines")
    monkeypatch.setattr(weights, "find_folder", {"weights": tmp_path / "weights", "pipelines": pipelines}.get)
    return pipe, tmp_path / "weights/mini"


def latents(pipe):
    return pipe("a red cat", picture("red"), generator=seeded_generators(0), output_type="latent").images


def test_recipe(shipped):
    pipe, _ = shipped
    loaded = subjectgen.load("mini")
    assert loaded.parameters == pipe.parameters
    assert loaded.num_timesteps == 0 and not loaded.vae.training
    torch.testing.assert_close(latents(loaded), latents(pipe), atol=1e-5, rtol=0)


def test_recipe_in_another_precision(shipped):
    loaded = recipe("mini").load(dtype=torch.bfloat16)
    networks = (loaded.mllm, loaded.aggregator, loaded.transformer, loaded.vae)
    assert {network.dtype for network in networks} == {torch.bfloat16}


def test_the_name_of_a_precision_is_none(shipped):
    with pytest.raises(ValueError, match=r"dtype='bfloat16': expected a torch\.dtype such as torch\.bfloat16"):
        subjectgen.load("mini", dtype="bfloat16")


def test_recipe_and_folder_are_one_model(shipped):
    _, folder = shipped
    hashes = {weights.model_hash(loaded.components) for loaded in (subjectgen.load("mini"), subjectgen.load(folder))}
    assert len(hashes) == 1


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_recipe_quantised(shipped, quantization):
    """Near the plain one, whose latents reach 4, and smaller."""
    plain, quantised = subjectgen.load("mini"), subjectgen.load("mini", quantization=quantization)
    assert 0 < (latents(quantised) - latents(plain)).abs().max() < BOUND[quantization]
    for name in ("mllm", "transformer"):
        assert num_bytes(getattr(quantised, name)) < 0.8 * num_bytes(getattr(plain, name))


def test_altered_weights(shipped):
    _, folder = shipped
    (file,) = (folder / "vae").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"mini/vae/.*altered"):
        subjectgen.load("mini")


def test_missing_weights(shipped):
    _, folder = shipped
    (folder / "transformer/config.json").unlink()
    with pytest.raises(WeightsError, match=r"mini/transformer/config\.json is missing"):
        subjectgen.load("mini")
