"""Masks of an edit: where two predictions differ, how a mask is brought to the latents, and how pixels are pasted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.diffusion.guidance import Denoiser

LEVEL = 0.8
"""The share of all noise levels at which predictions are compared."""
NOISES = 6
"""Noises over which their difference is averaged."""
COVERED = 0.1
"""Share of a latent's area from which a mask covers it."""


@torch.no_grad()
def difference_mask(
    both: Denoiser, clean: Tensor, noising: Noising, generator: torch.Generator, *, threshold: float, factor: int
) -> Tensor:
    """Return where two texts want different images (Couairon et al. 2023, "DiffEdit", section 3.2).

    Args:
        both: A denoiser of [source, target] batches of size 2 `NOISES`, without guidance.
        clean: Latents (1, C, h, w).
        noising: The forward process.
        generator: Source of the noises.
        threshold: In [0, 1], of the difference from its least to its largest.
        factor: Pixels of a latent's side.

    Returns:
        (1, 1, H, W) of zeros and ones: the difference interpolated between latents, grown by half a latent. Whole
        latents, grown by one, covered twice as much background, for one hundredth more of the subject.
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
    return grown((pixels > threshold).float(), factor // 2)


def grown(mask: Tensor, reach: int = 1) -> Tensor:
    """Return a mask (B, 1, H, W) grown by some cells in each direction."""
    return F.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """Return the latents (B, 1, h, w) that a mask of pixels (B, 1, H, W) touches, grown by one.

    Nearest neighbours would lose what is thinner than a latent.
    """
    return grown((F.avg_pool2d(mask, factor) > COVERED).float())


def pixel_mask(mask: Tensor, factor: int) -> Tensor:
    """Return a mask of latents (B, 1, h, w) as one of pixels (B, 1, H, W)."""
    return mask.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def feathered(mask: Tensor, radius: int) -> Tensor:
    """Return a mask (B, 1, H, W) that rises from 0 at its edge to 1 within about `radius` pixels.

    It stays 0 wherever the mask is 0. Where the mask is too thin to rise, it stays as it is.
    """
    solid = (mask > 0.5).float()
    if radius < 1:
        return solid
    size = 2 * radius + 1
    inner = F.avg_pool2d(solid, size, stride=1, padding=radius, count_include_pad=False)
    soft = ((inner - 0.5) * 2).clamp(0, 1) * solid
    risen = F.max_pool2d(soft, 2 * size - 1, stride=1, padding=size - 1)  # how far it rises close by
    return torch.where(risen < 0.5, solid, soft)


def paste(photo: Tensor, edit: Tensor, mask: Tensor, *, feather: int) -> Tensor:
    """Return an edit (B, 3, H, W) within a mask (1 or B, 1, H, W) and the photo's own pixels outside of it, exactly."""
    alpha = feathered(mask, feather).to(edit)
    return torch.where(alpha > 0, photo + alpha * (edit - photo), photo)
