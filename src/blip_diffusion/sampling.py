"""Sample images from a model during training, for inspection or scoring."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip_diffusion.diffusion.controlnet import Control, controlled_denoiser
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.guidance import Denoiser, guided
from blip_diffusion.diffusion.sampler import ddim_like, initial_noise, sample
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.subject_prior import SubjectPrior


class PersonalizedObjective(Protocol):
    """An objective that trains a model for one subject."""

    model: BlipDiffusion

    def states(self, scenes: Sequence[str]) -> Tensor:
        """Encode prompts, such as "on the beach" or "", to text states (B, L, D) with the subject in them."""
        ...


@torch.no_grad()
def sample_images(
    model: BlipDiffusion,
    states: Tensor,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    rescale: float | None = None,
    decoded: bool = True,
    controls: Sequence[Control] = (),
    guess_mode: bool = False,
) -> Tensor:
    """Sample images during training, each from the noise of its seed.

    Args:
        model: The model; its scheduler is set to `steps`.
        states: Text states (B, L, D).
        seeds: One seed per image.
        steps: Sampling steps; default: the model's.
        guidance: Guidance scale; 1 or less disables guidance; default: the model's.
        rescale: Guidance rescale in [0, 1]; default: the model's.
        decoded: Whether to decode latents to images.
        controls: ControlNets and T2I-Adapters with their control images.
        guess_mode: Whether controls act on the conditional prediction only.

    Returns:
        Images (B, 3, H, W) in [0, 1], or latents (B, C, h, w), in float32.
    """
    defaults = model.inference
    scale = defaults.guidance_scale if guidance is None else guidance
    count = steps or defaults.num_inference_steps
    if scale > 1:
        empty = model.text_states([""]).expand(len(states), -1, -1)
        both = _denoiser(model, torch.cat([empty, states]), controls, count, guess=guess_mode, doubled=True)
        denoiser = guided(both, scale, rescale=defaults.guidance_rescale if rescale is None else rescale)
    else:
        denoiser = _denoiser(model, states, controls, count, guess=guess_mode)
    side = int(model.unet.config.sample_size)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (model.latents.channels, side, side)
    noise = defaults.noise_scale * initial_noise(shape, generators, torch.empty(0, device=states.device))
    model.scheduler.set_timesteps(count, device=states.device)
    latents = sample(denoiser, noise, model.scheduler, generators=generators)
    return model.latents.decode(latents).float() if decoded else latents.float()


@torch.no_grad()
def sample_upscaled(
    model: BlipDiffusion,
    states: Tensor,
    enlarged: Tensor,
    generators: list[torch.Generator],
    *,
    noise_level: float = 0.1,
    steps: int | None = None,
    guidance: float = 1.0,
    empty: Tensor | None = None,
) -> Tensor:
    """Sample images from small ones, by a model that upscales.

    Args:
        model: The model; its scheduler is set to `steps`.
        states: Text states (B, L, D).
        enlarged: The small images, enlarged to the model's size (B, 3, H, W) in [0, 1].
        generators: One generator per image.
        noise_level: Noise of the small images in [0, 1), in shares of the timesteps; more hides their faults and lets
            more be invented (Saharia et al. 2022, section 2.4).
        steps: Sampling steps; default: the model's.
        guidance: Guidance scale; 1 or less disables guidance.
        empty: Text states (B, L, D) of the negative prompts; default: those of an empty prompt.

    Returns:
        Images (B, 3, H, W) in [0, 1] in float32.
    """
    count = steps or model.inference.num_inference_steps
    noising = Noising.from_scheduler(model.scheduler)
    condition = model.latents.encode(enlarged).float()
    shape = (model.latents.channels, *condition.shape[-2:])
    levels = torch.full((len(states),), int(noise_level * noising.timesteps), device=states.device)
    condition = noising.noised(condition, initial_noise(shape, generators, condition), levels)
    if guidance > 1:
        empty = model.text_states([""]).expand_as(states) if empty is None else empty
        both = model.upscaling_denoiser(torch.cat([empty, states]), condition, levels)
        denoiser = guided(both, guidance, rescale=model.inference.guidance_rescale)
    else:
        denoiser = model.upscaling_denoiser(states, condition, levels)
    noise = initial_noise(shape, generators, condition)
    model.scheduler.set_timesteps(count, device=states.device)
    return model.latents.decode(sample(denoiser, noise, model.scheduler, generators=generators)).float()


def _denoiser(
    model: BlipDiffusion,
    states: Tensor,
    controls: Sequence[Control],
    steps: int,
    *,
    guess: bool = False,
    doubled: bool = False,
) -> Denoiser:
    if not controls:
        return model.denoiser(states)
    return controlled_denoiser(model.unet, states, controls, steps=steps, guess=guess, doubled=doubled)


@torch.no_grad()
def category_states(model: BlipDiffusion, categories: Sequence[str]) -> Tensor:
    """Return text states (B, L, D) of categories such as "teapot"; "" is the unconditional one."""
    width = int(model.text_encoder.config.hidden_size)
    return model.text_states(list(categories))[..., :width].float()


@torch.no_grad()
def sample_subject_tokens(
    model: BlipDiffusion,
    prior: SubjectPrior,
    categories: Sequence[str],
    generators: list[torch.Generator],
    *,
    steps: int = 50,
    guidance: float = 2.0,
) -> Tensor:
    """Generate tokens of new subjects from their categories (Ramesh et al. 2022, section 2.2).

    Args:
        model: The model that the prior was trained for.
        prior: The prior.
        categories: B categories, such as "teapot".
        generators: One generator per subject.
        steps: DDIM steps.
        guidance: Guidance scale; 1 disables guidance.

    Returns:
        Subject tokens (B, Q, D), as `BlipDiffusion.subject_tokens` returns them for references.

    Example:
        >>> tokens = sample_subject_tokens(model, prior, ["teapot"], [torch.Generator().manual_seed(0)])
        >>> states = model.text_states(["a teapot on the beach"], tokens)
    """
    empty = [""] * len(categories)
    text = category_states(model, [*empty, *categories])

    def both(noised: Tensor, timestep: Tensor) -> Tensor:
        prediction: Tensor = prior(noised[..., 0], timestep.to(noised.device), text)
        return prediction[..., None]

    scheduler = ddim_like(model.scheduler)
    scheduler.set_timesteps(steps, device=text.device)
    noise = initial_noise((*prior.mean.shape, 1), generators, torch.empty(0, device=text.device))
    tokens = sample(guided(both, guidance), noise, scheduler)
    return prior.unstandardized(tokens[..., 0])


def sample_prompts(method: PersonalizedObjective, scenes: Sequence[str], *, seeds: int, steps: int | None) -> Tensor:
    """Sample images (B, 3, H, W) of the subject for every prompt, seed after seed."""
    return sample_images(method.model, method.states(list(scenes) * seeds), prompt_seeds(scenes, seeds), steps=steps)


def prompt_seeds(scenes: Sequence[str], seeds: int) -> list[int]:
    """Return one seed per image, the same for all prompts, so that only the words differ."""
    return [seed for seed in range(seeds) for _ in scenes]
