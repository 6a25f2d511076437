"""The one sampling loop: any denoiser, any scheduler of diffusers' Stable Diffusion family."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser

StepHook = Callable[[int, Tensor, Tensor], Tensor]
"""Called after a step with its index, timestep and latents; answers the latents to go on with."""


def sample(
    denoiser: Denoiser,
    latents: Tensor,
    scheduler: Any,
    *,
    generators: list[torch.Generator] | None = None,
    eta: float | None = None,
    hook: StepHook | None = None,
) -> Tensor:
    """Integrate noise to clean latents over the timesteps that `scheduler.set_timesteps` has chosen.

    Args:
        denoiser: Maps latents and a timestep to the network's prediction.
        latents: Gaussian noise (B, C, H, W) of unit variance.
        scheduler: A diffusers scheduler.
        generators: One generator per image, for schedulers that add noise.
        eta: Share of noise that DDIM-like schedulers add in each step, in [0, 1]; default: the scheduler's.
        hook: Called after each step with its index, timestep and latents; returns the latents to continue with.

    Returns:
        Clean latents (B, C, H, W).
    """
    latents = latents * scheduler.init_noise_sigma
    extra = _extra_arguments(scheduler, generators, eta)
    for index, timestep in enumerate(scheduler.timesteps):
        answer = denoiser(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(answer, timestep, latents, return_dict=False, **extra)[0]
        if hook is not None:
            latents = hook(index, timestep, latents)
    return latents


def ddim_like(scheduler: Any) -> DDIMScheduler:
    """Return DDIM (Song et al. 2021) with another scheduler's noise levels: deterministic sampling."""
    return DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)


def initial_noise(shape: tuple[int, int, int], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Return noise (B, C, H, W), one generator per image, so that images are independent of the batch."""
    drawn = [torch.randn((1, *shape), generator=g, device=g.device, dtype=like.dtype) for g in generators]
    return torch.cat([noise.to(like.device) for noise in drawn])


def _extra_arguments(scheduler: Any, generators: list[torch.Generator] | None, eta: float | None) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {}
    if "eta" in accepted and eta is not None:
        extra["eta"] = eta
    if "generator" in accepted and generators is not None:
        extra["generator"] = generators if len(generators) > 1 else generators[0]
    return extra
