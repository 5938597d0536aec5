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
from tiny_pipeline import picture, seeded_generators, tiny_pipeline
from tiny_qwen import random, tiny_qwen_pipeline
from torch import nn

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
