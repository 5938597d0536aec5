"""Quantised pipelines: near the one they came from, smaller; as strict, offloaded, adapted and saved as any other."""

import shutil
import sys

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from tiny_adapter import base_transformer, merged, trained_pipeline, velocity
from tiny_pipeline import picture, seeded_generators, tiny_pipeline
from torch import nn
from torchao.utils import TorchAOBaseTensor
from transformers import BitsAndBytesConfig as MllmBitsAndBytesConfig
from transformers import InternVLForConditionalGeneration

import subjectgen
from subjectgen import SubjectAdapter, SubjectEmbeds, WeightsError, extras
from subjectgen.lora import load_lora
from subjectgen.placement import place
from subjectgen.quantization import MLLM_KEPT, check_quantization, quantization_configs
from subjectgen.strict import check_network
from subjectgen.weights import model_hash, plain_tensors, state_hash

ON_CPU = ("int8", "fp8")
# Largest change of latents that reach 4.3, when weights are rounded to 1/127 or to 1/16 of the largest of their row.
BOUND = {"int8": 0.02, "fp8": 0.1}
DTYPES = (torch.float32, torch.bfloat16)


def latents(pipe):
    painted = pipe("a red cat", picture("red"), generator=seeded_generators(0), output_type="latent").images
    return painted.float()


def num_bytes(network):
    return sum(part.nbytes for tensor in network.state_dict().values() for part in plain_tensors(tensor))


