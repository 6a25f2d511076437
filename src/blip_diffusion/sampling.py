"""Sample images from a model during training, for inspection or scoring."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import guided
from blip_diffusion.diffusion.sampler import initial_noise, sample
from blip_diffusion.model import BlipDiffusion


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

    Returns:
        Images (B, 3, H, W) in [0, 1], or latents (B, C, h, w), in float32.
    """
    defaults = model.inference
    scale = defaults.guidance_scale if guidance is None else guidance
    if scale > 1:
        empty = model.text_states([""]).expand(len(states), -1, -1)
        both = model.denoiser(torch.cat([empty, states]))
        denoiser = guided(both, scale, rescale=defaults.guidance_rescale if rescale is None else rescale)
    else:
        denoiser = model.denoiser(states)
    side = int(model.unet.config.sample_size)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (model.latents.channels, side, side)
    noise = defaults.noise_scale * initial_noise(shape, generators, torch.empty(0, device=states.device))
    model.scheduler.set_timesteps(steps or defaults.num_inference_steps, device=states.device)
    latents = sample(denoiser, noise, model.scheduler, generators=generators)
    return model.latents.decode(latents).float() if decoded else latents.float()


def sample_prompts(method: PersonalizedObjective, scenes: Sequence[str], *, seeds: int, steps: int | None) -> Tensor:
    """Sample images (B, 3, H, W) of the subject for every prompt, seed after seed."""
    return sample_images(method.model, method.states(list(scenes) * seeds), prompt_seeds(scenes, seeds), steps=steps)


def prompt_seeds(scenes: Sequence[str], seeds: int) -> list[int]:
    """Return one seed per image, the same for all prompts, so that only the words differ."""
    return [seed for seed in range(seeds) for _ in scenes]
