"""Placement of cut-outs, as numbers. The prompt decides it; by default, a subject stands in the middle."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from blip_diffusion.data.synthetic.prompt_templates import PromptSpec
from blip_diffusion.framing import (
    CENTRE,
    MOVED_SIDES,
    PITCH,
    SIDES,
    USUAL_HORIZON,
    WORN,
    ground_below,
    keep_inside,
    stand_on,
)

_JITTER = 0.06
_BOX_BITS = 64  # alpha from which a pixel belongs to the box


class CutoutGeometry(NamedTuple):
    """Geometry of a cut-out, in pixels of its 128 x 128 frame."""

    x: float  # centre of its box
    y: float
    width: float
    height: float
    head: float  # centre of its topmost fifth, from the box's left edge, in widths
    head_width: float  # in widths
    foot: float  # the same for its lowest eighth
    foot_width: float
    colour: tuple[float, float, float]  # mean, in [0, 1]


@dataclass(frozen=True)
class Placement:
    """Placement of a cut-out on an image. Lengths are in sides of the image."""

    row: int  # which image of the batch
    cutout: int
    x: float  # centre of its box
    y: float
    side: float  # longest side of its box
    subject: bool = True  # false: an accessory
    ground: bool = False  # whether it casts a contact shadow
    paint: str = ""
    silhouette: bool = False
    angle: float = 0.0  # degrees
    colour_matrix: tuple[float, ...] | None = None  # nine numbers, row by row, that multiply its RGB
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)


def measure(pixels: Tensor) -> list[CutoutGeometry]:
    """Return the geometry of cut-outs (N, 4, H, W) uint8."""
    rows: list[list[float]] = []
    for chunk in torch.split(pixels, 512):
        rows += _measure(chunk).tolist()
    return [
        CutoutGeometry(a, b, c, d, e, f, g, h, (red, green, blue)) for a, b, c, d, e, f, g, h, red, green, blue in rows
    ]


@dataclass(frozen=True)
class Jitter:
    """Random choice of values that the prompt doesn't fix, from a whole range (`amount` 1) to its middle (0)."""

    rng: random.Random
    amount: float = 1.0

    def between(self, low: float, high: float) -> float:
        """Return a number in a range; the generator advances for every `amount`."""
        value = self.rng.uniform(low, high)
        return value + (1 - self.amount) * ((low + high) / 2 - value)

    def about(self, spread: float) -> float:
        """Return a number between -spread and spread."""
        return self.between(-spread, spread)

    def horizon(self, actual: float | None) -> float | None:
        """Return the horizon for placement, between the image's (`amount` 1) and the usual one (0)."""
        return None if actual is None else actual + (1 - self.amount) * (USUAL_HORIZON - actual)


def place(row: int, cutout: int, shape: CutoutGeometry, request: PromptSpec, horizon: float | None, jitter: Jitter,
          extra: tuple[int, CutoutGeometry] | None = None) -> list[Placement]:  # fmt: skip
    """Return the placements of a request, from back to front: copies of a subject, then its accessory (`extra`)."""
    horizon = jitter.horizon(horizon)
    if request.count > 1:
        subjects = _in_a_row(row, cutout, shape, request.count, horizon, jitter)
    elif extra is not None:
        subjects = [_beside(row, cutout, shape, request.accessory, horizon, jitter)]
    else:
        subjects = [_alone(row, cutout, shape, request, horizon, jitter)]
    if extra is None:
        return subjects
    return [*subjects, _accessory(subjects[0], shape, request.accessory, *extra)]


def place_reference(row: int, cutout: int, horizon: float | None, fill: tuple[float, float], drift: float,
                    rotation: float, rng: random.Random) -> Placement:  # fmt: skip
    """Return the placement in a reference: the longest side within `fill`, the centre at most `drift` off."""
    side = rng.uniform(*fill)
    x, y = (0.5 + rng.uniform(-drift, drift) for _ in range(2))
    angle = rng.choice((0.0, rng.uniform(-rotation, rotation)))
    return Placement(row, cutout, x, y, side, ground=horizon is not None, angle=angle)


def place_anywhere(
    row: int, cutout: int, shape: CutoutGeometry, horizon: float | None, rng: random.Random
) -> Placement:
    """Return a placement of random size and position; half of those with a ground stand on it."""
    side = rng.uniform(0.25, 0.95)
    width, height = _extent(shape, side)
    x, y = (rng.uniform(extent / 2, 1 - extent / 2) for extent in (width, height))
    stands = horizon is not None and rng.random() < 0.5
    if stands:
        y = keep_inside(_standing(y, height, horizon), height)
    return Placement(row, cutout, x, y, side, ground=stands)


def frame_of(placement: Placement, reference: Placement) -> tuple[float, float, float, float]:
    """Return the reference's square in the image: left, top, width, height, in the image's sides.

    In this square the subject has the same position in the reference and in the image.
    """
    scale = placement.side / reference.side
    return placement.x - scale * reference.x, placement.y - scale * reference.y, scale, scale


