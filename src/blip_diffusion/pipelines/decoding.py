"""The decode step: latents to images of the requested type."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from blip_diffusion import images
from blip_diffusion.diffusion.latents import LatentCodec
from blip_diffusion.pipelines.acceleration import AccelerationMixin
from blip_diffusion.pipelines.checks import check_finite
from blip_diffusion.pipelines.safety import screened
from blip_diffusion.protocols import VAE


class Decoder(nn.Module):
    """The VAE's decoder as a separate module, to run on another engine."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return pixels.to(latents.dtype)


class DecodingMixin(AccelerationMixin):
    """From clean latents to images, by the VAE or the preset's tiny VAE."""

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        """Return images of the requested type."""
        if output_type == "latent":
            return latents
        return self._as_output(check_finite(self._decode_latents(latents).float()), output_type)

    def _as_output(self, pixels: Tensor, output_type: str) -> Any:
        """Return pixels (B, 3, H, W) in [0, 1] as images of the requested type, screened and marked if that is on."""
        pixels = screened(pixels, self.safety_checker, self.watermark)
        if output_type == "pt":
            return pixels
        return images.to_pil(pixels) if output_type == "pil" else pixels.permute(0, 2, 3, 1).cpu().numpy()

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in [0, 1]."""
        vae = self.vae
        if self._tiny_vae is not None:
            tiny = self._tiny_vae = self._tiny_vae.to(latents.device)  # the pipeline may have moved since
            tiny.use_slicing, tiny.use_tiling = vae.use_slicing, vae.use_tiling
            vae = tiny
        if self.preset.engine != "openvino":
            return LatentCodec(vae).decode(latents)
        run = self._on_engine("decoder", vae, lambda: Decoder(vae))
        on_engine = SimpleNamespace(
            config=vae.config, dtype=torch.float32, decode=lambda latents: DecoderOutput(sample=run(latents))
        )
        return LatentCodec(on_engine).decode(latents)
