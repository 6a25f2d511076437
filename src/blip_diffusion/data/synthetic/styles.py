"""Image styles that can be computed: filters of whole images, and effects on the subject only."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)
_PAPER = 0.965
_INK = 0.05


def luminance(images: Tensor) -> Tensor:
    """Return the luminance (B, 1, S, S) of images (B, 3, S, S)."""
    weights = torch.tensor(_LUMA, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def pixel_art(images: Tensor, blocks: int = 32) -> Tensor:
    """Return big square pixels of few colours. Tone and tint are quantised separately, so that grey stays grey."""
    size = images.shape[-1]
    small = F.interpolate(images, size=(blocks, blocks), mode="area")
    tone = luminance(small)
    tint = (small - tone) * 1.2
    palette = (tone * 6).round() / 6 + (tint * 7).round() / 7
    return F.interpolate(palette.clamp(0, 1), size=(size, size), mode="nearest")


def mosaic(images: Tensor, tiles: int = 24) -> Tensor:
    """Return square tiles with pale joints."""
    size = images.shape[-1]
    colours = F.interpolate(F.interpolate(images, size=(tiles, tiles), mode="area"), size=(size, size))
    within = torch.arange(size, device=images.device) * tiles % size < tiles  # the first pixel row of each tile
    joint = (within[:, None] | within[None, :]).to(images.dtype)  # (S, S)
    return colours * (1 - joint) + joint * 0.88


def black_and_white(images: Tensor) -> Tensor:
    """Return the luminance with a little more contrast."""
    return ((luminance(images) - 0.5) * 1.15 + 0.5).clamp(0, 1).expand_as(images)


def blurry(images: Tensor) -> Tensor:
    """Return a wide, smooth blur."""
    size = images.shape[-1]
    small = F.interpolate(images, size=(max(size // 6, 1), max(size // 6, 1)), mode="area")
    return F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixel art": pixel_art,
    "mosaic": mosaic,
    "black and white": black_and_white,
    "blurry": blurry,
}


def sketch(colour: Tensor, alpha: Tensor) -> Tensor:
    """Render pencil lines on paper. `colour` (B, 3, S, S) is premultiplied.

    Lines are the edges of the subject's own light and dark, spread to full contrast first, so that a black teapot is as
    clear as a white one; its outline comes from `alpha`.
    """
    tone = _tones(luminance(colour), alpha)  # (B, 1, S, S)
    lines = _gradient(tone * alpha + (1 - alpha)) * 0.9 * alpha + _gradient(alpha) * 1.6
    shade = (1 - tone) * alpha * 0.28
    dark = 1 - (1 - lines.clamp(0, 1)) * (1 - shade)
    return (_PAPER - (_PAPER - 0.15) * dark).expand_as(colour)


def silhouette(colour: Tensor, alpha: Tensor) -> Tensor:
    """Render the subject as a dark shape, premultiplied."""
    return (alpha * _INK).expand_as(colour)


def paint(colour: Tensor, alpha: Tensor, rgb: Tensor) -> Tensor:
    """Paint a subject in `rgb` (B, 3) and keep its shading; premultiplied in and out.

    Its tones, stretched about their mean, run from a dark to a light version of the paint, so that dark and grey
    subjects are painted as well as bright ones.
    """
    tone = _tones(luminance(colour), alpha)
    hue = rgb[:, :, None, None]
    dark, light = hue * 0.35, hue * 0.45 + 0.55
    low, high = torch.lerp(dark, hue, (tone * 2).clamp(0, 1)), torch.lerp(hue, light, (tone * 2 - 1).clamp(0, 1))
    return torch.where(tone < 0.5, low, high) * alpha


def _tones(light: Tensor, alpha: Tensor) -> Tensor:
    """Return the subject's tones in [0, 1] from premultiplied luminance, stretched about 0.5."""
    tone = light / alpha.clamp(min=1e-3)
    weight = alpha.sum((2, 3), keepdim=True).clamp(min=1e-3)
    mean = light.sum((2, 3), keepdim=True) / weight
    spread = ((((tone - mean) ** 2) * alpha).sum((2, 3), keepdim=True) / weight).sqrt()
    return ((tone - mean) * (0.2 / spread.clamp(min=0.02)) + 0.5).clamp(0, 1)


def _gradient(image: Tensor) -> Tensor:
    """Return the length of the Sobel gradient (B, 1, S, S)."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=image.device) / 4
    kernel = torch.stack((across, across.T))[:, None].to(image.dtype)  # (2, 1, 3, 3)
    slopes = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel)
    return slopes.square().sum(1, keepdim=True).add(1e-8).sqrt()
