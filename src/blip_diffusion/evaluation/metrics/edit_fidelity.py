"""Metrics of edits within a mask, against the photo or the target image: PSNR, SSIM, share of unchanged pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

CLOSE = 2 / 255
"""Largest difference of a pixel that counts as unchanged."""
SIGMA, RADIUS = 1.5, 5
K1, K2 = 0.01, 0.03


def masked_psnr(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Return 10 log10(1 / MSE) (B,) of images (B, 3, H, W) in [0, 1] over the pixels of a mask (B, 1, H, W).

    The error is averaged over the mask's pixels. The value is at most 60 dB.
    """
    error = ((a - b).square().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
    return -10 * error.clamp(min=1e-6).log10()


def masked_ssim(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Return the mean structural similarity (B,) over a mask (Wang et al. 2004, equation 13; Gaussian window)."""
    both, mean = torch.cat([a, b]), _blurred
    mean_a, mean_b = mean(both).chunk(2)
    var_a, var_b = (mean(both.square()) - mean(both).square()).chunk(2)
    covariance = mean(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + K1**2) * (2 * covariance + K2**2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + K1**2) * (var_a + var_b + K2**2))
    return (similarity.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)


def unchanged_share(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Return the share (B,) of a mask's pixels whose channels all differ by at most `CLOSE`."""
    close = ((a - b).abs().amax(1, keepdim=True) <= CLOSE + 1e-6).float()
    return (close * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)


def _blurred(pixels: Tensor) -> Tensor:
    at = torch.arange(-RADIUS, RADIUS + 1, dtype=pixels.dtype)
    window = torch.exp(-(at**2) / (2 * SIGMA**2))
    window = (window / window.sum()).expand(pixels.shape[1], 1, -1)
    padded = F.pad(pixels, (RADIUS,) * 4, mode="reflect")
    rows = F.conv2d(padded, window[:, :, :, None], groups=pixels.shape[1])
    return F.conv2d(rows, window[:, :, None, :], groups=pixels.shape[1])
