"""The identity in the autoencoder's place, for diffusion in pixel space."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor


class PixelAutoencoder(ModelMixin, AutoencoderMixin, ConfigMixin):
    """An autoencoder without weights whose latents are the pixels in [-1, 1].

    With it, the latent diffusion model becomes a diffusion model of pixels, as Imagen's (Saharia et al. 2022), and
    objectives, sampler and pipeline stay as they are.

    Example:
        >>> vae = PixelAutoencoder()
        >>> LatentCodec(vae).factor, LatentCodec(vae).channels
        (1, 3)
    """

    use_slicing = False
    use_tiling = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, latent_channels: int = 3, block_out_channels: tuple[int, ...] = (1,), scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("precision", torch.zeros(()), persistent=False)  # has the data type and the device

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Return the images (B, 3, H, W) themselves as `latent_dist`."""
        return AutoencoderKLOutput(latent_dist=IdentityDistribution(x))

    def decode(self, z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Return the latents (B, 3, H, W) themselves as `sample`."""
        return DecoderOutput(sample=z) if return_dict else (z,)
