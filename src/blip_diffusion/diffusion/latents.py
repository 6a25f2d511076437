"""Images to latents and back (Rombach et al. 2022, section 3.1); only this module uses the scaling factor."""

from typing import Any

import torch
from torch import Tensor

from blip_diffusion.protocols import VAE


class LatentCodec:
    """A diffusers VAE with its scaling factor: latents have the scale that the denoiser is trained on."""

    def __init__(self, vae: VAE) -> None:
        self.vae = vae

    @property
    def factor(self) -> int:
        """Pixels per latent along a side, from the VAE's depth."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Number of channels of latents."""
        return int(self.vae.config.latent_channels)

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pixels (B, 3, H, W) in [0, 1] to the posterior's mean, or, with a generator, to a sample of it."""
        posterior = self.vae.encode(pixels.to(self.vae.dtype) * 2 - 1).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to pixels in [0, 1]."""
        pixels: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return (pixels / 2 + 0.5).clamp(0, 1)


def check_scale(config: Any) -> None:
    """Raise `ValueError` for a VAE whose scaling factor is no positive number, or that shifts its latents."""
    scale, shift = config.scaling_factor, config.get("shift_factor")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise ValueError(f"scaling_factor is {str(scale)[:60]}, use a number above 0")
    if shift:
        raise ValueError(f"shift_factor is {str(shift)[:60]}, which VAEs of Stable Diffusion 1.5 don't have")
