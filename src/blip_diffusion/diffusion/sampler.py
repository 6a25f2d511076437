"""The sampling loop, for any denoiser and any scheduler of diffusers' Stable Diffusion family."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser
from blip_diffusion.errors import InputError
from blip_diffusion.protocols import Scheduler

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
    """
    latents = latents * scheduler.init_noise_sigma
    extra = _extra_arguments(scheduler, generators, eta)
    for index, timestep in enumerate(scheduler.timesteps):
        if stop is not None and stop():
            break
        prediction = denoiser(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        if hook is not None:
            latents = hook(index, timestep, latents)
    return latents


def check_scheduler(scheduler: Any) -> None:
    """Raise `InputError` for a scheduler without a variance schedule like Stable Diffusion's."""
    step = list(inspect.signature(getattr(scheduler, "step", _no_step)).parameters.values())
    needed = [p.name for p in step if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    config = getattr(scheduler, "config", {})
    suitable = needed == ["model_output", "timestep", "sample"] and hasattr(scheduler, "scale_model_input")
    suitable = (
        suitable and config.get("prediction_type") in ("epsilon", "sample", "v_prediction") and "beta_start" in config
    )
    if not suitable or config.get("use_flow_sigmas") or type(scheduler).__name__.endswith("InverseScheduler"):
        raise InputError(
            f"{type(scheduler).__name__} can't sample with this model: use one of Stable Diffusion's schedulers, for "
            "example EulerDiscreteScheduler.from_config(pipe.scheduler.config)."
        )


def try_scheduler(scheduler: Any) -> None:
    """Take a few steps with a copy of a scheduler, so that impossible settings are found when it is loaded.

    Raises whatever diffusers raises. Nothing is drawn from the global generators.
    """
    copy = type(scheduler).from_config(scheduler.config)
    with suppress(ImportError), torch.random.fork_rng(devices=[]):  # torchsde, for one scheduler, is named when used
        copy.set_timesteps(min(4, scheduler.config.num_train_timesteps))
        sample(lambda latents, _: latents, torch.zeros(1, 4, 8, 8), copy, generators=[torch.Generator()])


def _no_step() -> None: ...


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
