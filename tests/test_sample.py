"""The loop over steps, with closed-form velocities instead of a network."""

import itertools

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from subjectgen.generate.sample import noised, sample, schedule
from subjectgen.generate.stages import Stage, resolve_stages, split_steps, stage_at

NOISE = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))


def scheduled(num_steps: int = 8) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.5)
    schedule(scheduler, num_steps, num_tokens=6)
    return scheduler


@pytest.mark.parametrize("num_steps", [1, 8])
def test_the_exact_velocity_leads_from_noise_to_the_image(num_steps):
    seen = []

    def velocity(tokens, sigma):
        assert torch.allclose(tokens, (1 - sigma) * IMAGE + sigma * NOISE, atol=1e-5)
        seen.append(float(sigma))
        return NOISE - IMAGE

    result = sample(NOISE, scheduled(num_steps), resolve_stages("faithful"), lambda stage: velocity)
    assert torch.allclose(result, IMAGE, atol=1e-5)
    assert seen[0] == 1.0 and seen == sorted(seen, reverse=True) and len(seen) == num_steps


def test_a_velocity_that_depends_on_place_is_an_euler_solver():
    """dx/dsigma = x, so each step multiplies by 1 + (next - sigma)."""
    scheduler = scheduled(5)
    sigmas = [2.5 * s / (1 + 1.5 * s) for s in (1.0, 0.8, 0.6, 0.4, 0.2)] + [0.0]
    expected = NOISE.clone()
    for sigma, after in itertools.pairwise(sigmas):
        expected = expected + (after - sigma) * expected
    result = sample(NOISE, scheduler, resolve_stages("faithful"), lambda stage: lambda tokens, sigma: tokens)
    assert torch.allclose(result, expected, atol=1e-5)


def test_every_step_belongs_to_its_stage_and_each_stage_is_prepared_once():
    stages = (Stage(0.99), Stage(0.7), Stage(0.0))
    prepared, steps = [], []

    def velocity_for(stage):
        prepared.append(stage)
        return lambda tokens, sigma: steps.append((stage, float(sigma))) or torch.zeros_like(tokens)

    sample(NOISE, scheduled(), stages, velocity_for)
    assert prepared == list(stages)
    assert all(stage is stage_at(stages, sigma) for stage, sigma in steps)


@pytest.mark.parametrize(("num_steps", "split"), [(20, [2, 2, 16]), (40, [3, 4, 33]), (100, [6, 10, 84])])
def test_a_step_at_the_end_of_a_stage_belongs_to_it(num_steps, split):
    """Of 20 unshifted steps the second begins at .95, which "paper" gives to meaning alone."""
    sigmas = schedule(FlowMatchEulerDiscreteScheduler(shift=1.0), num_steps, num_tokens=6)
    assert split_steps(resolve_stages("paper"), sigmas.tolist()) == split


def test_a_stage_without_steps_is_never_prepared():
    prepared = []
    stages = (Stage(0.5), Stage(0.49), Stage(0.0))
    sample(NOISE, scheduled(4), stages, lambda stage: prepared.append(stage) or (lambda tokens, sigma: tokens))
    assert stages[1] not in prepared and len(prepared) == 2


def test_after_step_sees_every_step_and_may_change_the_tokens():
    scheduler, seen = scheduled(4), []

    def after_step(step, timestep, tokens):
        seen.append((step, float(timestep)))
        return IMAGE if step == 3 else tokens

    result = sample(NOISE, scheduler, resolve_stages("faithful"), lambda _: lambda x, s: x, after_step=after_step)
    assert torch.equal(result, IMAGE)
    assert seen == [(step, float(timestep)) for step, timestep in enumerate(scheduler.timesteps)]


def test_interruption_keeps_what_is_there():
    seen = []

    def after_step(step, timestep, tokens):
        seen.append(tokens)
        return tokens

    result = sample(
        NOISE,
        scheduled(),
        resolve_stages("faithful"),
        lambda _: lambda x, s: x,
        after_step=after_step,
        interrupted=lambda: len(seen) == 2,
    )
    assert len(seen) == 2 and torch.equal(result, seen[-1])


def test_tokens_stay_float32_however_the_noise_comes():
    assert (
        sample(NOISE.bfloat16(), scheduled(), resolve_stages("faithful"), lambda _: lambda x, s: x).dtype
        == torch.float32
    )


@pytest.mark.parametrize("start", [0.9, 0.6, 0.05])
def test_from_a_stated_sigma_the_exact_velocity_leads_to_the_image(start):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.5)
    whole = schedule(scheduler, 8, num_tokens=6).tolist()
    levels = schedule(scheduler, 8, num_tokens=6, start=start)
    assert levels.tolist() == pytest.approx([start, *(s for s in whole if s < start)])

    def velocity(tokens, sigma):
        assert torch.allclose(tokens, (1 - sigma) * IMAGE + sigma * NOISE, atol=1e-5)
        return NOISE - IMAGE

    begun = noised(IMAGE, NOISE, start)
    result = sample(begun, scheduler, resolve_stages("faithful"), lambda stage: velocity)
    assert torch.allclose(result, IMAGE, atol=1e-5)


def test_a_start_leaves_nothing_behind():
    """The next schedule of the same scheduler is whole again."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    before = schedule(scheduler, 8, num_tokens=64)
    schedule(scheduler, 8, num_tokens=64, start=0.4)
    assert torch.equal(schedule(scheduler, 8, num_tokens=64), before)
    assert torch.equal(schedule(scheduler, 8, num_tokens=64, start=1.0), before)
