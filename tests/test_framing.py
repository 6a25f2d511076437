"""Boxes of subjects: from prompts, for cropping references, and the frames of placed tokens."""

import itertools

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.framing import (
    FILL,
    Box,
    box_before_plain_border,
    box_of_mask,
    check_box,
    crop_to_subject,
    default_boxes,
    frames_of,
)
from blip_diffusion.images import to_tensor


def centre(box: Box) -> tuple[float, float]:
    return (box.left + box.right) / 2, (box.top + box.bottom) / 2


def image_with(
    box: tuple[int, int, int, int], *, size: tuple[int, int] = (120, 80), colour: str = "white"
) -> Image.Image:
    image = Image.new("RGB", size, colour)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="red")
    return image


@pytest.mark.parametrize(
    ("prompt", "x", "side"),
    [
        ("on the beach", 0.5, 0.65),
        (", small , on grass", 0.5, 0.29),
        (", very small , at the left , on grass", 0.25, 0.29),
        ("at the right , in the snow", 0.75, 0.40),
        (", huge , on grass", 0.5, 0.94),
        ("next to an apple , on grass", 0.34, 0.55),
        ("wearing a hat , on grass", 0.5, 0.55),
    ],
)
def test_prompt_words_set_position_and_size(prompt: str, x: float, side: float) -> None:
    (box,) = default_boxes(prompt)
    assert centre(box)[0] == pytest.approx(x, abs=0.01)
    assert max(box.width, box.height) == pytest.approx(side)


def test_longest_phrase_has_priority() -> None:
    (box,) = default_boxes("in the top left corner , on grass")
    assert centre(box) == pytest.approx((0.25, 0.27), abs=0.03)


@pytest.mark.parametrize(("prompt", "count"), [(", two of them", 2), (", three in a row , on grass", 3)])
def test_copies_stand_side_by_side(prompt: str, count: int) -> None:
    boxes = default_boxes(prompt, aspect=0.7)
    assert len(boxes) == count
    assert all(a.right <= b.left for a, b in itertools.pairwise(boxes))
    assert len({round(box.bottom, 6) for box in boxes}) == 1


def test_flat_subjects_stand_on_the_ground() -> None:
    (grass,), (plain,) = default_boxes("on grass", 3.0), default_boxes("on a plain red background", 3.0)
    assert grass.bottom == pytest.approx(0.82) and centre(plain)[1] == pytest.approx(0.5)
    assert grass.width / grass.height == pytest.approx(3.0)


def test_frame_matches_the_cropped_reference() -> None:
    frames = frames_of([[Box(0.2, 0.4, 0.6, 0.6)], [Box(0, 0, 0.3, 0.3), Box(0.7, 0, 1, 0.3)]])
    assert frames.shape == (2, 2, 4)
    left, top, width, height = frames[0, 0].tolist()
    assert width == height == pytest.approx(0.4 / FILL)
    assert (left + width / 2, top + height / 2) == pytest.approx((0.4, 0.5))
    assert frames[0, 1].tolist() == [0, 0, 0, 0]


def test_mirrored_frames_and_wide_images() -> None:
    box = [[Box(0.2, 0.2, 0.6, 0.6)]]
    plain, mirrored = frames_of(box)[0, 0], frames_of(box, mirror=True)[0, 0]
    assert mirrored[0] == pytest.approx(float(plain[0] + plain[2])) and mirrored[2] == -plain[2]
    wide = frames_of(box, aspect=2.0)[0, 0]
    assert wide[2] * 2 == pytest.approx(float(wide[3]))


@pytest.mark.parametrize(
    "values", [(0.5, 0, 0.4, 1), (1.2, 0, 1.4, 1), (0, 0, 9, 9), (0, 0, 1), ("a", 0, 1, 1), (0, 0, 0, 0)]
)
def test_invalid_box_is_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="The box is"):
        check_box(values)  # type: ignore[arg-type]


def test_mask_box_ignores_stray_pixels() -> None:
    mask = torch.zeros(100, 100)
    mask[20:60, 30:90] = 1
    mask[95, 5] = 1
    assert box_of_mask(mask) == pytest.approx((0.3, 0.2, 0.9, 0.6), abs=0.011)
    assert box_of_mask(torch.zeros(8, 8)) is None


def test_plain_border_locates_the_subject() -> None:
    box = box_before_plain_border(to_tensor([image_with((30, 20, 90, 60))])[0])
    assert box == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.02)


def test_no_box_without_a_plain_border() -> None:
    noise: Tensor = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert box_before_plain_border(noise) is None


@pytest.mark.parametrize("box", [(30, 20, 90, 60), (0, 0, 120, 20), (100, 60, 120, 80)])
def test_crop_centres_the_subject_at_its_usual_size(box: tuple[int, int, int, int]) -> None:
    image = image_with(box)
    expected = Box(box[0] / 120, box[1] / 80, box[2] / 120, box[3] / 80)
    square = to_tensor([crop_to_subject(image, expected, 64)])[0]
    red = (square[0] > 0.5) & (square[1] < 0.5)
    columns, rows = red.any(0).sum() / 64, red.any(1).sum() / 64
    touches = box[0] == 0 or box[2] == 120  # there the edge is repeated
    assert touches or max(columns, rows) == pytest.approx(FILL, abs=0.04)
    assert bool(red[32, 32])
