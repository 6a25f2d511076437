"""Images to latents and back (Rombach et al. 2022, section 3.1): the sole owner of the scaling factor."""

from typing import Any

import torch
from torch import Tensor


class LatentCodec:
    """A diffusers VAE, read in the units that the denoiser is trained in."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide: from the VAE's own depth."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """The number of channels of a latent."""
        return int(self.vae.config.latent_channels)

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to latents: the mean of the posterior, or with a generator a sample of it."""
        posterior = self.vae.encode(pixels.to(self.vae.dtype) * 2 - 1).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels in [0, 1]."""
        pixels: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return (pixels / 2 + 0.5).clamp(0, 1)
