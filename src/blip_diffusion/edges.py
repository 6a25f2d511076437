"""Canny edges (Canny 1986) of batches of images, equal to those of OpenCV's `Canny`, in torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = 30.0, 70.0
"""Thresholds of the published demonstration."""
TANGENT = 0.4142135623730950488  # of 22.5 degrees


def canny_edges(pixels: Tensor, low: float = LOW, high: float = HIGH) -> Tensor:
    """Return the edges of images, equal to those of OpenCV with the same thresholds.

    Args:
        pixels: (B, 3, H, W) in [0, 1]; they are rounded to 8 bits first.
        low: Least slope that continues an edge, of |dx| + |dy| after a 3 x 3 Sobel filter on [0, 255].
        high: Least slope that starts an edge.

    Returns:
        (B, 1, H, W): 1 on an edge, 0 elsewhere. Of the three colours, the one with the strongest slope counts.

    Example:
        >>> canny_edges(torch.zeros(1, 3, 8, 8)).sum()
        tensor(0.)
    """
    dx, dy = _slopes((pixels * 255).round())
    strength = dx.abs() + dy.abs()
    ridge = (strength > low) & _is_ridge(strength, dx, dy)
    return _connected(ridge & (strength > high), ridge).float()


def _slopes(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes (B, 1, H, W) to the right and down of images (B, 3, H, W), of the strongest channel."""
    smooth, step = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([torch.outer(smooth, step), torch.outer(step, smooth)])[:, None].to(pixels)
    single = F.pad(pixels, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]  # (3 B, 1, H + 2, W + 2)
    slopes = F.conv2d(single, kernels).view(*pixels.shape[:2], 2, *pixels.shape[2:])  # (B, 3, 2, H, W)
    strongest = slopes.abs().sum(dim=2, keepdim=True).argmax(dim=1, keepdim=True)  # (B, 1, 1, H, W)
    dx, dy = slopes.gather(1, strongest.expand(-1, -1, 2, -1, -1))[:, 0].chunk(2, dim=1)
    return dx, dy


def _is_ridge(strength: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Return whether the slope is a maximum along its direction, rounded to one of four; all (B, 1, H, W)."""
    around = F.pad(strength, (1, 1, 1, 1))
    height, width = strength.shape[-2:]

    def at(down: int, right: int) -> Tensor:
        return around[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat, steep = dy.abs() < dx.abs() * TANGENT, dy.abs() > dx.abs() * (TANGENT + 2)
    level = (strength > at(0, -1)) & (strength >= at(0, 1))
    upright = (strength > at(-1, 0)) & (strength >= at(1, 0))
    falling = (strength > at(-1, -1)) & (strength > at(1, 1))
    rising = (strength > at(-1, 1)) & (strength > at(1, -1))
    slanted = torch.where((dx < 0) ^ (dy < 0), rising, falling)
    return torch.where(flat, level, torch.where(steep, upright, slanted))


def _connected(sure: Tensor, possible: Tensor) -> Tensor:
    """Return the pixels of `possible` (B, 1, H, W) that are connected to a sure one, by eight neighbours."""
    while True:
        grown = (F.max_pool2d(sure.float(), 3, stride=1, padding=1) > 0) & possible
        if torch.equal(grown, sure):
            return sure
        sure = grown
