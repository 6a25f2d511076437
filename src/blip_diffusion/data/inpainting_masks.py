"""Random masks of inpainting: strokes and boxes as LaMa draws them (Suvorov et al. 2022), and shapes about a subject.

A mask is 1 where an image is to be repainted.
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
"""Of the images for which LaMa's lengths are meant, in pixels."""
STROKES, SEGMENTS, LENGTH, WIDTH, TURN = 5, 5, (10, 210), (5, 105), 3.0
"""Most polylines of a mask, most segments of each; a segment's pixels; the largest turn between two, in radians."""
BOXES, BOX, MARGIN = 4, (30, 150), 10
GROWTH = 12 / 128
"""Largest distance by which a subject's shape is grown, in sides."""


def whole_mask(size: int) -> Tensor:
    """Return the mask (1, S, S) of all of an image."""
    return torch.ones(1, size, size)


def lama_mask(size: int, rng: random.Random) -> Tensor:
    """Return strokes or boxes as a mask (1, S, S): half of the masks each."""
    page = Image.new("L", (size, size))
    draw: Callable[..., None] = _strokes if rng.random() < 0.5 else _boxes
    draw(ImageDraw.Draw(page), size, rng)
    return torch.from_numpy(np.asarray(page, dtype=np.float32) / 255)[None]


def subject_mask(alpha: Tensor, rng: random.Random) -> Tensor:
    """Return a subject's outline, grown at random, its box, or the ellipse in its box, as a mask (1, S, S).

    Args:
        alpha: Where the subject stands, (1, S, S) in [0, 1]. Where there is none, a mask of strokes or boxes.
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
    """Return the mask (1, S, S) of all but a subject: it is to be put into another scene."""
    return (alpha <= 0.5).float()


def _around(solid: Tensor, *, ellipse: bool) -> Tensor:
    rows, columns = (solid[0].amax(axis).nonzero().flatten() for axis in (1, 0))
    page = Image.new("L", (solid.shape[-1],) * 2)
    box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
    pen = ImageDraw.Draw(page)
    (pen.ellipse if ellipse else pen.rectangle)(box, fill=255)
    return torch.from_numpy(np.asarray(page, dtype=np.float32) / 255)[None]


def _strokes(pen: ImageDraw.ImageDraw, size: int, rng: random.Random) -> None:
    scale = size / SIDE
    for _ in range(rng.randint(1, STROKES)):
        x, y, angle = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0, 2 * math.pi)
        width = max(1, round(scale * rng.uniform(*WIDTH)))
        for _ in range(rng.randint(1, SEGMENTS)):
            angle += rng.uniform(-TURN, TURN)
            length = scale * rng.uniform(*LENGTH)
            end = (min(max(v, 0), size) for v in (x + length * math.cos(angle), y + length * math.sin(angle)))
            before, (x, y) = (x, y), end
            pen.line((*before, x, y), fill=255, width=width)
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def _boxes(pen: ImageDraw.ImageDraw, size: int, rng: random.Random) -> None:
    scale = size / SIDE
    margin = round(scale * MARGIN)
    for _ in range(rng.randint(1, BOXES)):
        width, height = (max(1, min(round(scale * rng.uniform(*BOX)), size - 2 * margin)) for _ in range(2))
        left, top = (rng.randint(margin, size - margin - side) for side in (width, height))
        pen.rectangle((left, top, left + width, top + height), fill=255)
