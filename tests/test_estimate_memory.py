"""Predicted memory against the networks' own code, against diffusers' offloading and against closed forms."""

import importlib.util
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload
from diffusers.hooks import apply_group_offloading
from test_estimate import PROMPTS, RED
from tiny_pipeline import tiny_pipeline
from tiny_qwen import tiny_qwen_pipeline
from torch import nn

from subjectgen.estimate.typical import Typical
from subjectgen.estimate.weights import NETWORK_OF, Weights, offload_of, resident, stored
from subjectgen.load import recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTrueSizes:
    @pytest.mark.parametrize(
        ("model", "settings"),
        [
            ("flux-internvl3", {}),
            ("flux-internvl3", {"conditions": "cached", "stages": "faithful"}),
            ("qwen-image-2.1", {"guidance_scale": 4.0}),
        ],
    )
    def test_within_ten_percent_of_what_the_code_allocates(self, benchmark, model, settings):
        pipe = benchmark.pipeline(model, **settings)
        call = {"prompt": benchmark.PROMPT, "subject_images": benchmark.pictures(1), "num_inference_steps": 2}
        told, found = pipe.estimate(**call).memory.activation_bytes, benchmark.measured(pipe, **call)
        assert set(told) == set(found)
        for station in told:
            assert told[station] == pytest.approx(found[station], rel=0.1), station

    def test_what_is_counted(self, benchmark):
        """Three times a million numbers at once, of which one is left."""
        before = benchmark.Shaped.ledger.live
        first = benchmark.Shaped(torch.empty(1000, 1000, device="meta"))
        second = first + 1
        third = (second * 2).view(-1)
        del first, second
        assert benchmark.Shaped.ledger.peak - before >= 3 * 4_000_000
        assert benchmark.Shaped.ledger.live - before == third.numel() * 4 == 4_000_000


def presence(pipe, call, monkeypatch):
    """Which networks are on the device whenever one is called, of a call with offload='model'.

    What accelerate moves is noted, not moved: it arrives, and "the previous one" of diffusers' chain leaves.
    """
    names = {id(part): name for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    there, seen = set(), []

    def pre_forward(hook, module, *args, **kwargs):
        if hook.prev_module_hook is not None:
            there.discard(names[id(hook.prev_module_hook.model)])
        there.add(names[id(module)])
        seen.append((names[id(module)], frozenset(there)))
        return args, kwargs

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    pipe.enable_model_cpu_offload(device="cpu")
    pipe(**call, output_type="pt")
    return seen


@pytest.mark.parametrize("build", [tiny_pipeline, tiny_qwen_pipeline])
@pytest.mark.parametrize("images", [None, [RED]], ids=["text only", "reference"])
def test_networks_on_the_device_are_those_that_accelerate_leaves_there(build, images, monkeypatch):
    pipe = build(stages="faithful")
    call = {"prompt": PROMPTS[0], "subject_images": images, "num_inference_steps": 2}
    told = pipe.estimate(**call).memory
    seen = presence(pipe, call, monkeypatch)
    assert offload_of(part for part in pipe.components.values() if isinstance(part, nn.Module)) == "model"
    sizes = told.weight_bytes
    for station in told.activation_bytes:
        calls = [there for name, there in seen if name == NETWORK_OF[station]]
        there = calls[0] if station in ("encode", "fuse", "identity") else calls[-1]
        assert told.resident_bytes["model"][station] == sum(sizes[name] for name in there), station


class TestWeights:
    def test_layer_by_layer(self):
        """Leaves of 20, 0 and 12 numbers in a row, and one of 6."""
        network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
        weights = {"mllm": Weights(network, torch.float32)}
        assert resident(weights, "none", encodes=False) == {"encode": 4 * 38}
        assert resident(weights, "group", encodes=False) == {"encode": 4 * (20 + 12)}
        assert resident(weights, "sequential", encodes=False) == {"encode": 4 * 20}

    def test_shared_weights_count_once(self):
        network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        network[1].weight = network[0].weight
        assert Weights(network, torch.float32).total == 64

    @pytest.mark.parametrize(("quantization", "byte"), [("int8", 1), ("fp8", 1), ("nf4", 0.5625)])
    def test_quantised_are_the_blocks_of_the_dit(self, quantization, byte):
        """FLUX.1-dev: 11.90 billion weights, all but 3.4e7 of them in linear layers of blocks, their biases apart."""
        network = recipe("flux-internvl3").skeleton()["transformer"]
        blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
        layers = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
        inside = sum(layer.weight.numel() for layer in layers)
        rest = sum(weight.numel() for weight in network.parameters()) - inside
        assert Weights(network, None, quantization).total == pytest.approx(inside * byte + rest * 2, rel=1e-6)
        assert rest < 0.01 * inside

    def test_an_unquantised_vae_stays(self):
        network = recipe("flux-internvl3").skeleton()["vae"]
        assert Weights(network, None, "int8").total == Weights(network).total

    def test_quantised_tensors_take_their_numbers_and_scales(self):
        torchao = pytest.importorskip("torchao.quantization")
        network = nn.Sequential(nn.Linear(64, 32, bias=False))
        torchao.quantize_(network, torchao.Int8WeightOnlyConfig())
        scales, zeros = 4 * 32, 32  # of each row
        assert stored(network[0].weight) == 64 * 32 + scales + zeros

    def test_weights_are_quantised_once(self):
        torchao, pipe = pytest.importorskip("torchao.quantization"), tiny_pipeline()
        before = pipe.estimate(PROMPTS[0]).memory.weight_bytes["transformer"]
        torchao.quantize_(pipe.transformer, torchao.Int8WeightOnlyConfig())
        assert pipe.estimate(PROMPTS[0]).memory.weight_bytes["transformer"] < before
        with pytest.raises(ValueError, match="quantization='int8': the transformer is quantised already"):
            pipe.estimate(PROMPTS[0], quantization="int8")


class TestHowItIsOffloaded:
    def test_not(self):
        assert offload_of([nn.Linear(2, 2)]) == "none"

    def test_layer_by_layer(self):
        network = nn.Sequential(nn.Linear(2, 2))
        cpu_offload(network, execution_device=CPU)
        assert offload_of([network]) == "sequential"

    def test_in_groups(self):
        network = nn.Sequential(nn.Linear(2, 2))
        apply_group_offloading(network, onload_device=CPU, offload_type="leaf_level")
        assert offload_of([network]) == "group"


class TestTypical:
    def test_equals_the_estimate_of_such_a_call(self):
        """mini, with as many words as are assumed."""
        typical, pipe = Typical(recipe("mini"), references=2), recipe("mini").load()
        told = pipe.estimate("image 1 and image 2 " * 8, [RED, RED.rotate(90)]).memory
        found = typical.memory()
        for station in ("identity", "sample", "to image"):
            assert found.activation_bytes[station] == pytest.approx(told.activation_bytes[station], rel=0.2)
        assert found.weight_bytes["transformer"] == told.weight_bytes["transformer"]

    def test_refuses_more_references_than_the_model_takes(self):
        with pytest.raises(ValueError, match="5 references: expected 0 to 4"):
            Typical(recipe("flux-internvl3"), references=5)