def quantised_layers(network):
    linear = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    return {name for name, layer in linear.items() if isinstance(layer.weight, TorchAOBaseTensor)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    tiny_pipeline().save_pretrained(path)
    return path


def loaded(folder, quantization, **options):
    pipe = subjectgen.load(folder, quantization=quantization, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=ON_CPU)
def quantization(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(folder, quantization):
    """Tests leave it as it is."""
    return loaded(folder, quantization)


class TestNearAndSmaller:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_latents(self, folder, quantization, dtype):
        plain, quantised = (latents(loaded(folder, each, dtype=dtype)) for each in ("none", quantization))
        rounding = 0 if dtype == torch.float32 else 0.05  # of the other layers, once more and in another order
        assert 0 < (quantised - plain).abs().max() < BOUND[quantization] + rounding

    def test_bytes(self, folder, pipe):
        """A quarter of float32 in each layer, and a scale of 4 bytes a row."""
        plain = subjectgen.load(folder)
        for name in ("mllm", "transformer"):
            layers = quantised_layers(getattr(pipe, name))
            rows, numbers = 0, 0
            for layer in layers:
                weight = getattr(plain, name).get_submodule(layer).weight
                rows, numbers = rows + len(weight), numbers + weight.numel()
            saved = num_bytes(getattr(plain, name)) - num_bytes(getattr(pipe, name))
            assert 3 * numbers - 8 * rows <= saved <= 3 * numbers
            assert saved > 0.2 * num_bytes(getattr(plain, name))

    def test_layers(self, pipe):
        """All that lie in blocks, and none besides."""
        in_blocks = {name for name in linear_layers(pipe.transformer) if "transformer_blocks." in name}
        in_decoder = {name for name in linear_layers(pipe.mllm) if ".language_model.layers." in name}
        assert quantised_layers(pipe.transformer) == in_blocks and len(in_blocks) == 14 + 2 * 6
        assert quantised_layers(pipe.mllm) == in_decoder and len(in_decoder) == 3 * 7
        assert not quantised_layers(pipe.vae) and not quantised_layers(pipe.aggregator)


def linear_layers(network):
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]


class TestIdentityOfAModel:
    def test_hash(self, folder, pipe, quantization):
        again = loaded(folder, quantization)
        assert state_hash(again.transformer) == state_hash(pipe.transformer)
        with torch.inference_mode():
            assert state_hash(again.transformer) == state_hash(pipe.transformer)
        assert state_hash(again.transformer) != state_hash(subjectgen.load(folder).transformer)
        with torch.no_grad():
            next(iter(again.transformer.transformer_blocks)).attn.to_q.weight.scale.mul_(2)
        assert state_hash(again.transformer) != state_hash(pipe.transformer)

    def test_encoded_subjects(self, folder, pipe, tmp_path):
        pipe.encode_subjects(picture("red")).save(tmp_path / "red.safetensors")
        subject = SubjectEmbeds.load(tmp_path / "red.safetensors")
        options = {"generator": seeded_generators(0), "output_type": "latent"}
        assert (pipe("a red cat", subject, **options).images - latents(pipe)).abs().max() < 1e-5
        with pytest.raises(ValueError, match="come from a different model: mllm"):
            subjectgen.load(folder)("a red cat", subject)

    def test_hashed_once(self, pipe, monkeypatch):
        pipe.fingerprints  # noqa: B018
        monkeypatch.setattr("subjectgen.embeds.state_hash", lambda network: pytest.fail("hashed again"))
        pipe.to("cpu")
        assert pipe.fingerprints

    def test_saved_and_loaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        again = subjectgen.load(tmp_path)
        assert model_hash(again.components) == model_hash(pipe.components)
        torch.testing.assert_close(latents(again), latents(pipe), atol=1e-5, rtol=0)
        with pytest.raises(WeightsError, match=r"its mllm was saved quantised by torchao.*Leave quantization out"):
            subjectgen.load(tmp_path, quantization="int8")


class TestStrict:
    def damaged(self, folder, name, change):
        (file,) = (folder / name).glob("*.safetensors")
        with_metadata, metadata = load_file(file), {"format": "pt"}
        change(with_metadata)
        save_file(with_metadata, file, metadata)

    @pytest.mark.parametrize("name", ["mllm", "transformer"])
    def test_missing_tensor(self, folder, quantization, name, tmp_path):
        shutil.copytree(folder, tmp_path / "altered")
        self.damaged(tmp_path / "altered", name, lambda tensors: tensors.pop(sorted(tensors)[3]))
        with pytest.raises(WeightsError, match=rf"altered' cannot be loaded|{name}: .* holds \d+ weights.* has \d+"):
            loaded(tmp_path / "altered", quantization)

    @pytest.mark.parametrize("name", ["mllm", "transformer"])
    def test_unexpected_tensor_is_named(self, folder, quantization, name, tmp_path):
        shutil.copytree(folder, tmp_path / "altered")
        self.damaged(tmp_path / "altered", name, lambda tensors: tensors.update(stray=torch.zeros(3)))
        with pytest.raises(WeightsError, match=rf"{name}: .* holds \d+ weights.* has \d+"):
            loaded(tmp_path / "altered", quantization)

    def test_what_was_packed_in_4_bits_is_counted(self, folder):
        """The MLLM alone, for transformers has it on a CPU too."""
        config = MllmBitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=list(MLLM_KEPT)
        )
        mllm = InternVLForConditionalGeneration.from_pretrained(folder / "mllm", quantization_config=config)
        assert num_bytes(mllm) < 0.8 * num_bytes(tiny_pipeline().mllm)
        check_network("mllm", mllm, folder / "mllm")


