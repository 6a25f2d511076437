"""Previews: the images of latents that are still noisy, at some of the sampling steps."""

from typing import Any

from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.diffusion.latents import LatentCodec

PREVIEW_SIDE = 256
"""Longest side of a preview in pixels."""


def preview_steps(steps: int, previews: int) -> set[int]:
    """Return after which steps there is a preview: evenly spaced, never after the last one."""
    return {round(steps * number / (previews + 1)) for number in range(1, previews + 1)} - {0, steps}


def preview_image(pipe: Any, latents: Tensor) -> Image.Image:
    """Return the images of noisy latents (B, C, H / 8, W / 8) side by side, each at most 256 pixels high and wide."""
    decoded = images.to_pil(LatentCodec(pipe.vae).decode(latents))
    for image in decoded:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BICUBIC)
    return images.grid(decoded, len(decoded))
