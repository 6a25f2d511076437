"""Conditioning by concatenation (Rombach et al. 2022, figure 3): the U-Net's input is [latents | condition]."""

from collections.abc import Callable

import torch
from torch import Tensor

from blip_diffusion.diffusion.guidance import Denoiser

Condition = Tensor | Callable[[Tensor], Tensor]
"""Channels (1 or B, K, H, W) that are concatenated to the latents, or a function of the latents that returns them."""


def concatenated(denoiser: Denoiser, condition: Condition) -> Denoiser:
    """Return a denoiser of latents (B, C, H, W) from a denoiser of latents with a condition (B, C + K, H, W).

    A condition of fewer rows is repeated, since guidance repeats the images of a batch.
    """

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        channels = condition(latents) if callable(condition) else condition
        channels = channels.to(latents).repeat(len(latents) // len(channels), 1, 1, 1)
        return denoiser(torch.cat([latents, channels], dim=1), timestep)

    return denoise


def upscaling_channels(latent_channels: int) -> int:
    """Return the U-Net's input channels with the latents of an enlarged small image: 6 for pixels."""
    return 2 * latent_channels


def inpainting_channels(latent_channels: int) -> int:
    """Return the U-Net's input channels with a mask and masked-image latents: 9 for Stable Diffusion's 4."""
    return 2 * latent_channels + 1
