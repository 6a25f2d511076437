"""Checks of schedulers: their kind, and for those in untrusted files their settings, noise levels and a trial."""

import inspect
from typing import Any

import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor

from blip_diffusion.diffusion.sampler import sample
from blip_diffusion.errors import InputError

TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
}
"""Accepted types of a setting and their words, by the type of its default."""
TRIAL_STEPS, USUAL_STEPS = 4, 50


def check_scheduler(scheduler: Any) -> None:
    """Raise `InputError` for a scheduler without a variance schedule like Stable Diffusion's."""
    step = list(inspect.signature(getattr(scheduler, "step", _no_step)).parameters.values())
    needed = [p.name for p in step if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    config, name = getattr(scheduler, "config", {}), type(scheduler).__name__
    suitable = needed == ["model_output", "timestep", "sample"] and hasattr(scheduler, "scale_model_input")
    suitable = suitable and config.get("prediction_type") in ("epsilon", "sample", "v_prediction")
    suitable = suitable and "beta_start" in config and not config.get("use_flow_sigmas")
    known = hasattr(scheduler, "alphas_cumprod") or name in KarrasDiffusionSchedulers.__members__
    if not (suitable and known) or name.endswith("InverseScheduler"):
        raise _unsuitable(name)


def check_settings(scheduler: Any) -> None:
    """Check a scheduler of an untrusted file, so that impossible settings are found when it is loaded.

    Nothing is drawn from the global generators.

    Raises:
        InputError: If it has no noise levels of Stable Diffusion's kind, or a trial of a few steps isn't finite.
        ValueError: For a setting of another type than its default, and noise levels that no model is trained on.

    Whatever else diffusers raises for its settings is raised too.
    """
    check_scheduler(scheduler)
    _check_types(scheduler)
    _check_noise_levels(scheduler)
    copy = type(scheduler).from_config(scheduler.config)
    highest = scheduler.config.num_train_timesteps
    for steps in (min(USUAL_STEPS, highest), min(TRIAL_STEPS, highest)):
        _check_timesteps(copy, steps, highest)
    with torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        latents = sample(lambda latents, _: 0.5 * latents, noise, copy, generators=[generator])
    if not latents.isfinite().all():
        raise ValueError("its steps give numbers that are not finite")


def _check_types(scheduler: Any) -> None:
    for name, parameter in inspect.signature(type(scheduler).__init__).parameters.items():
        value, kind = scheduler.config.get(name), type(parameter.default)
        if value is None or kind not in TYPES:
            continue
        accepted, words = TYPES[kind]
        unexpected = isinstance(value, bool) and kind is not bool  # Python's booleans are numbers
        if unexpected or not isinstance(value, accepted):
            raise ValueError(f"{name} is {str(value)[:60]!r}, use {words}")


def _check_noise_levels(scheduler: Any) -> None:
    """Raise unless the cumulative alphas fall from 1 to 0, which is reached at the last timestep at the earliest."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, Tensor):
        raise _unsuitable(type(scheduler).__name__)
    falls = bool((alphas.diff() <= 0).all()) and bool((alphas[:-1] > 0).all()) and 0 <= float(alphas[-1]) < 1
    if len(alphas) != scheduler.config.num_train_timesteps or not alphas.isfinite().all() or not falls:
        raise ValueError("its noise levels don't rise from 0 to 1: see beta_start, beta_end and num_train_timesteps")


def _check_timesteps(scheduler: Any, steps: int, highest: int) -> None:
    """Raise unless the timesteps of so many steps are those of a model."""
    scheduler.set_timesteps(steps)
    first, last = float(max(scheduler.timesteps)), float(min(scheduler.timesteps))
    if not 0 <= last <= first <= highest:
        raise ValueError(f"its timesteps are {last:.6g} to {first:.6g} of {highest}: see steps_offset")


def _unsuitable(name: str) -> InputError:
    return InputError(
        f"{name} can't sample with this model: use one of Stable Diffusion's schedulers, for example "
        "EulerDiscreteScheduler.from_config(pipe.scheduler.config)."
    )


def _no_step() -> None: ...
