"""The recipe of the paper's pair: at its true shape without weights, and whole on tiny stand-ins."""

import shutil
from importlib.machinery import ModuleSpec

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from test_hub import latents
from test_quantization import BOUND, num_bytes
from tiny_adapter import trained_pipeline
from tiny_pipeline import tiny_pipeline

import subjectgen
from subjectgen import DualLayerAggregator, SubjectAdapter, SubjectProcessor, WeightsError, extras
from subjectgen.adapter_config import BaseNetwork
from subjectgen.generate.guide import plan
from subjectgen.generate.stages import resolve_stages
from subjectgen.load import recipe
from subjectgen.lora import add_identity, check_identity, identity_of
from subjectgen.request import Request, resolve

HERE = ModuleSpec("here", None, origin="here.py")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The repositories as folders, tiny, and an adapter trained on them."""
    folder, pipe = tmp_path_factory.mktemp("hub"), trained_pipeline()
    SubjectAdapter.of(pipe).save(folder)
    base = tiny_pipeline()
    for name in ("transformer", "vae", "scheduler"):
        getattr(base, name).save_pretrained(folder / "flux" / name)
    base.mllm.save_pretrained(folder / "internvl")
    base.processor.save_pretrained(folder / "internvl")
    return folder, pipe


@pytest.fixture
def module(shelf, monkeypatch):
    """The recipe, with these folders for what it would download."""
    module, (folder, _) = recipe("flux-internvl3"), shelf
    places = {module.FLUX: folder / "flux", module.INTERNVL: folder / "internvl"}
    monkeypatch.setattr(module, "fetch", lambda repo, files, commit: places[repo])
    monkeypatch.setattr(module, "InternVLProcessor", SubjectProcessor)  # the released one needs torchvision
    monkeypatch.setattr(module, "require", lambda *_: None)
    return module


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}])
def test_there_is_no_public_adapter(options):
    with pytest.raises(WeightsError, match=r"no trained adapter is public\. .*`subjectgen train flux-internvl3 --data"):
        subjectgen.load("flux-internvl3", **options)


def test_an_adapter_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"'nothing\.safetensors' is no adapter"):
        subjectgen.load("flux-internvl3", adapter="nothing.safetensors")


def test_a_model_that_is_whole_takes_none():
    with pytest.raises(ValueError, match=r"adapter='a/b' for 'mini', which is whole without one"):
        subjectgen.load("mini", adapter="a/b")


@pytest.fixture(scope="module")
def true():
    """The recipe, as it is."""
    return recipe("flux-internvl3")


@pytest.fixture(scope="module")
def transformer(true):
    """FLUX.1-dev with an untrained LoRA, on the meta device, where tensors have shapes only."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)  # the defaults are those of FLUX.1-dev
        add_identity(transformer, true.LORA)
    return transformer


class TestTrueShape:
    def test_lora(self, transformer):
        assert (shape := BaseNetwork.of_transformer(transformer)).num_blocks == 57 and shape.width == 3072
        settings, state = identity_of(transformer)
        assert (settings.rank, settings.alpha) == (512, 512)
        assert len(state) == 2 * (19 * 8 + 38 * 3)  # of every attention projection
        check_identity(transformer, settings, state)

    def test_aggregator_reads_all_layers_of_the_mllm_and_fits_the_text_stream(self, true, transformer):
        with torch.device("meta"):
            aggregator = DualLayerAggregator(**true.AGGREGATOR)
        assert list(aggregator.layers) == list(range(29)) and aggregator.mllm_shape == (29, 3584)
        assert aggregator.config["width"] == transformer.config["joint_attention_dim"]
        assert aggregator.config["pooled_width"] == transformer.config["pooled_projection_dim"]
        assert aggregator.mode == "dual"

    def test_settings_are_the_papers(self, true):
        stages = resolve_stages(true.SETTINGS["stages"])
        assert [stage.until for stage in stages] == [0.95, 0.85, 0.0]
        assert true.SETTINGS["conditions"] == "joint" and true.SETTINGS["guidance_scale"] == 2.5
        assert len(true.FLUX_COMMIT) == len(true.INTERNVL_COMMIT) == 40


