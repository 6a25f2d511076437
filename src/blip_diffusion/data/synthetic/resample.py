"""Antialiased resampling of image windows by two matrix products, and elastic deformations."""

import random

import torch
from torch import Tensor
from torch.nn import functional as F

_KNOTS = 5  # of the coarse grid of an elastic deformation
_MARGIN = 8  # source pixels beyond the frame that weights are normalised over; enough for an eightfold reduction


def resample_matrix(start: Tensor, length: Tensor, source: int, size: int, *, repeat_edges: bool = False) -> Tensor:
    """Return the matrix that reads `size` pixels from the window `[start, start + length)` of `source` pixels.

    A The filter is a triangle as wide as a step. A negative `length` mirrors. Pixels beyond the frame are zero, unless
    edges are repeated.
    """
    step = length / size  # (P,)
    radius = step.abs().clamp(min=1).view(-1, 1, 1)
    pixel = torch.arange(size, device=start.device) + 0.5
    centres = start[:, None] + step[:, None] * pixel  # (P, size)
    if repeat_edges:
        centres = centres.clamp(0.5, source - 0.5)
    at = torch.arange(-_MARGIN, source + _MARGIN, device=start.device) + 0.5
    weights = F.relu(1 - (centres[:, :, None] - at).abs() / radius)  # (P, size, source + 2 margins)
    inner = weights[:, :, _MARGIN:-_MARGIN]
    return inner / (inner if repeat_edges else weights).sum(2, keepdim=True).clamp(min=1e-6)


def read_windows(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return `rows @ image @ columns.T` for every image and channel."""
    n, channels, height, width = images.shape
    across = torch.bmm(images.reshape(n, channels * height, width), columns.transpose(1, 2))
    across = across.view(n, channels, height, -1)  # (P, K, H, S)
    return torch.matmul(rows[:, None], across)  # (P, K, S, S)


def elastic_grid(count: int, size: int, amount: float, rng: random.Random) -> Tensor:
    """Return the sampling grids of random smooth deformations (Simard et al. 2003).

    Args:
        count: Number of images, B.
        size: Side of the images in pixels.
        amount: Largest displacement, in sides of the image; each image has between none and all of it.
        rng: Source of randomness.

    Returns:
        (B, size, size, 2) coordinates in [-1, 1], as `torch.nn.functional.grid_sample` takes them.
    """
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    knots = torch.rand(count, 2, _KNOTS, _KNOTS, generator=generator) * 2 - 1
    strength = 2 * amount * torch.rand(count, 1, 1, 1, generator=generator)  # the grid is two units wide
    shift = F.interpolate(strength * knots, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    identity = torch.eye(2, 3).expand(count, -1, -1)
    return F.affine_grid(identity, [count, 1, size, size], align_corners=False) + shift


def warp_images(images: Tensor, grid: Tensor) -> Tensor:
    """Sample images (B, C, H, W) at a grid (B, H, W, 2); beyond their borders they are mirrored."""
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=False).clamp(0, 1)
