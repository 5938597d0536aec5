"""What is on the device when: the MLLM leaves once it has encoded, whatever way of offloading moves it.

The CPU stands in for the device. Networks move in name only, but every hook runs.
"""

import pytest
import torch
from accelerate.hooks import (
    AlignDevicesHook,
    CpuOffload,
    add_hook_to_module,
    attach_align_device_hook,
)
from diffusers.hooks.group_offloading import ModuleGroup
from PIL import ImageChops
from tiny_pipeline import picture, seeded_generators, tiny_pipeline
from tiny_qwen import random, tiny_qwen_pipeline
from torch import nn

from subjectgen.engine import Engine, Painting
from subjectgen.engine.facts import ModelFacts
from subjectgen.weights import kept_aside

CPU = torch.device("cpu")


def painted_by_tiny(pipe):
    return pipe("a red cat", picture("red"), generator=seeded_generators(0), output_type="latent").images


def painted_by_qwen(pipe):
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64, "latents": random(1, 8, 4, 4, seed=0), "output_type": "latent"}
    return pipe("a red cat", picture("red", (64, 64)), **options).images


FAMILIES = pytest.mark.parametrize(
    ("build", "painted"),
    [(tiny_pipeline, painted_by_tiny), (tiny_qwen_pipeline, painted_by_qwen)],
    ids=["with aggregator", "qwen-image-2.1"],
)


def networks(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


@FAMILIES
def test_model_offload(build, painted, monkeypatch):
    """One network at a time, but for the VAE: it reads the references when others have work to do yet."""
    pipe, expected = build(), painted(build())
    names = {id(part): name for name, part in networks(pipe).items()}
    here, seen, enter = set(), [], CpuOffload.pre_forward

    def pre_forward(hook, module, *args, **options):
        """What accelerate does: the network before it leaves, then it comes."""
        before = hook.prev_module_hook
        here.discard(names[id(before.model)] if before is not None else None)
        here.add(names[id(module)])
        seen.append((names[id(module)], frozenset(here)))
        return enter(hook, module, *args, **options)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(painted(pipe), expected, atol=1e-5, rtol=0)

    painting = [step for step, (name, _) in enumerate(seen) if name == "transformer"]
    assert all(seen[step][1] <= {"transformer", "vae"} for step in painting)
    assert max(step for step, (name, _) in enumerate(seen) if name == "mllm") < painting[0]


@FAMILIES
def test_group_offload(build, painted, monkeypatch):
    """Layers of one network leave before those of the next arrive."""
    pipe, expected = build(), painted(build())
    owner = {id(module): name for name, part in networks(pipe).items() for module in part.modules()}
    here, together = [], set()
    arrive, leave = ModuleGroup.onload_, ModuleGroup.offload_

    def onload_(group):
        here.append(owner[id(group.onload_leader)])
        together.add(frozenset(here))
        arrive(group)

    def offload_(group):
        if owner[id(group.onload_leader)] in here:
            here.remove(owner[id(group.onload_leader)])
        leave(group)

    pipe.enable_group_offload(onload_device=CPU, offload_type="leaf_level")
    monkeypatch.setattr(ModuleGroup, "onload_", onload_)
    monkeypatch.setattr(ModuleGroup, "offload_", offload_)
    torch.testing.assert_close(painted(pipe), expected, atol=1e-5, rtol=0)
    assert together == {frozenset({name}) for name in networks(pipe)}


@FAMILIES
def test_sequential_offload(build, painted):
    """Weights have no values but while their own layer computes; so has what the pipeline reads besides."""
    pipe, expected = build(), painted(build())
    for part in networks(pipe).values():
        layer_by_layer(part)
        part.register_forward_pre_hook(lambda *_: others_have_no_values(pipe))
    torch.testing.assert_close(painted(pipe), expected, atol=1e-5, rtol=0)
    others_have_no_values(pipe)


@FAMILIES
def test_sequential_offload_changes_no_hash(build, painted, monkeypatch):
    """Weights are hashed where they rest, once, whether the model paints between or not."""
    pipe = build()
    expected = ModelFacts.of(pipe, "tiny").hash, pipe.fingerprints
    for part in networks(pipe).values():
        layer_by_layer(part)
    others_have_no_values(pipe)
    assert (ModelFacts.of(pipe, "tiny").hash, pipe.fingerprints) == expected

    monkeypatch.setattr("subjectgen.embeds.state_hash", lambda network: pytest.fail("hashed again"))
    painted(pipe)
    assert pipe.fingerprints == expected[1]


def test_sequential_offload_sees_that_weights_changed():
    pipe = tiny_pipeline()
    before = pipe.fingerprints["vae"]
    layer_by_layer(pipe.vae)
    next(iter(kept_aside(pipe.vae).values())).add_(1)
    assert pipe.fingerprints["vae"] != before


def test_an_engine_with_sequential_offload():
    """It encodes subjects, which are known by a hash of the model, and paints the same."""
    pipe, alone = tiny_pipeline(), tiny_pipeline()
    for part in networks(pipe).values():
        layer_by_layer(part)
    with Engine(lambda _: pipe) as engine:
        image = engine.submit(Painting(prompt="a red cat", subjects=picture("red"), seed=0)).result(60).image
    expected = alone("a red cat", picture("red"), generator=seeded_generators(0)).images[0]
    difference = ImageChops.difference(image, expected)
    assert max(high for _, high in difference.getextrema()) <= 1


def layer_by_layer(network):
    """As accelerate's cpu_offload, but for its map of tied weights, which takes CPU and device for two places."""
    state = dict(network.state_dict())
    add_hook_to_module(network, AlignDevicesHook(io_same_device=True), append=True)
    attach_align_device_hook(
        network, execution_device=CPU, offload=True, weights_map=state, offload_buffers=len(network._parameters) > 0
    )


def others_have_no_values(pipe):
    for part in networks(pipe).values():
        in_layers = [weight for child in part.children() for weight in child.parameters()]
        assert in_layers and all(weight.is_meta for weight in in_layers)
