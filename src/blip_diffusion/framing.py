"""The position of the subject in its reference, which is cropped to it, and in the generated image.

Boxes are `(left, top, right, bottom)` in shares of an image's sides, (0, 0) at its top left. A *frame* is the
reference's square in the generated image, `(left, top, width, height)` in the same unit. The subject's longest side is
`FILL` of the cropped reference's, so the subject's box determines the frame. Torch and NumPy are
imported where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from blip_diffusion.errors import InputError, quoted

if TYPE_CHECKING:
    from torch import Tensor

FILL = 0.88
"""The subject's longest side, as a share of a cropped reference's side."""

COUNTS = {2: ("two of them", "a pair of them"), 3: ("three of them", "three in a row")}
SIZES = {"small": ("small", "very small", "tiny"), "big": ("big", "very big", "huge")}
POSITIONS = {
    "left": ("at the left", "on the left side"),
    "right": ("at the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "centre": ("in the centre", "in the middle"),
    "top left": ("at the top left", "in the top left corner"),
    "top right": ("at the top right", "in the top right corner"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}
WORN = {
    "hat": ("wearing a hat", "with a hat on"),
    "crown": ("wearing a crown", "with a crown on"),
    "bow": ("wearing a bow", "with a bow on"),
}
BESIDE = ("next to a", "beside a", "with a ball", "with a balloon", "holding a balloon", "with an umbrella")
"""Beginnings of phrases that put an object at the subject's right."""

SIDES = {"": (0.55, 0.75), "small": (0.24, 0.34), "big": (0.88, 1.0)}
"""Range of the subject's longest side in training, by the words for its size."""
MOVED_SIDES = (0.34, 0.46)
"""The same if a word moves the subject: smaller, so that the move is visible."""
SIDE = {size: (low + high) / 2 for size, (low, high) in SIDES.items()}
MOVED_SIDE = sum(MOVED_SIDES) / 2
CENTRE = {"left": 0.25, "right": 0.75, "top": 0.27, "bottom": 0.74}
PITCH = {2: 0.46, 3: 0.31}
"""Distance between the centres of copies."""
USUAL_HORIZON = 0.7
"""Share of the height at which the ground starts, by default."""
_NO_GROUND = ("background", "gradient", "underwater", "in the sky", "in space", "clouds")