class TestOnStandIns:
    def test_loads_and_paints_as_trained(self, module, shelf):
        folder, trained = shelf
        pipe = module.load(folder / "adapter.safetensors", dtype=torch.float32)
        assert pipe.parameters == trained.parameters
        torch.testing.assert_close(latents(pipe), latents(trained), atol=1e-5, rtol=0)

    def test_is_bfloat16_by_itself(self, module, shelf):
        pipe = module.load(shelf[0])
        networks = (pipe.mllm, pipe.aggregator, pipe.transformer, pipe.vae)
        assert {network.dtype for network in networks} == {torch.bfloat16}
        assert latents(pipe).isfinite().all()

    def test_training_starts_from_it(self, module, monkeypatch):
        tiny = {"num_layers": 4, "mllm_width": 32, "width": 32, "pooled_width": 16}
        monkeypatch.setattr(module, "AGGREGATOR", tiny)
        monkeypatch.setattr(module, "LORA", module.LoraSettings(rank=2, alpha=2, targets=module.TARGETS))
        pipe = module.untrained(torch.float32)
        config = SubjectAdapter.of(pipe).config
        assert (config.transformer.repo, config.mllm.repo) == (module.FLUX, module.INTERNVL)
        assert module.SETTINGS.items() <= pipe.parameters.items()
        resolved = resolve(Request(prompt="a cat"), pipe.limits)
        assert resolved.guidance.scale == 2.5 and resolved.guidance.embedded is None
        passes = [len(plan(stage, resolved.guidance)) for stage in resolved.stages]
        assert passes == [2, 2, 1]  # the last stage has nothing the empty text would take away

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda folder: next((folder / "transformer").glob("*.safetensors")).unlink(),
                r"FLUX\.1-dev' cannot be loaded",
            ),
            (lambda folder: (folder / "vae/config.json").unlink(), r"FLUX\.1-dev' cannot be loaded: .*config\.json"),
            (lambda folder: shutil.rmtree(folder / "scheduler"), r"FLUX\.1-dev' cannot be loaded: .*scheduler"),
        ],
    )
    def test_half_downloaded(self, module, shelf, tmp_path, monkeypatch, damage, message):
        shutil.copytree(shelf[0] / "flux", tmp_path / "flux")
        damage(tmp_path / "flux")
        monkeypatch.setattr(module, "fetch", lambda repo, files, commit: tmp_path / "flux")
        with pytest.raises(WeightsError, match=message):
            module.load(shelf[0])

    @pytest.mark.parametrize("quantization", ["none", "int8"])
    def test_an_mllm_that_lacks_a_tensor(self, module, shelf, tmp_path, monkeypatch, quantization):
        """transformers fills the gap with random weights."""
        shutil.copytree(shelf[0] / "internvl", tmp_path / "internvl")
        (file,) = (tmp_path / "internvl").glob("*.safetensors")
        tensors = load_file(file)
        tensors.pop(sorted(tensors)[3])
        save_file(tensors, file, {"format": "pt"})
        places = {module.FLUX: shelf[0] / "flux", module.INTERNVL: tmp_path / "internvl"}
        monkeypatch.setattr(module, "fetch", lambda repo, files, commit: places[repo])
        with pytest.raises(WeightsError, match=r"mllm: .* holds \d+ weights.* has \d+"):
            module.load(shelf[0], quantization=quantization)

    @pytest.mark.parametrize("quantization", ["int8", "fp8"])
    def test_quantised(self, module, shelf, quantization):
        """The adapter of a plain base acts on a quantised one; latents reach 4."""
        folder, trained = shelf
        pipe = module.load(folder, dtype=torch.float32, quantization=quantization)
        change = (latents(pipe) - latents(trained)).abs().max()
        assert 0 < change < BOUND[quantization]
        for name in ("mllm", "transformer"):
            assert num_bytes(getattr(pipe, name)) < 0.8 * num_bytes(getattr(trained, name))

    def test_torchvision_is_missing(self, module, shelf, monkeypatch):
        monkeypatch.setattr(module, "require", extras.require)
        monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "torchvision" else HERE)
        with pytest.raises(ImportError, match=r"torchvision is not installed.*subjectgen\[flux\]"):
            module.load(shelf[0])
