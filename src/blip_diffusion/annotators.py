"""From an image to what a ControlNet looks at. Canny edges are ours; the others are `controlnet_aux`'s networks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.errors import InputError, reason

LEARNED = {
    "depth": "MidasDetector",
    "hed": "HEDdetector",
    "lineart": "LineartDetector",
    "normal": "NormalBaeDetector",
    "openpose": "OpenposeDetector",
    "softedge": "PidiNetDetector",
}
"""Annotators that are networks: their classes in `controlnet_aux`."""
WEIGHTS = "lllyasviel/Annotators"
"""Where the hub has what they learned."""
KINDS = ("map", "canny", *LEARNED)
"""`map` takes an image that is a control map already."""
TANGENT = 0.4142135623730950488  # of 22.5 degrees


def annotate(image: Image.Image, kind: str) -> Image.Image:
    """Return the control map of an image. Raises `InputError` for an unknown or unavailable annotator."""
    image = images.as_rgb(image)
    if kind == "map":
        return image
    if kind == "canny":
        return canny(image)
    if kind in LEARNED:
        return _learned(kind)(image).convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
    raise InputError(f"There is no control {kind!r}: use {', '.join(KINDS[:-1])} or {KINDS[-1]}.")


def _learned(kind: str) -> Callable[[Image.Image], Image.Image]:
    try:
        import controlnet_aux  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"The control {kind} needs controlnet_aux: pip install 'blip-diffusion[control]', or draw the map yourself "
            "and give it as map."
        ) from error
    try:
        detector: Callable[[Image.Image], Image.Image] = getattr(controlnet_aux, LEARNED[kind]).from_pretrained(WEIGHTS)
    except Exception as error:  # its networks are fetched from the hub and built by several libraries
        raise InputError(
            f"The control {kind} can't be had from {WEIGHTS} ({reason(error)}): draw the map yourself and give it as "
            "map."
        ) from error
    return detector


def canny(image: Image.Image, low: float = 30, high: float = 70) -> Image.Image:
    """Edges (Canny 1986), white on black: what OpenCV's `Canny` finds in the same image with the same thresholds.

    The defaults are those of the published demonstration. Thresholds are of |dx| + |dy| after a 3 x 3 Sobel filter;
    of the three colours, that with the strongest slope counts.
    """
    dx, dy = _slopes((images.to_tensor([images.as_rgb(image)]) * 255).round())
    strength = dx.abs() + dy.abs()
    ridge = (strength > low) & _is_ridge(strength, dx, dy)
    edges = _connected(ridge & (strength > high), ridge)
    return Image.fromarray(edges.byte().mul(255).numpy()).convert("RGB")


def _slopes(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 3, H, W) to its slopes (H, W) to the right and down, of the colour that has the strongest."""
    smooth, step = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([torch.outer(smooth, step), torch.outer(step, smooth)])[:, None]
    slopes = F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate").transpose(0, 1), kernels)  # (3, 2, H, W)
    strongest = slopes.abs().sum(dim=1).argmax(dim=0)  # (H, W)
    dx, dy = slopes.gather(0, strongest.expand(1, 2, -1, -1))[0]
    return dx, dy


def _is_ridge(strength: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Where the slope is strongest along its own direction, taken as one of four."""
    around = F.pad(strength, (1, 1, 1, 1))
    height, width = strength.shape

    def at(down: int, right: int) -> Tensor:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat, steep = dy.abs() < dx.abs() * TANGENT, dy.abs() > dx.abs() * (TANGENT + 2)
    level = (strength > at(0, -1)) & (strength >= at(0, 1))
    upright = (strength > at(-1, 0)) & (strength >= at(1, 0))
    falling = (strength > at(-1, -1)) & (strength > at(1, 1))
    rising = (strength > at(-1, 1)) & (strength > at(1, -1))
    slanted = torch.where((dx < 0) ^ (dy < 0), rising, falling)
    return torch.where(flat, level, torch.where(steep, upright, slanted))


def _connected(sure: Tensor, possible: Tensor) -> Tensor:
    """Return what of `possible` (H, W) is connected to something sure, by eight neighbours."""
    while True:
        grown = (F.max_pool2d(sure[None].float(), 3, stride=1, padding=1)[0] > 0) & possible
        if torch.equal(grown, sure):
            return sure
        sure = grown
