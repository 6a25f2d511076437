"""What a model draws while it is trained, to be looked at or judged."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import guided
from blip_diffusion.diffusion.sampler import initial_noise, sample
from blip_diffusion.model import BlipDiffusion


class PersonalizedObjective(Protocol):
    """A method that learns one subject: it can say a scene with the subject in it."""

    model: BlipDiffusion

    def states(self, scenes: Sequence[str]) -> Tensor:
        """Scenes, as "on the beach", or "" for none, to text states (B, L, D) with the subject in them."""
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
    """Images (B, 3, H, W) in [0, 1], or their latents, of text states (B, L, D), from the noise of a seed each.

    `None` asks as the model wants to be asked.
    """
    asked = model.inference
    scale = asked.guidance_scale if guidance is None else guidance
    if scale > 1:
        empty = model.text_states([""]).expand(len(states), -1, -1)
        both = model.denoiser(torch.cat([empty, states]))
        denoiser = guided(both, scale, rescale=asked.guidance_rescale if rescale is None else rescale)
    else:
        denoiser = model.denoiser(states)
    side = int(model.unet.config.sample_size)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (model.latents.channels, side, side)
    noise = asked.noise_scale * initial_noise(shape, generators, torch.empty(0, device=states.device))
    model.scheduler.set_timesteps(steps or asked.num_inference_steps, device=states.device)
    latents = sample(denoiser, noise, model.scheduler, generators=generators)
    return model.latents.decode(latents).float() if decoded else latents.float()


def sample_prompts(method: PersonalizedObjective, scenes: Sequence[str], *, seeds: int, steps: int | None) -> Tensor:
    """The subject in every scene, seed after seed (B, 3, H, W)."""
    return sample_images(method.model, method.states(list(scenes) * seeds), prompt_seeds(scenes, seeds), steps=steps)


def prompt_seeds(scenes: Sequence[str], seeds: int) -> list[int]:
    """Of each image: one for all scenes, so that what differs is what the words say."""
    return [seed for seed in range(seeds) for _ in scenes]
