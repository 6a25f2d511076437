"""What the methods that tune on a user's photos share: what an error costs, and how a scene is drawn meanwhile.

They differ in what moves and in what stands in the prompt, which is the whole of the comparison.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip_diffusion.data.photos import PhotoBatch
from blip_diffusion.diffusion.denoisers import guided
from blip_diffusion.diffusion.noising import Noising, denoising_loss
from blip_diffusion.diffusion.sample import initial_noise, sample
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.method import Losses, StepContext


class Personal(Protocol):
    """A method that learns one subject: it can say a scene with the subject in it."""

    model: BlipDiffusion

    def states(self, scenes: Sequence[str]) -> Tensor:
        """Scenes, as "on the beach", or "" for none, to text states (B, L, D) with the subject in them."""
        ...


def photo_losses(
    model: BlipDiffusion,
    noising: Noising,
    batch: PhotoBatch,
    states: Tensor,
    context: StepContext,
    *,
    background: float,
    prior_states: Tensor | None = None,
    prior_weight: float = 1.0,
) -> Losses:
    """The denoising loss of photos under one text (1, L, D), and of the category's other members under theirs.

    `background` is what an error outside the mask weighs, against 1 inside. The second term is DreamBooth's prior
    preservation (Ruiz et al. 2023, equation 2).
    """
    latents = batch["latents"]
    denoiser = model.denoiser(states.expand(len(latents), -1, -1))
    importance = masked_importance(batch["mask"], background)
    loss = denoising_loss(denoiser, latents, noising, context.rng, importance=importance)
    losses = {"denoising": loss, "loss": loss}
    if prior_states is not None and "prior" in batch:
        others = batch["prior"]
        denoiser = model.denoiser(prior_states.expand(len(others), -1, -1))
        losses["prior"] = denoising_loss(denoiser, others, noising, context.rng)
        losses["loss"] = loss + prior_weight * losses["prior"]
    return losses


def masked_importance(mask: Tensor, background: float) -> Tensor:
    """(B, 1, H, W) of mean 1 for masks in [0, 1]."""
    weights = background + (1 - background) * mask
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


@torch.no_grad()
def draw(
    model: BlipDiffusion, states: Tensor, seeds: Sequence[int], *, steps: int | None = None, decoded: bool = True
) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1], or their latents, of text states (B, L, D): as the model wants to be asked."""
    asked = model.inference
    text, scale = states, asked.guidance_scale
    if scale > 1:
        text = torch.cat([model.text_states([""]).expand(len(states), -1, -1), states])
    denoiser = model.denoiser(text)
    if scale > 1:
        denoiser = guided(denoiser, scale, rescale=asked.guidance_rescale)
    side = int(model.unet.config.sample_size)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = initial_noise((model.latents.channels, side, side), generators, states)
    model.scheduler.set_timesteps(steps or asked.num_inference_steps, device=states.device)
    latents = sample(denoiser, noise, model.scheduler)
    return model.latents.decode(latents).float() if decoded else latents.float()