class TestPlaced:
    """What else may be asked for together with it; on the CPU networks move in name only, but all hooks run."""

    def test_model_offload(self, folder, pipe, quantization):
        other = loaded(folder, quantization)
        other.enable_model_cpu_offload(device="cpu")
        assert isinstance(other.mllm._hf_hook, CpuOffload)
        torch.testing.assert_close(latents(other), latents(pipe), atol=1e-5, rtol=0)

    def test_group_offload(self, folder, pipe, quantization):
        pytest.importorskip("diffusers", minversion="0.41")  # before, diffusers asked for an accelerator all the same
        other = loaded(folder, quantization)
        other.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
        torch.testing.assert_close(latents(other), latents(pipe), atol=1e-5, rtol=0)

    def test_attention_backend(self, folder, pipe, quantization):
        other = loaded(folder, quantization, attention_backend="_native_math")
        torch.testing.assert_close(latents(other), latents(pipe), atol=1e-4, rtol=0)

    @pytest.mark.slow
    def test_compiled(self, folder, pipe, quantization, unchecked):
        other = loaded(folder, quantization, compile=True)
        torch.testing.assert_close(latents(other), latents(pipe), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def adapter():
    return SubjectAdapter.of(trained_pipeline())


class TestLora:
    def test_identity_and_style(self, folder, quantization, adapter):
        """Near the sum worked out by hand, which either LoRA alone is far from."""
        pipe = loaded(folder, quantization)
        adapter.apply(pipe)
        style = {key: 3 * tensor.flip(0) for key, tensor in adapter.lora_state.items() if "single" in key}
        assert str(load_lora(pipe, style, "style")) == f"{len(style)} of {len(style)} keys matched"
        expected = velocity(merged((adapter.lora_state, 2.0), (style, 1.0)))
        assert (velocity(pipe.transformer) - expected).abs().max() < BOUND[quantization]
        for other in (base_transformer(), merged((adapter.lora_state, 2.0)), merged((style, 1.0))):
            assert (velocity(other) - expected).abs().max() > 2 * BOUND[quantization]

    def test_the_adapter_comes_out_as_it_went_in(self, folder, quantization, adapter):
        pipe = loaded(folder, quantization)
        adapter.apply(pipe)
        assert SubjectAdapter.of(pipe).sha256 == adapter.sha256
        with pytest.raises(ValueError, match=r"has LoRA \(identity\)"):
            pipe.save_pretrained("nowhere")

    def test_of_another_base(self, folder, quantization, adapter):
        pipe = loaded(folder, quantization)
        pipe.transformer = FluxTransformer2DModel.from_config({**pipe.transformer.config, "num_layers": 2})
        with pytest.raises(WeightsError, match=r"of 4 blocks.*expected .* of 3 blocks"):
            adapter.apply(pipe)

    def test_merged_conditions_are_read_again(self, folder, quantization, adapter):
        """Kept keys and values are of other weights once a LoRA is merged."""
        pipe = loaded(folder, quantization)
        adapter.apply(pipe)
        pipe.register_to_config(conditions="cached")
        subject = pipe.encode_subjects(picture("red"))
        options = {"generator": seeded_generators(0), "output_type": "latent"}
        pipe("a red cat", subject, **options)
        pipe.transformer.fuse_lora(lora_scale=2.0)
        fresh = pipe.encode_subjects(picture("red"))
        first, second = (
            pipe("a red cat", each, generator=seeded_generators(0), output_type="latent").images
            for each in (subject, fresh)
        )
        assert (first - second).abs().max() < 1e-5


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(sys.modules["subjectgen.load"], "_opener", lambda model: pytest.fail("loading has begun"))


@pytest.mark.usefixtures("nothing_is_loaded")
class TestRefusals:
    def test_unknown(self):
        with pytest.raises(ValueError, match=r"quantization='int4': expected one of none, int8, fp8, nf4"):
            subjectgen.load("mini", quantization="int4")

    def test_four_bits_without_an_accelerator(self):
        with pytest.raises(ValueError, match=r"quantization='nf4' with device='cpu'.*'int8' or 'fp8'"):
            subjectgen.load("mini", quantization="nf4")

    @pytest.mark.parametrize("quantization", ["int8", "fp8", "nf4"])
    def test_layer_by_layer(self, quantization):
        with pytest.raises(ValueError, match=rf"quantization='{quantization}' with offload='sequential'.*'group'"):
            check_quantization(quantization, "cuda", "sequential")

    @pytest.mark.parametrize(("quantization", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
    def test_package_is_missing(self, quantization, package, monkeypatch):
        monkeypatch.setattr(extras, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=rf"{package} is not installed.*subjectgen\[quantize\]"):
            subjectgen.load("mini", quantization=quantization)


def test_four_bits_on_an_accelerator():
    """Nothing can be computed without one; what would be asked of bitsandbytes can be told."""
    check_quantization("nf4", "cuda", "group")
    configs = quantization_configs("nf4", torch.bfloat16)
    assert isinstance(configs["transformer"], BitsAndBytesConfig)
    assert isinstance(configs["mllm"], MllmBitsAndBytesConfig)
    for config in configs.values():
        assert (config.quantization_method(), config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)


def test_a_quantised_folder_names_the_missing_package(folder, tmp_path, monkeypatch):
    loaded(folder, "int8").save_pretrained(tmp_path)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"torchao is not installed.*subjectgen\[quantize\]"):
        subjectgen.load(tmp_path)


def test_place_takes_a_quantised_pipeline(pipe):
    assert place(pipe) is pipe
