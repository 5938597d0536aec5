"""The recipe of Qwen-Image 2.1: whole on tiny stand-ins in the layout of the Hub, at its true shape without weights."""

from importlib.machinery import ModuleSpec

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_quantization import linear_layers, num_bytes, quantised_layers
from tiny_qwen import TinyQwenProcessor, random, tiny_qwen_components

from subjectgen.load import recipe, recipes
from subjectgen.models.dit.qwen_image_2_1 import QwenImage21Denoiser
from subjectgen.quantization import quantization_configs
from subjectgen.strict import check_network
from subjectgen.weights import WeightsError

HERE = ModuleSpec("here", None, origin="here.py")
PROMPT = "a red cat on the blue ground"
NAME = "qwen-image-2.1"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The recipe, with a folder for what it would download."""
    components = tiny_qwen_components()
    for part, component in {"text_encoder": components.pop("mllm"), **components}.items():
        component.save_pretrained(tmp_path / part)
    module = recipe(NAME)
    monkeypatch.setattr(module, "fetch", lambda *_: tmp_path)
    monkeypatch.setattr(module, "Qwen3VLProcessor", TinyQwenProcessor)  # the released one needs torchvision
    monkeypatch.setattr(module, "require", lambda *_: None)
    return module


def test_it_paints(module):
    pipe = module.load(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 96, "num_inference_steps": 2, "latents": random(1, 8, 4, 6, seed=0)}
    (picture,) = pipe(PROMPT, **options).images
    assert picture.size == (96, 64)


def test_defaults_are_those_its_authors_recommend(module):
    pipe = module.load(dtype=torch.float32)
    limits = pipe.limits
    assert (limits.num_inference_steps, limits.guidance_scale, limits.stages) == (40, 1.0, "faithful")
    assert (limits.max_references, limits.reference_shape, limits.image_size) == (10, "own", 1024)
    assert (limits.size_multiple, limits.reads_alpha) == (32, True)


def test_a_damaged_download_says_what_to_do(module, tmp_path):
    (tmp_path / "vae/config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"Qwen/Qwen-Image-2\.1.*again"):
        module.load()


DAMAGES = {
    "missing tensor": lambda part: drop(part, 3),
    "cut off": lambda part: weights_of(part).write_bytes(weights_of(part).read_bytes()[:1000]),
    "no weights": lambda part: weights_of(part).unlink(),
    "no configuration": lambda part: (part / "config.json").unlink(),
}


def weights_of(part):
    (file,) = part.glob("*.safetensors")
    return file


def drop(part, position):
    file = weights_of(part)
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[position])
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_half_downloaded(module, tmp_path, part, damage):
    """A loader that fills the gap with random weights must not have the last word."""
    DAMAGES[damage](tmp_path / part)
    component = "mllm" if part == "text_encoder" else part
    with pytest.raises(
        WeightsError, match=rf"Qwen/Qwen-Image-2\.1' cannot be loaded|{component}: .* holds \d+ weights"
    ):
        module.load()


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_quantised(module, quantization):
    """Near the plain one and smaller; each of these latents is about 1."""
    options = {"height": 64, "width": 96, "num_inference_steps": 2, "output_type": "latent"}
    pipes = [module.load(dtype=torch.float32, quantization=each) for each in ("none", quantization)]
    latents = [pipe(PROMPT, latents=random(1, 8, 4, 6, seed=0), **options).images for pipe in pipes]
    assert 0 < (latents[1] - latents[0]).abs().max() < 0.05
    for part in (lambda pipe: pipe.mllm.model.language_model.layers, lambda pipe: pipe.transformer.transformer_blocks):
        plain, quantised = (num_bytes(part(pipe)) for pipe in pipes)
        assert quantised < 0.5 * plain


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_quantised_are_the_layers_of_blocks(quantization, tmp_path):
    tiny_qwen_components()["transformer"].save_pretrained(tmp_path)
    configs = quantization_configs(quantization, torch.float32)
    transformer = diffusers.QwenImage21Transformer2DModel.from_pretrained(
        tmp_path, quantization_config=configs["transformer"], torch_dtype=torch.float32
    )
    in_blocks = {name for name in linear_layers(transformer) if name.startswith("transformer_blocks.")}
    assert quantised_layers(transformer) == in_blocks and len(in_blocks) == 2 * 7
    check_network("transformer", transformer, tmp_path)


def test_it_is_found_by_its_name():
    assert NAME in recipes()


def test_without_torchvision_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(
        "subjectgen.extras.find_spec",
        lambda name: None if name == "torchvision" else HERE,
    )
    with pytest.raises(ImportError, match=r"torchvision.*subjectgen\[qwen\]"):
        recipe(NAME).load()


def test_the_adapter_fits_the_released_net():
    """The defaults of the class are those of Qwen-Image 2.1; on the meta device tensors have shapes only."""
    with torch.device("meta"):
        transformer = diffusers.QwenImage21Transformer2DModel()
    denoiser = QwenImage21Denoiser(transformer)
    assert denoiser.num_channels == 64 and len(denoiser.transformer.attn_processors) == 32