class Box(NamedTuple):
    """A subject's box, in shares of the image's sides."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


def check_box(values: Sequence[float]) -> Box:
    """Return four numbers as a box.

    Raises:
        InputError: If they are not left < right and top < bottom, at least partly within the image.
    """
    try:
        box = Box(*(_share(value) for value in values))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"The box is {quoted(values)}: give left, top, right, bottom, as shares of the image."
        ) from error
    inside = box.left < 1 and box.top < 1 and box.right > 0 and box.bottom > 0
    if not (0.02 < box.width <= 4 and 0.02 < box.height <= 4 and inside):
        raise InputError(
            f"The box is {tuple(box)}: give left < right and top < bottom, as shares of the image from 0 to 1."
        )
    return box


def _share(value: Any) -> float:
    if isinstance(value, str | bytes | bool):
        raise TypeError
    return float(value)


def check_region(values: Sequence[float]) -> Box:
    """Return four numbers as the box of one of several subjects, which is also the region that the subject fills.

    Raises:
        InputError: If they are not a box within the image.
    """
    box = check_box(values)
    if min(box) < 0 or max(box) > 1:
        raise InputError(f"The box is {tuple(box)}: boxes of several subjects lie within the image, from 0 to 1.")
    return box


# ------------------------------------------------------------------------------------------- the generated image


def default_boxes(prompt: str, aspect: float = 1.0) -> list[Box]:
    """Return the boxes of the subject that a prompt describes, one for each copy.

    Args:
        prompt: The words after the category: "on the beach", ", small , at the left , on grass", ", two of them".
        aspect: Width over height of the subject.

    Returns:
        Boxes in shares of the image's sides; by default, one around the middle.

    Example:
        >>> default_boxes("on the beach")
        [Box(left=0.175, top=0.175, right=0.825, bottom=0.825)]
    """
    words = prompt.lower()
    floor = None if any(word in words for word in _NO_GROUND) else ground_below(USUAL_HORIZON)
    count = next((n for n, phrases in COUNTS.items() if _contains(words, phrases)), 1)
    if count > 1:
        return _row_of_copies(count, aspect, floor)
    if any(_contains(words, phrases) for phrases in WORN.values()):
        return [_box(0.5, stand_on(floor, 0.56, _extent(0.55, aspect)[1]), 0.55, aspect)]
    if any(phrase in words for phrase in BESIDE):
        return [_box(0.34, stand_on(floor, 0.5, _extent(0.55, aspect)[1]), 0.55, aspect)]
    return [_placed_by_words(words, aspect, floor)]


def _row_of_copies(count: int, aspect: float, floor: float | None) -> list[Box]:
    pitch = PITCH[count]
    side = min((pitch - 0.04) * max(aspect, 1) / aspect, 0.55) * 0.96
    y, first = stand_on(floor, 0.5, _extent(side, aspect)[1]), 0.5 - pitch * (count - 1) / 2
    return [_box(first + pitch * i, y, side, aspect) for i in range(count)]


def _placed_by_words(words: str, aspect: float, floor: float | None) -> Box:
    size = _key_in(words, SIZES)
    position = _key_in(words, POSITIONS).split()
    moved = any(word in CENTRE for word in position)
    side = MOVED_SIDE if moved and not size else SIDE[size]
    x = next((CENTRE[word] for word in position if word in ("left", "right")), 0.5)
    vertical = [CENTRE[word] for word in position if word in ("top", "bottom")]
    width, height = _extent(side, aspect)
    y = vertical[0] if vertical else stand_on(floor, 0.5, height)
    return _box(keep_inside(x, width), keep_inside(y, height), side, aspect)


def _key_in(words: str, table: Mapping[str, Sequence[str]]) -> str:
    """Return the key of the longest phrase of a table that the words contain, or an empty string."""
    matches = [
        (len(phrase), key) for key, phrases in table.items() for phrase in phrases if _contains(words, (phrase,))
    ]
    return max(matches)[1] if matches else ""


def _contains(words: str, phrases: Sequence[str]) -> bool:
    return any(re.search(rf"\b{re.escape(phrase)}\b", words) for phrase in phrases)


def ground_below(horizon: float) -> float:
    """Return the height at which a subject stands on the ground that starts at a horizon."""
    return min(horizon + 0.12, 0.94)


def stand_on(ground: float | None, y: float, height: float) -> float:
    """Move a centre down until the lower edge of an extent stands on the ground, if there is any."""
    return y if ground is None else max(min(y, 0.97 - height / 2), ground - height / 2)


def keep_inside(centre: float, extent: float) -> float:
    """Move a centre so that an extent lies within the frame, as far as it fits."""
    margin = min(extent / 2 + 0.01, 0.5)
    return min(max(centre, margin), 1 - margin)


def _extent(side: float, aspect: float) -> tuple[float, float]:
    return side * min(aspect, 1), side / max(aspect, 1)


def _box(x: float, y: float, side: float, aspect: float) -> Box:
    width, height = _extent(side, aspect)
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def box_in_place_of(box: Box, aspect: float, *, inside: bool = False, shape: float = 1.0) -> Box:
    """Return the box of a subject that stands where another does: the same centre and lower edge.

    Args:
        box: The other's, in shares of the image's sides.
        aspect: Width over height of the new subject.
        inside: Whether it must fit into the box; else its longest side is the box's.
        shape: Width over height of the image.
    """
    width, height = _extent(1.0, aspect)
    old_width, old_height = box.width * shape, box.height
    longest = min(old_width / width, old_height / height) if inside else max(old_width, old_height)
    width, height, x = longest * width / shape, longest * height, (box.left + box.right) / 2
    return Box(x - width / 2, box.bottom - height, x + width / 2, box.bottom)


def frames_of(boxes: Sequence[Sequence[Box]], *, aspect: float = 1.0, mirror: bool = False) -> Tensor:
    """Return the frames of subjects' boxes.

    Args:
        boxes: For each image, the box of each copy of its subject.
        aspect: Width over height of the generated image; boxes keep the subject's proportions in it.
        mirror: Whether subjects are mirrored.

    Returns:
        (B, K, 4): left, top, width, height of the reference's square around each copy; width 0 is padding.
    """
    import torch

    most = max(len(row) for row in boxes)
    empty = (0.0, 0.0, 0.0, 0.0)
    rows = [[_frame(box, aspect, mirror) for box in row] + [empty] * (most - len(row)) for row in boxes]
    return torch.tensor(rows)


def _frame(box: Box, aspect: float, mirror: bool) -> tuple[float, float, float, float]:
    side = max(box.width * aspect, box.height) / FILL  # in heights of the image
    width, x, y = side / aspect, (box.left + box.right) / 2, (box.top + box.bottom) / 2
    return (x + width / 2 if mirror else x - width / 2, y - side / 2, -width if mirror else width, side)


# ----------------------------------------------------------------------------------------------- the reference


def box_of_mask(mask: Tensor, *, threshold: float = 0.5) -> Box | None:
    """Return the box of a mask (H, W) in [0, 1], or `None` for an empty mask.

    Rows and columns count from a twenty-fifth of the fullest one, so that a few stray pixels don't widen the box.
    """
    solid = (mask > threshold).float()
    spans = []
    for axis in (0, 1):
        filled = solid.sum(axis)
        counted = (filled > 0.04 * float(filled.max())).nonzero().flatten()
        if not len(counted):
            return None
        spans.append((int(counted[0]) / len(filled), (int(counted[-1]) + 1) / len(filled)))
    (left, right), (top, bottom) = spans
    return Box(left, top, right, bottom)


def box_before_plain_border(pixels: Tensor, *, tolerance: float = 0.08) -> Box | None:
    """Return the box of the pixels that differ from an image's border, or `None` if the border isn't of one colour.

    Args:
        pixels: (3, H, W) in [0, 1].
        tolerance: Largest distance in any channel that still counts as the border's colour.
    """
    import torch
    import torch.nn.functional as F

    edge = max(2, min(pixels.shape[-2:]) // 32)
    border = torch.cat(
        [
            pixels[:, :edge].flatten(1),
            pixels[:, -edge:].flatten(1),
            pixels[:, :, :edge].flatten(1),
            pixels[:, :, -edge:].flatten(1),
        ],
        dim=1,
    )
    colour = border.median(dim=1).values[:, None]
    if float(((border - colour).abs().amax(0) <= tolerance).float().mean()) < 0.97:
        return None
    smooth = F.avg_pool2d(pixels[None], 3, 1, 1, count_include_pad=False)[0]  # single pixels are noise
    return box_of_mask(((smooth - colour[:, :, None]).abs().amax(0) > tolerance).float())


def crop_to_subject(image: Image.Image, box: Box, size: int, *, fill: float = FILL) -> Image.Image:
    """Return the square around a subject whose longest side is the share `fill` of it, resized to `size` pixels.

    Beyond the image, its edge pixels are repeated.
    """
    width, height = image.size
    side = max(box.width * width, box.height * height) / fill
    x, y = (box.left + box.right) / 2 * width, (box.top + box.bottom) / 2 * height
    left, top = x - side / 2, y - side / 2
    beyond = [max(0, round(value) + 1) for value in (-left, -top, left + side - width, top + side - height)]
    padded = _repeat_edges(image, *beyond)
    left, top = left + beyond[0], top + beyond[1]
    return padded.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _repeat_edges(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    import numpy as np

    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