def _alone(row: int, cutout: int, shape: CutoutGeometry, request: PromptSpec, horizon: float | None,
           jitter: Jitter) -> Placement:  # fmt: skip
    words = request.position.split()
    low, high = MOVED_SIDES if words and words != ["centre"] and not request.size else SIDES[request.size]
    side = jitter.between(low, high)
    width, height = _extent(shape, side)
    x = y = 0.5
    for word in words:
        if word in ("left", "right"):
            x = CENTRE[word]
        elif word in ("top", "bottom"):
            y = CENTRE[word]
    spread = _JITTER * (1.0 if side < 0.8 else 0.3)
    x, y = x + jitter.about(spread), y + jitter.about(spread)
    floats = "top" in words or "bottom" in words
    y = y if floats else _standing(y, height, horizon)
    x, y = keep_inside(x, width), keep_inside(y, height)
    return Placement(row, cutout, x, y, side, ground=horizon is not None and "top" not in words)


def _in_a_row(row: int, cutout: int, shape: CutoutGeometry, count: int, horizon: float | None,
              jitter: Jitter) -> list[Placement]:  # fmt: skip
    pitch = PITCH[count]
    widest = (pitch - 0.04) * max(shape.width, shape.height) / shape.width  # longest side at which copies do not touch
    side = min(widest, jitter.between(0.5, 0.6)) * jitter.between(0.92, 1.0)
    y = _standing(0.5 + jitter.about(_JITTER), _extent(shape, side)[1], horizon)
    first = 0.5 - pitch * (count - 1) / 2
    return [
        Placement(row, cutout, first + pitch * i, y + jitter.about(0.01), side, ground=horizon is not None)
        for i in range(count)
    ]


def _beside(row: int, cutout: int, shape: CutoutGeometry, accessory: str, horizon: float | None,
            jitter: Jitter) -> Placement:  # fmt: skip
    """Place a subject with space for its accessory, above it or at its right."""
    side = jitter.between(0.5, 0.6)
    y = 0.56 if accessory in WORN else 0.5 + jitter.about(_JITTER)
    y = keep_inside(_standing(y, _extent(shape, side)[1], horizon), _extent(shape, side)[1])
    x = 0.5 if accessory in WORN else 0.34
    return Placement(row, cutout, x + jitter.about(0.03), y, side, ground=horizon is not None)


def _accessory(
    subject: Placement, shape: CutoutGeometry, accessory: str, cutout: int, thing: CutoutGeometry
) -> Placement:
    width, height = _extent(shape, subject.side)
    if accessory in WORN:
        wide = min(max(shape.head_width, 0.3), 0.7) * width
        side = min(wide * max(thing.width, thing.height) / thing.width, 0.4)
        x = subject.x + (shape.head - 0.5) * width
        y = subject.y - height / 2 - _extent(thing, side)[1] * 0.32
        return Placement(subject.row, cutout, x, max(y, _extent(thing, side)[1] / 2), side, subject=False)
    side = min(0.38, 0.32 * max(thing.width, thing.height) / thing.width)
    if accessory == "balloon":
        return Placement(subject.row, cutout, 0.8, 0.3, side, subject=False)
    y = subject.y + height / 2 - _extent(thing, side)[1] / 2
    return Placement(subject.row, cutout, 0.8, y, side, subject=False, ground=subject.ground)


def _extent(shape: CutoutGeometry, side: float) -> tuple[float, float]:
    longest = max(shape.width, shape.height)
    return side * shape.width / longest, side * shape.height / longest


def _standing(y: float, height: float, horizon: float | None) -> float:
    return stand_on(None if horizon is None else ground_below(horizon), y, height)


def _measure(pixels: Tensor) -> Tensor:
    """Return the fields of `CutoutGeometry` (N, 11) of cut-outs (N, 4, H, W) uint8."""
    solid = pixels[:, 3] >= _BOX_BITS  # (N, H, W)
    left, right = _span(solid.any(1))
    top, bottom = _span(solid.any(2))
    width, height = (right - left).clamp(min=1), (bottom - top).clamp(min=1)
    y = torch.arange(solid.shape[1], device=pixels.device)
    head = _span((solid & (y < (top + height / 5)[:, None])[:, :, None]).any(1))
    foot = _span((solid & (y >= (bottom - height / 8)[:, None])[:, :, None]).any(1))
    alpha, sparse = pixels[:, 3:, ::3, ::3].float(), pixels[:, :3, ::3, ::3]  # a ninth is enough for a mean
    colour = (sparse * alpha).sum((2, 3)) / alpha.sum((2, 3)).clamp(min=1) / 255  # (N, 3)
    bands = [((b + a) / 2 - left, b - a) for a, b in (head, foot)]
    columns = [(left + right) / 2, (top + bottom) / 2, width, height]
    columns += [part / width for band in bands for part in band]
    return torch.cat((torch.stack(columns, 1), colour), 1)


def _span(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and one past the last true entry of rows (N, L), as floats."""
    hits = occupied.to(torch.uint8)
    first = hits.argmax(1).float()
    last = occupied.shape[1] - hits.flip(1).argmax(1).float()
    return first, last


def layers_of(placements: Sequence[Placement], images: int) -> list[list[int]]:
    """Return indices of placements by layer, from back to front; a layer has at most one per image."""
    depth = [0] * images
    layers: list[list[int]] = []
    for i, placement in enumerate(placements):
        level = depth[placement.row]
        depth[placement.row] += 1
        if level == len(layers):
            layers.append([])
        layers[level].append(i)
    return layers
