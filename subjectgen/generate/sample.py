"""The way from noise to latents: a schedule, and a loop over steps that knows stages but no backbone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from subjectgen.generate.guide import Velocity
from subjectgen.generate.stages import Number, Stage, stage_at

AfterStep = Callable[[int, Tensor, Float[Tensor, "b n c"]], Float[Tensor, "b n c"]]


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for one whose steps are others, or draw noise that no generator of a call has a say in."""
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__}: expected a FlowMatchEulerDiscreteScheduler, such as the "
            "checkpoint's own"
        )
    if scheduler.config.get("stochastic_sampling"):  # diffusers before 0.34 has none
        raise ValueError(
            "scheduler has stochastic_sampling=True, whose noise no generator of a call decides: expected False. Set "
            "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=False)."
        )


def schedule(
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_steps: int,
    num_tokens: int,
    device: torch.device | str = "cpu",
    start: Number = 1.0,
) -> Float[Tensor, " steps"]:
    """Set the scheduler's steps, shifted for `num_tokens` noise tokens where it does so, and return their sigmas.

    start: the sigma to begin at. Of the steps from noise, those that begin below it are left.
    """
    sigmas = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas, mu=_shift(scheduler, num_tokens), device=device)
    if start < 1:
        _begin_at(scheduler, start)
    scheduler.set_begin_index(0)
    return _sigmas(scheduler)


def _begin_at(scheduler: FlowMatchEulerDiscreteScheduler, start: Number) -> None:
    sigmas = torch.as_tensor(scheduler.sigmas)
    below = sigmas[sigmas < start]
    scheduler.sigmas = torch.cat((below.new_tensor([start]), below))
    scheduler.timesteps = scheduler.sigmas[:-1] * scheduler.config["num_train_timesteps"]  # type: ignore[assignment]


def noised(image: Float[Tensor, "*b"], noise: Float[Tensor, "*b"], sigma: Number) -> Float[Tensor, "*b"]:
    """What lies between an image and noise at this sigma."""
    return (1 - sigma) * image + sigma * noise


def _sigmas(scheduler: FlowMatchEulerDiscreteScheduler) -> Float[Tensor, " steps"]:
    """Sigma at the start of each step."""
    return torch.as_tensor(scheduler.timesteps) / scheduler.config["num_train_timesteps"]


def _shift(scheduler: FlowMatchEulerDiscreteScheduler, num_tokens: int) -> float:
    """mu of the dynamic shift (unused by a static one): linear in the number of noise tokens, as FLUX defines it."""
    config = scheduler.config
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    share = (num_tokens - low) / (high - low)
    return config["base_shift"] + share * (config["max_shift"] - config["base_shift"])


def sample(
    noise: Float[Tensor, "b n c"],
    scheduler: FlowMatchEulerDiscreteScheduler,
    stages: Sequence[Stage],
    velocity_for: Callable[[Stage], Velocity],
    *,
    after_step: AfterStep | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Float[Tensor, "b n c"]:
    """Tokens at the end of the scheduled steps (see `schedule`), in float32.

    `velocity_for` is asked once per stage that has steps. `after_step(step, timestep, tokens)` returns the tokens to
    go on with. When `interrupted` turns true, the tokens are returned as they are.
    """
    tokens, acting, velocity = noise.float(), None, None
    timesteps, sigmas = torch.as_tensor(scheduler.timesteps), _sigmas(scheduler)
    for step, level in enumerate(sigmas.tolist()):
        if interrupted():
            break
        stage = stage_at(stages, level)
        if stage is not acting or velocity is None:
            acting, velocity = stage, velocity_for(stage)
        tokens = scheduler.step(velocity(tokens, sigmas[step]), timesteps[step], tokens, return_dict=False)[0]  # type: ignore[arg-type]
        if after_step is not None:
            tokens = after_step(step, timesteps[step], tokens)
    return tokens
