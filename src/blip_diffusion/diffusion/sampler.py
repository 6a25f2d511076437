"""The sampling loop, for any denoiser and any scheduler of diffusers' Stable Diffusion family."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.errors import InputError, reason
from blip_diffusion.protocols import Scheduler

STEP_ERRORS = (ValueError, TypeError, LookupError, AssertionError, ArithmeticError, NameError)
"""Errors that schedulers raise for settings and numbers of steps that don't fit each other."""
StepHook = Callable[[int, Tensor, Tensor], Tensor]
"""Called after a step with its index, timestep and latents; returns the latents to continue with."""


def sample(
    denoiser: Denoiser,
    latents: Tensor,
    scheduler: Scheduler,
    *,
    generators: list[torch.Generator] | None = None,
    eta: float | None = None,
    hook: StepHook | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tensor:
    """Integrate noise to clean latents over the timesteps set by `scheduler.set_timesteps`.

    Args:
        denoiser: Maps latents and a timestep to the network's prediction.
        latents: Gaussian noise (B, C, H, W) of unit variance.
        scheduler: A diffusers scheduler.
        generators: One generator per image, for schedulers that add noise.
        eta: Share of noise that DDIM-like schedulers add in each step, in [0, 1]; default: the scheduler's.
        hook: Called after each step with its index, timestep and latents; returns the latents to continue with.
        stop: Called before each step; sampling ends once it returns true.

    Returns:
        Clean latents (B, C, H, W).

    Raises:
        InputError: If the scheduler can't take a step.
    """
    latents = latents * scheduler.init_noise_sigma
    extra = _extra_arguments(scheduler, generators, eta)
    for index, timestep in enumerate(scheduler.timesteps):
        if stop is not None and stop():
            break
        prediction = denoiser(scheduler.scale_model_input(latents, timestep), timestep)
        try:
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        except STEP_ERRORS as error:
            raise InputError(
                f"{type(scheduler).__name__} can't take the step {index + 1} of {len(scheduler.timesteps)} "
                f"({reason(error)}): choose another number of steps, or another scheduler."
            ) from error
        if hook is not None:
            latents = hook(index, timestep, latents)
    return latents


def ddim_like(scheduler: Scheduler) -> DDIMScheduler:
    """Return a DDIM scheduler (Song et al. 2021), which samples deterministically, with another's noise levels."""
    return DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)


def initial_noise(shape: tuple[int, int, int], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Return noise (B, C, H, W), one generator per image, so that images are independent of the batch."""
    noises = [torch.randn((1, *shape), generator=g, device=g.device, dtype=like.dtype) for g in generators]
    return torch.cat([noise.to(like.device) for noise in noises])


def _extra_arguments(
    scheduler: Scheduler, generators: list[torch.Generator] | None, eta: float | None
) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {}
    if "eta" in accepted and eta is not None:
        extra["eta"] = eta
    if "generator" in accepted and generators is not None:
        extra["generator"] = generators if len(generators) > 1 else generators[0]
    return extra
