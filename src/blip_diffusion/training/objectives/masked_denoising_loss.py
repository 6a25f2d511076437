"""The loss of all methods that tune on a user's photos, and weights of images by masks."""

import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.photos import PhotoBatch
from blip_diffusion.diffusion.forward_process import Noising, denoising_loss
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.training.objective import Losses, StepContext


def masked_denoising_losses(
    model: BlipDiffusion,
    noising: Noising,
    batch: PhotoBatch,
    states: Tensor,
    context: StepContext,
    *,
    background_weight: float,
    category: str = "",
    prior_weight: float = 1.0,
) -> Losses:
    """Return the masked denoising loss of photos, and the prior-preservation term if there are class images.

    loss = E[w(mask) |ε - ε_θ(x_t, t, states)|²] + prior_weight · E[|ε - ε_θ(x_t^class, t, states of the category)|²]
    (Ruiz et al. 2023, equation 2), or the same in v where the scheduler predicts v.

    Args:
        model: The model whose U-Net predicts.
        noising: The forward process.
        batch: Latents (B, C, H, W), masks (B, 1, H, W) in [0, 1], and optionally the latents of class images.
        states: Text states (B, L, D), or one (1, L, D) for all photos.
        context: Supplies the random generator.
        background_weight: Weight in [0, 1] of an error outside the mask, relative to 1 inside.
        category: The class of the prior term; empty for methods without one.
        prior_weight: Weight of the prior term.

    Returns:
        `loss`, `denoising` and, with class images, `prior`.
    """
    latents = batch["latents"]
    denoiser = model.denoiser(states.expand(len(latents), -1, -1))
    importance = mask_weights(batch["mask"], background_weight)
    loss = denoising_loss(denoiser, latents, noising, context.rng, importance=importance)
    losses = {"denoising": loss, "loss": loss}
    if category and "prior" in batch:
        class_latents = batch["prior"]
        class_states = model.text_states([subject_prompt("", category)])
        denoiser = model.denoiser(class_states.expand(len(class_latents), -1, -1))
        losses["prior"] = denoising_loss(denoiser, class_latents, noising, context.rng)
        losses["loss"] = loss + prior_weight * losses["prior"]
    return losses


def mask_weights(mask: Tensor, background_weight: float) -> Tensor:
    """Return loss weights (B, 1, H, W) of mean 1 for masks in [0, 1]."""
    weights = background_weight + (1 - background_weight) * mask
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


def check_background_weight(weight: float) -> None:
    """Raise `ConfigError` for a weight outside of [0, 1]."""
    if not 0 <= weight <= 1:
        raise ConfigError(f"background_weight is {weight}: use a number from 0 to 1.")


def subject_importance(alpha: Tensor, latents: Tensor, weight: float) -> Tensor:
    """Return weights (B, 1, H, W) for latents (B, C, H, W): `weight` on the subject, else 1, scaled to mean 1."""
    weights = 1 + (weight - 1) * F.interpolate(alpha, size=latents.shape[-2:], mode="area")
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)
