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
    """Pure noise (B, C, H, W) to clean latents, over the timesteps that `scheduler.set_timesteps` has chosen.

    `eta` is how much noise DDIM and its kin put back at each step; the scheduler's own default where none is given.
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
    """DDIM (Song et al. 2021) over another scheduler's noise levels: each image goes one way from its own noise."""
    return DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)


def initial_noise(shape: tuple[int, int, int], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Noise (B, C, H, W), one generator an image, so that an image doesn't change with its neighbours."""
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
