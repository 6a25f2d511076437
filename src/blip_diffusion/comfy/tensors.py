"""ComfyUI's images to PIL and back: IMAGE tensors (B, H, W, 3) and MASK tensors (B, H, W), float32 in [0, 1]."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.images import png_bytes


def to_pil(image: Tensor) -> list[Image.Image]:
    """Return the RGB images of an IMAGE (B, H, W, 3), rounded to 8 bits.

    Raises:
        InputError: If the tensor is not an IMAGE.
    """
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or not len(image):
        raise InputError(f"An image has the shape {tuple(image.shape)}: connect an IMAGE (batch, height, width, 3).")
    return [Image.fromarray(array) for array in _eight_bits(image[..., :3])]


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """Return images of one size as an IMAGE (B, H, W, 3).

    Each value is the smallest float32 that is at least k / 255: ComfyUI's nodes multiply by 255 and truncate, which
    then gives the same 8-bit values.
    """
    return LEVELS[torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).long()]


def reference_files(image: Tensor, background: Tensor | None = None) -> list[io.BytesIO]:
    """Return each image of an IMAGE as an open PNG file, transparent at the background.

    Args:
        image: IMAGE (B, H, W, 3).
        background: MASK (1 or B, h, w), 1 at the background, such as LoadImage's mask of a transparent image. It is
            resized to the image.

    Raises:
        InputError: If the number of masks is neither 1 nor that of the images.
    """
    rgb = to_pil(image)
    if background is None:
        return [io.BytesIO(png_bytes(one)) for one in rgb]
    masks = background.reshape(-1, *background.shape[-2:])
    if len(masks) not in (1, len(rgb)):
        raise InputError(f"There are {len(masks)} masks for {len(rgb)} images: connect one, or one each.")
    alphas = [Image.fromarray(array) for array in _eight_bits(1 - masks.expand(len(rgb), -1, -1))]
    for one, alpha in zip(rgb, alphas, strict=True):
        one.putalpha(alpha if alpha.size == one.size else alpha.resize(one.size, Image.Resampling.BILINEAR))
    return [io.BytesIO(png_bytes(one)) for one in rgb]


def _eight_bits(values: Tensor) -> "list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]":
    array = values.detach().float().cpu().numpy()
    return list((np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8))


def _levels() -> Tensor:
    """Return the 256 float32 levels in [0, 1] of an 8-bit image, each at least k / 255."""
    exact = np.arange(256) / 255
    near = exact.astype(np.float32)
    return torch.from_numpy(np.where(near < exact, np.nextafter(near, np.float32(2)), near).astype(np.float32))


LEVELS = _levels()
