"""Make the square of a reference for the image encoder, and find the subject in it."""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.framing import FILL, Box, box_before_plain_border, box_of_mask, crop_to_subject
from blip_diffusion.images import ResizeMode, alpha_of, as_rgb, fit_square, preprocess, to_tensor
from blip_diffusion.model import BlipDiffusion

CUT_ASPECT, MIN_VISIBLE = 1.25, 0.7
"""Aspect ratio from which, and visible share of the subject below which, cropping is warned of."""


class SquareReference(NamedTuple):
    """The square of a reference that the image encoder reads."""

    image: Image.Image
    aspect: float = 1.0  # width over height of the subject; 1 if unknown


def square_reference(
    model: BlipDiffusion,
    image: Image.Image,
    mode: ResizeMode | None = None,
    *,
    size: int | None = None,
    fill: float = FILL,
    found: Box | None = None,
) -> SquareReference:
    """Make a reference square.

    Args:
        model: The model that will encode it.
        image: An image of any size and mode.
        mode: "crop", "squash", "pad" or "subject"; by default the model's.
        size: Side of the square in pixels; by default the image encoder's.
        fill: With "subject", the share of the side that the subject's longest side takes.
        found: With "subject", the subject's box, if the caller has found it.

    Returns:
        The square, and the subject's proportions. With "subject" and no subject found, the centre of the image, with
        a warning.
    """
    mode, size = mode or model.reference.resize_mode, size or model.reference.size
    if mode != "subject":
        upright = as_rgb(image)
        if mode == "crop":
            _warn_of_cut(image, upright)
        return SquareReference(fit_square(upright, size, mode))
    upright = as_rgb(image)
    box = found or find_subject(model, image, upright)
    if box is None:
        warnings.warn("No subject was found in the reference: its centre is used.", stacklevel=2)
        return SquareReference(fit_square(upright, size, "crop"))
    aspect = box.width * upright.width / (box.height * upright.height)
    return SquareReference(crop_to_subject(upright, box, size, fill=fill), aspect)


def find_subject(model: BlipDiffusion, image: Image.Image, upright: Image.Image | None = None) -> Box | None:
    """Return the box of the subject of an image, in shares of its sides; `None` if none is found.

    It is given by the image's transparency, or else by the difference from a border of one colour, or else by the
    model's subject finder. `upright` is the image as upright RGB, if the caller has it.
    """
    upright = upright or as_rgb(image)
    return _evident_box(image, upright) or _predicted_box(model, upright)


def check_not_blank(square: Image.Image, name: str = "The reference") -> None:
    """Raise `InputError` for a square of one colour, which shows no subject."""
    if all(low == high for low, high in (band.getextrema() for band in square.convert("RGB").split())):
        raise InputError(
            f"{name} has only one colour in its square: use another image, or the resize mode pad or subject."
        )


def _evident_box(image: Image.Image, upright: Image.Image) -> Box | None:
    """Return the box of a subject by transparency or a border of one colour; `None` without them."""
    alpha = alpha_of(image)
    if alpha is not None:
        return box_of_mask(to_tensor([alpha.convert("RGB")])[0, 0], threshold=0.1)
    small = upright.copy()
    small.thumbnail((256, 256))
    return box_before_plain_border(to_tensor([small])[0])


def _warn_of_cut(image: Image.Image, upright: Image.Image) -> None:
    """Warn if the middle square leaves much of an evident subject out."""
    width, height = upright.size
    if max(width, height) < CUT_ASPECT * min(width, height) or (box := _evident_box(image, upright)) is None:
        return
    wide, high = (min(width, height) / side / 2 for side in (width, height))  # half of the square's sides
    visible = max(0.0, min(box.right, 0.5 + wide) - max(box.left, 0.5 - wide))
    visible *= max(0.0, min(box.bottom, 0.5 + high) - max(box.top, 0.5 - high))
    if visible < MIN_VISIBLE * box.width * box.height:
        warnings.warn(
            "Much of the subject lies outside the middle square of the reference: use the resize mode pad or subject.",
            stacklevel=3,
        )


def subject_mask(model: BlipDiffusion, image: Image.Image) -> Tensor | None:
    """Return where the subject of an RGB image is, (H, W) in [0, 1]; `None` for a model without a subject finder."""
    if model.subject_finder is None:
        return None
    side = max(image.size)
    mask = F.interpolate(_predicted_mask(model, image)[None, None], (side, side), mode="bilinear")[0, 0]
    left, top = (round((side - length) / 2) for length in image.size)
    return mask[top : top + image.height, left : left + image.width]


def _predicted_box(model: BlipDiffusion, image: Image.Image) -> Box | None:
    if model.subject_finder is None:
        return Box(0.0, 0.0, 1.0, 1.0)
    box = box_of_mask(_predicted_mask(model, image))
    return None if box is None else _without_bars(box, image.width / image.height)


@torch.no_grad()
def _predicted_mask(model: BlipDiffusion, image: Image.Image) -> Tensor:
    """Return the subject finder's mask of an image padded to a square, at the finder's own size."""
    assert model.subject_finder is not None
    reference, encoder = model.reference, model.subject_encoder
    square = fit_square(image, reference.size, "pad")
    pixels = preprocess(to_tensor([square]).to(encoder.device), reference.size, reference.mean, reference.std)
    features = encoder.image_encoder.features(pixels.to(encoder.dtype))
    return torch.sigmoid(model.subject_finder(features).float())[0, 0].cpu()


def _without_bars(box: Box, aspect: float) -> Box | None:
    """Map a box of an image padded to a square to the image itself, cut at its borders."""
    wide, high = min(aspect, 1.0), min(1 / aspect, 1.0)
    left, right = (min(max((x - 0.5) / wide + 0.5, 0.0), 1.0) for x in (box.left, box.right))
    top, bottom = (min(max((y - 0.5) / high + 0.5, 0.0), 1.0) for y in (box.top, box.bottom))
    return Box(left, top, right, bottom) if right > left and bottom > top else None
