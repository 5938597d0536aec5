"""Networks at their true sizes without weights: as many parameters as were published."""

import pytest
import torch

from subjectgen.load import recipe

FLUX, QWEN = "flux-internvl3", "qwen-image-2.1"


@pytest.fixture(autouse=True)
def qwen_has_its_diffusers(request):
    if "qwen" in request.node.name:
        pytest.importorskip("diffusers", minversion="0.41")


def num_parameters(name):
    return {part: sum(weight.numel() for weight in net.parameters()) for part, net in recipe(name).skeleton().items()}


@pytest.mark.parametrize(
    "name, part, billions", [(FLUX, "transformer", 11.90), (FLUX, "mllm", 7.94), (QWEN, "mllm", 8.77)]
)
def test_as_large_as_model_cards_say(name, part, billions):
    assert num_parameters(name)[part] / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize(
    "part, files, bytes_each",
    [("transformer", [9_968_332_504, 4_261_951_904], 2), ("vae", [1_350_989_512], 4)],  # as the Hub lists them
)
def test_qwen_image_fills_its_published_files(part, files, bytes_each):
    """All of a safetensors file is weights but for its header, a list of names and shapes."""
    header = sum(files) - bytes_each * num_parameters(QWEN)[part]
    assert 0 < header < 50_000


def test_flux_has_the_autoencoder_of_its_model_card():
    assert num_parameters(FLUX)["vae"] == 83_819_683


@pytest.mark.parametrize("name", [FLUX, QWEN])
def test_they_take_no_memory_and_say_which_dtype_they_would_have(name):
    for network in recipe(name).skeleton().values():
        tensors = [*network.parameters(), *network.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert network.dtype == torch.bfloat16


def test_mini_without_its_weights_has_their_shapes():
    pipe = recipe("mini").load()
    for name, network in recipe("mini").skeleton().items():
        trained = getattr(pipe, name).state_dict()
        assert {key: weight.shape for key, weight in network.state_dict().items()} == {
            key: weight.shape for key, weight in trained.items()
        }


def test_the_aggregator_fits_between_its_networks():
    networks = recipe(FLUX).skeleton()
    mllm, aggregator, transformer = (networks[name].config for name in ("mllm", "aggregator", "transformer"))
    assert aggregator["mllm_width"] == mllm.text_config.hidden_size
    assert aggregator["num_layers"] == mllm.text_config.num_hidden_layers + 1
    assert aggregator["width"] == transformer["joint_attention_dim"]
    assert aggregator["pooled_width"] == transformer["pooled_projection_dim"]
