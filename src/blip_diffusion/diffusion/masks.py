"""Masks of an edit: compute one from two predictions, resize it to the latents, and paste pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.guidance import Denoiser

LEVEL = 0.8
"""Timestep at which predictions are compared, as a share of all timesteps."""
NOISES = 6
"""Number of noises over which the difference is averaged."""
COVERED = 0.1
"""Share of a latent's area above which a mask covers the latent."""


@torch.no_grad()
def difference_mask(
    both: Denoiser, clean: Tensor, noising: Noising, generator: torch.Generator, *, threshold: float, factor: int
) -> Tensor:
    """Return where the predictions for two texts differ (Couairon et al. 2023, "DiffEdit", section 3.2).

    Args:
        both: A denoiser of [source, target] batches of size 2 `NOISES`, without guidance.
        clean: Latents (1, C, h, w).
        noising: The forward process.
        generator: Source of the noises.
        threshold: In [0, 1], on the difference scaled from its minimum to its maximum.
        factor: Side of a latent in pixels.

    Returns:
        (1, 1, H, W) of zeros and ones: the difference interpolated to pixels, dilated by half a latent. Whole latents,
        dilated by one, covered twice as much background, for one hundredth more of the subject.
    """
    shape = (NOISES, *clean.shape[1:])
    noise = torch.randn(shape, generator=generator, device=generator.device).to(clean)
    timestep = int(LEVEL * noising.timesteps)
    noised = noising.noised(clean.expand(shape), noise, torch.full((NOISES,), timestep, device=clean.device))
    source, target = both(torch.cat([noised, noised]), torch.tensor(timestep, device=clean.device)).float().chunk(2)
    difference = (target - source).abs().mean(dim=(0, 1), keepdim=True)
    smooth = F.avg_pool2d(difference, 3, stride=1, padding=1, count_include_pad=False)
    low, high = smooth.amin(), smooth.amax()
    share = (smooth - low) / (high - low).clamp(min=1e-12)
    pixels = F.interpolate(share, scale_factor=factor, mode="bilinear", align_corners=False)
    return dilated((pixels > threshold).float(), factor // 2)


def dilated(mask: Tensor, radius: int = 1) -> Tensor:
    """Return a mask (B, 1, H, W) dilated by `radius` cells in each direction."""
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """Return the latents (B, 1, h, w) that a mask of pixels (B, 1, H, W) touches, dilated by one.

    Nearest-neighbour resizing would lose strokes that are thinner than a latent.
    """
    return dilated((F.avg_pool2d(mask, factor) > COVERED).float())


def pixel_mask(mask: Tensor, factor: int) -> Tensor:
    """Return a mask of latents (B, 1, h, w) as one of pixels (B, 1, H, W)."""
    return mask.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def feathered(mask: Tensor, radius: int) -> Tensor:
    """Return a mask (B, 1, H, W) that rises from 0 at its edge to 1 within about `radius` pixels.

    It is 0 wherever the mask is 0. Thin parts, which could not rise to 1, are not feathered.
    """
    solid = (mask > 0.5).float()
    if radius < 1:
        return solid
    size = 2 * radius + 1
    inner = F.avg_pool2d(solid, size, stride=1, padding=radius, count_include_pad=False)
    soft = ((inner - 0.5) * 2).clamp(0, 1) * solid
    nearby = F.max_pool2d(soft, 2 * size - 1, stride=1, padding=size - 1)  # largest value nearby
    return torch.where(nearby < 0.5, solid, soft)


def paste(photo: Tensor, edit: Tensor, mask: Tensor, *, feather: int) -> Tensor:
    """Return an edit (B, 3, H, W) within a mask (1 or B, 1, H, W) and exactly the photo's pixels outside it."""
    alpha = feathered(mask, feather).to(edit)
    return torch.where(alpha > 0, photo + alpha * (edit - photo), photo)
