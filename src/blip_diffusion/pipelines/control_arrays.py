"""Control images as arrays, tensors and nested lists, which diffusers' pipelines accept besides PIL images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip_diffusion.errors import InputError


def per_net(image: Any, nets: int) -> list[Any]:
    """Return the control images of each net.

    Args:
        image: For one net, its image or images. For several nets, a list with one item per net; or, as in diffusers, a
            list of lists: for each prompt, the images of all nets.
        nets: Number of ControlNets.

    Raises:
        InputError: If a list of lists is not of that shape.
    """
    if nets == 1 or not isinstance(image, list | tuple):
        return [image]
    if not image or not all(isinstance(row, list | tuple) for row in image):
        return list(image)
    if any(len(row) != nets for row in image):
        raise InputError(f"A nested list of control images has one list for each prompt, each with {nets} images.")
    return [list(column) for column in zip(*image, strict=True)]


def as_tensor(image: Any) -> Any:
    """Return arrays and tensors, or lists of them, as one tensor (B, 3, H, W), and anything else unchanged.

    Arrays are (H, W, 3) or (B, H, W, 3), tensors (3, H, W) or (B, 3, H, W), both of floats in [0, 1].

    Raises:
        InputError: If one has another shape, numbers outside of [0, 1], or is not of floats.
    """
    if isinstance(image, Sequence) and image and all(isinstance(one, Tensor | np.ndarray) for one in image):
        parts = [as_tensor(one) for one in image]
        if len({part.shape[1:] for part in parts}) > 1:
            raise InputError("The control images have different sizes: give tensors of one size.")
        return torch.cat(parts)
    if isinstance(image, np.ndarray):
        given = torch.from_numpy(image.astype(np.float32)) if image.dtype.kind == "f" else torch.from_numpy(image)
        return _checked(given.movedim(-1, -3) if given.ndim in (3, 4) else given, tuple(image.shape))
    return _checked(image, tuple(image.shape)) if isinstance(image, Tensor) else image


def _checked(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise InputError(f"The control array is {shape}: use a tensor (B, 3, H, W) or an array (B, H, W, 3).")
    if not pixels.is_floating_point() or not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise InputError("A control image as an array or tensor holds floats from 0 to 1: divide 8 bit ones by 255.")
    return pixels
