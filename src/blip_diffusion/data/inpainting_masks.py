"""Random masks of inpainting: LaMa's strokes and boxes (Suvorov et al. 2022), and shapes around a subject.

A mask is 1 in the region to inpaint.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 256
"""Image side in pixels that LaMa's lengths refer to."""
STROKES, SEGMENTS, LENGTH, WIDTH, TURN = 5, 5, (10, 210), (5, 105), 3.0
"""Largest numbers of polylines and of segments; length and width in pixels; largest turn in radians."""
BOXES, BOX, MARGIN = 4, (30, 150), 10
GROWTH = 12 / 128
"""Largest dilation of a subject's shape, as a share of the side."""


def whole_mask(size: int) -> Tensor:
    """Return the mask (1, S, S) of the whole image."""
    return torch.ones(1, size, size)


def lama_mask(size: int, rng: random.Random) -> Tensor:
    """Return a mask (1, S, S) of strokes or boxes, with equal probability."""
    page = Image.new("L", (size, size))
    add_shapes: Callable[..., None] = _strokes if rng.random() < 0.5 else _boxes
    add_shapes(ImageDraw.Draw(page), size, rng)
    return torch.from_numpy(np.asarray(page, dtype=np.float32) / 255)[None]


def subject_mask(alpha: Tensor, rng: random.Random) -> Tensor:
    """Return a mask (1, S, S) of a subject: its randomly dilated outline, the box of it, or the ellipse in the box.

    Args:
        alpha: The subject's alpha (1, S, S) in [0, 1]; if it is empty, the mask has strokes or boxes.
        rng: Source of the shape.
    """
    solid = (alpha > 0.1).float()
    if not float(solid.max()):
        return lama_mask(alpha.shape[-1], rng)
    reach = rng.randint(0, round(GROWTH * alpha.shape[-1]))
    grown = F.max_pool2d(solid[None], 2 * reach + 1, stride=1, padding=reach)[0]
    shape = rng.choice(("outline", "outline", "box", "ellipse"))
    return grown if shape == "outline" else _around(grown, ellipse=shape == "ellipse")


def kept_subject_mask(alpha: Tensor) -> Tensor:
    """Return the mask (1, S, S) of everything but the subject, to generate another scene."""
    return (alpha <= 0.5).float()


def _around(solid: Tensor, *, ellipse: bool) -> Tensor:
    rows, columns = (solid[0].amax(axis).nonzero().flatten() for axis in (1, 0))
    page = Image.new("L", (solid.shape[-1],) * 2)
    box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
    draw = ImageDraw.Draw(page)
    (draw.ellipse if ellipse else draw.rectangle)(box, fill=255)
    return torch.from_numpy(np.asarray(page, dtype=np.float32) / 255)[None]


def _strokes(draw: ImageDraw.ImageDraw, size: int, rng: random.Random) -> None:
    scale = size / SIDE
    for _ in range(rng.randint(1, STROKES)):
        x, y, angle = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0, 2 * math.pi)
        width = max(1, round(scale * rng.uniform(*WIDTH)))
        for _ in range(rng.randint(1, SEGMENTS)):
            angle += rng.uniform(-TURN, TURN)
            length = scale * rng.uniform(*LENGTH)
            end = (min(max(v, 0), size) for v in (x + length * math.cos(angle), y + length * math.sin(angle)))
            before, (x, y) = (x, y), end
            draw.line((*before, x, y), fill=255, width=width)
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def _boxes(draw: ImageDraw.ImageDraw, size: int, rng: random.Random) -> None:
    scale = size / SIDE
    margin = round(scale * MARGIN)
    for _ in range(rng.randint(1, BOXES)):
        width, height = (max(1, min(round(scale * rng.uniform(*BOX)), size - 2 * margin)) for _ in range(2))
        left, top = (rng.randint(margin, size - margin - side) for side in (width, height))
        draw.rectangle((left, top, left + width, top + height), fill=255)
