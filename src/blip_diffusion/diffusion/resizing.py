"""Small images for super-resolution: how they are made in training, and enlarged for the U-Net."""

import torch.nn.functional as F
from torch import Tensor


def shrunk(pixels: Tensor, side: int) -> Tensor:
    """Return images (B, 3, H, W) at `side` pixels, each the mean of an area."""
    return F.interpolate(pixels, size=(side, side), mode="area")


def enlarged(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (B, 3, h, w) in [0, 1] at a larger size (height, width), bicubically."""
    return F.interpolate(pixels, size=size, mode="bicubic").clamp(0, 1)
