"""Preprocessing of images for feature extractors, and averages of features over a mask.

Letters: `B` images, `F` features, `h w` grid positions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.data.synthetic.backgrounds import PALETTE
from blip_diffusion.images import fit_square, to_tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def square_pixels(images: Sequence[Image.Image], side: int) -> Tensor:
    """Centre-crop images to squares and resize them to (B, 3, side, side) in [0, 1]."""
    return to_tensor([fit_square(image, side) for image in images])


def resize_and_center_crop(image: Image.Image, short: int, side: int) -> Image.Image:
    """Resize the short side to `short`, then crop the middle, as torchvision's Resize and CenterCrop (bicubic)."""
    image = _middle_band(image)
    scale = short / min(image.size)
    width, height = (int(length * scale) for length in image.size)
    width, height = max(width, short), max(height, short)
    left, top = round((width - side) / 2), round((height - side) / 2)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + side, top + side))


def _middle_band(image: Image.Image) -> Image.Image:
    """Crop a very long image to eight times its short side: resizing all of it would fill memory."""
    longest = 8 * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def resize_to(pixels: Tensor, side: int) -> Tensor:
    """Resize pixels (B, 3, S, S) in [0, 1] to a side, bicubic."""
    if pixels.shape[-1] == side:
        return pixels.float()
    return F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def masked_mean(features: Tensor, mask: Tensor | None) -> Tensor:
    """Average features (B, F, h, w) to (B, F), weighted by a mask (B or 1, 1, S, S).

    Without a mask, or if a mask is empty, all positions count equally.
    """
    if mask is None:
        return features.mean((2, 3))
    weights = F.interpolate(mask.to(features), features.shape[2:], mode="area") + 1e-6  # (B, 1, h, w)
    return (features * weights).sum((2, 3)) / weights.sum((2, 3))


def colour_shares(pixels: Tensor) -> Tensor:
    """Return the share of each named colour in each pixel (B, 3, S, S) in [0, 1]: (B, 11, S, S), which sums to one."""
    palette = torch.tensor(list(PALETTE.values()))[None, :, :, None, None]  # (1, 11, 3, 1, 1)
    return (-10 * (pixels[:, None] - palette).norm(dim=2)).softmax(dim=1)
